# SPDX-License-Identifier: Apache-2.0
"""Registers of a pretended host's GPUs: the port `Registers`. `host.registers` is its other side.

Each GPU's pins are tied as its module is, by the rules of the board, or otherwise where a test says so.
"""

from __future__ import annotations

import contextlib

from fmctl.core.errors import VmRunning
from fmctl.core.pci import Bdf, PciFunction
from fmctl.core.platform import Platform
from fmctl.core.straps import GONE, Probe, Unreadable, shown
from fmctl.core.vfio import VFIO_PCI, Holder
from fmctl.sim.sysfs import SimulatedBus
from fmctl.sim.vfiodev import SimulatedVfio

READER = Holder(4343, "fmctl")


class SimulatedRegisters:
    """What GPUs answer at their registers; `values` are by function and offset, and a test may change them."""

    def __init__(self, platform: Platform, bus: SimulatedBus, devices: SimulatedVfio) -> None:
        self._platform = platform
        self._bus = bus
        self.devices = devices
        self.values: dict[Bdf, dict[int, int]] = {}
        gpus = sorted(f.bdf for f in bus.functions() if f.id in {model.id for model in platform.gpus.models})
        for physical_id, bdf in zip(platform.physical_ids, gpus, strict=False):
            self.tie(bdf, physical_id)

    def tie(self, bdf: Bdf, physical_id: int) -> None:
        """Let a GPU's pins say that it is this module."""
        rules = self._platform.module_ids.straps
        if rules is None:
            return
        number = (physical_id - rules.first) ^ rules.inverted
        values = {rules.chip.offset: rules.chip.value | 0xA1}
        if rules.ready is not None:
            values[rules.ready.offset] = rules.ready.value
        for place, pin in enumerate(rules.bits):
            values[pin.offset] = values.get(pin.offset, 0) | (number >> place & 1) << pin.bit
        self.values[bdf] = values

    def read(self, function: PciFunction, probe: Probe, *, timeout: float) -> tuple[int, ...]:
        """The values at the probe's offsets, once its registers settled; raises Unreadable or VmRunning."""
        if function.driver not in ("", VFIO_PCI):
            raise Unreadable(f"GPU {function.bdf} is not read", why=f"its driver is {function.driver}")
        with contextlib.ExitStack() as undo:
            if function.driver == VFIO_PCI and function.iommu_group is not None:
                try:
                    self.devices.hold(function.iommu_group, READER)
                except OSError:
                    raise VmRunning(f"GPU {function.bdf} is not read", why="a process has its group open") from None
                undo.callback(self.devices.let_go, function.iommu_group)
            for wait in probe.settle:
                found = self._value(function.bdf, wait.offset)
                if found == GONE or not wait.holds(found):
                    why = f"a register that it must settle in reads as {shown((found,))}"
                    raise Unreadable(f"GPU {function.bdf} did not become ready in {timeout:g} s", why=why)
            return tuple(self._value(function.bdf, offset) for offset in probe.offsets)

    def _value(self, bdf: Bdf, offset: int) -> int:
        state = self._bus.state(bdf)
        if state is None:
            raise Unreadable(f"GPU {bdf} cannot be read", why="No such file or directory")
        return self.values.get(bdf, {}).get(offset, 0) if state.answers else GONE
