# SPDX-License-Identifier: Apache-2.0
"""The daemon's GPU map as the CLI uses it; `rpc.gpumap` is the other side."""

from __future__ import annotations

from typing import Any

from fmctl.core.address import Address
from fmctl.core.mapsource import SourceKind
from fmctl.core.mapstatus import MapStatus
from fmctl.rpc import convert_map
from fmctl.rpc.dial import Client
from fmctl.rpc.fmctl.v1 import gpu_map_pb2 as messages
from fmctl.rpc.fmctl.v1.gpu_map_pb2_grpc import GpuMapServiceStub


class GpuMapClient(Client):
    """Every method may be called from any thread."""

    def __init__(self, address: Address) -> None:
        super().__init__(address, "fmctld")
        self._stub = GpuMapServiceStub(self.channel)

    def show(self, *, timeout: float) -> MapStatus:
        """The map as it stands."""
        return _status(self.call(self._stub.GetGpuMap, messages.GetGpuMapRequest(), timeout))

    def discover(self, *, actor: str, timeout: float) -> MapStatus:
        """Ask every source that can be asked."""
        request = messages.DiscoverGpuMapRequest(actor=actor)
        return _status(self.call(self._stub.DiscoverGpuMap, request, timeout, changes=True))

    def bring(self, text: str, name: str, kind: SourceKind | None, *, actor: str, timeout: float) -> MapStatus:
        """Import a file's text, of that kind or of the one that it looks like."""
        request = messages.ImportGpuMapRequest(text=text, name=name, format=convert_map.format_to(kind), actor=actor)
        return _status(self.call(self._stub.ImportGpuMap, request, timeout, changes=True))

    def accept(self, fingerprint: str, *, actor: str, timeout: float) -> MapStatus:
        """Let a person's word verify the map."""
        request = messages.AcceptGpuMapRequest(fingerprint=fingerprint, actor=actor)
        return _status(self.call(self._stub.AcceptGpuMap, request, timeout, changes=True))


def _status(answer: Any) -> MapStatus:
    return convert_map.map_from(answer.gpu_map, simulated=answer.simulated)
