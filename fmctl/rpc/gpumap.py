# SPDX-License-Identifier: Apache-2.0
"""The service of the GPU map: each call one call of `control.gpumap`."""

from __future__ import annotations

from collections.abc import Callable

import grpc

from fmctl.control.gpumap import GpuMaps
from fmctl.core.errors import BadRequest
from fmctl.rpc import convert_lease, convert_map
from fmctl.rpc.fmctl.v1 import gpu_map_pb2 as messages
from fmctl.rpc.fmctl.v1.gpu_map_pb2_grpc import GpuMapServiceServicer
from fmctl.rpc.server import time_left

MAX_TEXT = 1 << 20
"""Characters of an import: the output of `nvidia-smi -q` has some 10,000 for each GPU."""
MAX_NAME = 256


class GpuMapServicer(GpuMapServiceServicer):
    """fmctl.v1.GpuMapService."""

    def __init__(self, maps: GpuMaps, simulated: Callable[[], bool]) -> None:
        self._maps = maps
        self._simulated = simulated

    def GetGpuMap(
        self, request: messages.GetGpuMapRequest, context: grpc.ServicerContext
    ) -> messages.GetGpuMapResponse:
        """The map as it stands."""
        return messages.GetGpuMapResponse(gpu_map=convert_map.map_to(self._maps.status()), simulated=self._simulated())

    def DiscoverGpuMap(
        self, request: messages.DiscoverGpuMapRequest, context: grpc.ServicerContext
    ) -> messages.DiscoverGpuMapResponse:
        """Ask what can be asked."""
        status = self._maps.discover(actor=convert_lease.who(request.actor), timeout=time_left(context))
        return messages.DiscoverGpuMapResponse(gpu_map=convert_map.map_to(status), simulated=self._simulated())

    def ImportGpuMap(
        self, request: messages.ImportGpuMapRequest, context: grpc.ServicerContext
    ) -> messages.ImportGpuMapResponse:
        """Take a file's text as a source."""
        name = "".join(filter(str.isprintable, request.name))[:MAX_NAME] or "what was sent"
        if len(request.text) > MAX_TEXT:
            raise BadRequest(
                f"{name} is refused", why=f"it has more than {MAX_TEXT} characters", fix="give it one output or map"
            )
        status = self._maps.bring(
            request.text, name, convert_map.format_from(request.format), actor=convert_lease.who(request.actor)
        )
        return messages.ImportGpuMapResponse(gpu_map=convert_map.map_to(status), simulated=self._simulated())

    def AcceptGpuMap(
        self, request: messages.AcceptGpuMapRequest, context: grpc.ServicerContext
    ) -> messages.AcceptGpuMapResponse:
        """Let a person's word count."""
        status = self._maps.accept(request.fingerprint, actor=convert_lease.who(request.actor))
        return messages.AcceptGpuMapResponse(gpu_map=convert_map.map_to(status), simulated=self._simulated())
