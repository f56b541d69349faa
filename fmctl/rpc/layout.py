# SPDX-License-Identifier: Apache-2.0
"""The service of layouts: each call one call of `control.layouts`. `rpc.layout_client` is the other side."""

from __future__ import annotations

import grpc

from fmctl.control.controller import FabricController
from fmctl.rpc import convert_host, convert_lease
from fmctl.rpc.fmctl.v1 import layout_pb2 as messages
from fmctl.rpc.fmctl.v1.layout_pb2_grpc import LayoutServiceServicer
from fmctl.rpc.server import time_left


class LayoutServicer(LayoutServiceServicer):
    """fmctl.v1.LayoutService."""

    def __init__(self, controller: FabricController) -> None:
        self._controller = controller
        self._layouts = controller.layouts

    def GetLayout(
        self, request: messages.GetLayoutRequest, context: grpc.ServicerContext
    ) -> messages.GetLayoutResponse:
        """How the host differs from a layout."""
        state = self._layouts.state(
            request.layout,
            keep_active=request.keep_active if request.HasField("keep_active") else None,
            timeout=time_left(context),
        )
        return messages.GetLayoutResponse(layout=convert_host.layout_to(state), simulated=self._controller.simulated)

    def ApplyLayout(
        self, request: messages.ApplyLayoutRequest, context: grpc.ServicerContext
    ) -> messages.ApplyLayoutResponse:
        """Use only a layout's partitions."""
        state = self._layouts.apply(
            request.layout,
            keep_active=request.keep_active if request.HasField("keep_active") else None,
            actor=convert_lease.who(request.actor),
            timeout=time_left(context),
            dry_run=request.dry_run,
            wait=request.wait,
        )
        return messages.ApplyLayoutResponse(layout=convert_host.layout_to(state), simulated=self._controller.simulated)
