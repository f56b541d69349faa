# SPDX-License-Identifier: Apache-2.0
"""The expansion ROMs of a pretended host's functions: the port `FirmwareReader`. `host.firmware` is its other side."""

from __future__ import annotations

from fmctl.core.pci import Bdf
from fmctl.core.vfio import WriteOverdue
from fmctl.sim.sysfs import SimulatedBus


class SimulatedFirmware:
    """What the ROM of each `SimulatedFunction` shows; a function in `stuck` never answers."""

    def __init__(self, bus: SimulatedBus) -> None:
        self._bus = bus
        self.stuck: set[Bdf] = set()

    def rom(self, bdf: Bdf, *, timeout: float) -> bytes:
        """Its expansion ROM; empty where it has none, or does not answer as a device."""
        if bdf in self.stuck:
            raise WriteOverdue(f"the kernel does not return from rom of {bdf}")
        return self._bus.rom(bdf)
