# SPDX-License-Identifier: Apache-2.0
"""The daemon's layout as `fmctl layout` uses it; `rpc.layout` is the other side."""

from __future__ import annotations

from dataclasses import replace

from fmctl.core.address import Address
from fmctl.core.layout import LayoutState
from fmctl.rpc import convert_host, keepalive
from fmctl.rpc.dial import Client
from fmctl.rpc.fmctl.v1 import layout_pb2 as messages
from fmctl.rpc.fmctl.v1.layout_pb2_grpc import LayoutServiceStub


class LayoutClient(Client):
    """The layout of the daemon's host. Every method may be called from any thread."""

    def __init__(self, address: Address) -> None:
        super().__init__(address, "fmctld", options=keepalive.client())
        self._stub = LayoutServiceStub(self.channel)

    def layout(self, text: str = "", *, keep_active: bool | None = None, timeout: float) -> LayoutState:
        """How the host differs from the layout in force, or from one that is named."""
        request = messages.GetLayoutRequest(layout=text, keep_active=keep_active)
        answer = self.call(self._stub.GetLayout, request, timeout)
        return replace(convert_host.layout_from(answer.layout), simulated=answer.simulated)

    def apply(
        self,
        text: str = "",
        *,
        keep_active: bool | None = None,
        actor: str,
        timeout: float,
        dry_run: bool = False,
        wait: bool = False,
    ) -> LayoutState:
        """Use only a layout's partitions, and with `wait` do first what can be done now; how the host differs then."""
        request = messages.ApplyLayoutRequest(
            layout=text, keep_active=keep_active, dry_run=dry_run, wait=wait, actor=actor
        )
        answer = self.call(self._stub.ApplyLayout, request, timeout, changes=not dry_run)
        return replace(convert_host.layout_from(answer.layout), simulated=answer.simulated)
