# SPDX-License-Identifier: Apache-2.0
"""The GPU map as callers of the API see it; `control.gpumap` makes it, and `cli.gpumap` shows it."""

from __future__ import annotations

from dataclasses import dataclass

from fmctl.core.gpumap import GpuMap
from fmctl.core.mapsource import Acceptance, MapState, Source, Verdict
from fmctl.core.pci import Bdf


@dataclass(frozen=True)
class MappedGpu:
    """A GPU that is there; its physical id is None where nobody tells, and `unread` says why it was not read."""

    address: Bdf
    physical_id: int | None = None
    unread: str = ""


@dataclass(frozen=True)
class MapStatus:
    """What is kept of the GPU map, and what it comes to now.

    `fingerprint` names the map and the board, to be typed by who accepts it; `board` the board alone.
    """

    state: MapState
    why: str
    fix: str
    fingerprint: str
    board: str
    gpus: tuple[MappedGpu, ...]
    sources: tuple[Source, ...] = ()
    accepted: Acceptance | None = None
    simulated: bool = False

    def counting(self) -> GpuMap:
        """The map, with the GPUs that the host has lost as far as a source names them; raises MapUnverified."""
        lost = {number: bdf for source in self.sources for bdf, number in source.readings.items()}
        there = {gpu.physical_id: gpu.address for gpu in self.gpus if gpu.physical_id is not None}
        found = Verdict(self.state, GpuMap({**lost, **there}), self.why, self.fix)
        found.check()
        return found.map
