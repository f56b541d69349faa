# SPDX-License-Identifier: Apache-2.0
"""Drivers and IOMMU groups of a pretended host: the port `VfioDevices`. `host.vfiodev` is its other side.

What a function's driver is stands in the `SimulatedBus`; here is what the kernel does when it is written to, and what
becomes of VMs. It refuses no write that the kernel would not refuse: unbinding a device ejects it from its VM.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Collection
from enum import Enum

from fmctl.core.errors import FmctlError, VmRunning
from fmctl.core.pci import PCI_BRIDGE, Bdf, PciFunction
from fmctl.core.vfio import VFIO_PCI, Exposure, Holder, WriteFailed, WriteOverdue
from fmctl.sim.sysfs import SimulatedBus

NVIDIA = 0x10DE
MELLANOX = 0x15B3


class Effect(Enum):
    """What a reset does: it works, fails, never ends, or leaves a device whose registers read as all ones."""

    WORKS = "works"
    FAILS = "fails"
    BLOCKS = "blocks"
    KILLS = "kills"


class SimulatedVfio:
    """What a kernel with these drivers does; `drivers` can be changed, as by modprobe.

    `resets` counts the resets of each function, and `reset_by` are those that were asked for, with their methods.
    `ejected` are the functions that a VM lost while it ran.
    """

    def __init__(self, bus: SimulatedBus) -> None:
        self._bus = bus
        self._overrides: dict[Bdf, str] = {}
        self._mastering = {function.bdf for function in bus.functions() if function.driver}
        self._holders: dict[int, Holder] = {}
        self._kept: set[int] = set()
        self._errors: dict[Bdf, int] = {}
        self._blocked: set[Bdf] = set()
        self.drivers = {VFIO_PCI, "mlx5_core", "nouveau", "nvme"}
        self.resets: Counter[Bdf] = Counter()
        self.ejected: list[Bdf] = []
        self.reset_by: list[tuple[Bdf, str]] = []
        self._effects: dict[tuple[Bdf, str], Effect] = {}

    def exposure(self, bdf: Bdf, *, timeout: float) -> Exposure | None:
        """What the function is open to; None where it is gone, or a write to it is stuck."""
        state = self._bus.state(bdf)
        if state is None or bdf in self._blocked:
            return None
        return Exposure(self._overrides.get(bdf, ""), state.answers and bdf in self._mastering)

    def override(self, bdf: Bdf, driver: str, *, timeout: float) -> None:
        """Let the kernel give the function this driver alone; with an empty name, any."""
        self._enter(bdf, "driver_override")
        self._overrides[bdf] = driver

    def unbind(self, bdf: Bdf, *, timeout: float) -> None:
        """Take the function from its driver; vfio-pci leaves the bus to nobody, others may not."""
        function = self._enter(bdf, "driver/unbind")
        if not function.driver:
            raise _failed(bdf, "driver/unbind", errno.ENOENT)
        if function.driver == VFIO_PCI:
            self._mastering.discard(bdf)
            if function.iommu_group in self._holders:
                self.resets[bdf] += 1
                self.ejected.append(bdf)
        self._bus.change(bdf, driver="")

    def probe(self, bdf: Bdf, *, timeout: float) -> None:
        """Give the function the driver that its override names, or without one a host driver, if it is there."""
        function = self._enter(bdf, "drivers_probe", gone=errno.ENODEV)
        wanted = self._overrides.get(bdf) or _host_driver(function)
        if not function.driver and wanted in self.drivers:
            self._bus.change(bdf, driver=wanted)
            if wanted != VFIO_PCI:
                self._mastering.add(bdf)

    def stop_bus_master(self, bdf: Bdf, *, timeout: float) -> None:
        """Forbid the function to read or write memory by itself."""
        self._enter(bdf, "config")
        self._mastering.discard(bdf)

    def reset(self, bdf: Bdf, *, method: str = "", timeout: float) -> None:
        """Reset the function, whoever uses it; what its resets do can be set with `on_reset`."""
        self._enter(bdf, "reset_method" if method else "reset")
        state = self._bus.state(bdf)
        if state is None or (method and method not in state.reset_methods):
            raise _failed(bdf, "reset_method", errno.EINVAL)
        effect = self._effects.get((bdf, method), self._effects.get((bdf, ""), Effect.WORKS))
        if effect is Effect.BLOCKS:
            raise WriteOverdue(f"the kernel does not return from reset of {bdf}")
        if effect is Effect.FAILS:
            raise _failed(bdf, "reset", errno.ENOTTY)
        self.resets[bdf] += 1
        self.reset_by.append((bdf, method))
        if effect is Effect.KILLS:
            self._bus.kill(bdf)

    def on_reset(self, bdf: Bdf, effect: Effect, method: str = "") -> None:
        """Let the resets of a function by that method, or by any, do this from now on."""
        self._effects[bdf, method] = effect

    def holders(self, group: int) -> tuple[Holder, ...] | None:
        """Who holds the group; None if nobody does."""
        return (self._holders[group],) if group in self._holders else None

    @property
    def kept(self) -> frozenset[int]:
        """The groups that are kept."""
        return frozenset(self._kept)

    def keep(self, group: int) -> None:
        """Open the group, so that nobody else can."""
        if group in self._kept:
            return
        if group in self._holders:
            raise VmRunning(f"IOMMU group {group} is in use", why="somebody has it open")
        if not self._bound(group):
            raise FmctlError(f"IOMMU group {group} cannot be held", why="there is no node for it")
        self._kept.add(group)

    def give_up(self, groups: Collection[int]) -> None:
        """Keep these groups no longer."""
        self._kept.difference_update(groups)

    def hold(self, group: int, holder: Holder) -> None:
        """Open a group and its devices, as a VM does at its start; raises OSError as the kernel does."""
        members = [function for function in self._bus.functions() if function.iommu_group == group]
        if not any(member.driver == VFIO_PCI for member in members):
            raise OSError(errno.ENOENT, "there is no node for the group")
        if group in self._holders or group in self._kept:
            raise OSError(errno.EBUSY, "the group is open")
        if any(member.driver not in ("", VFIO_PCI) and member.pci_class != PCI_BRIDGE for member in members):
            raise OSError(errno.EINVAL, "the group is not viable")
        self._holders[group] = holder
        for bdf in self._bound(group):
            self.resets[bdf] += 1
            self._mastering.add(bdf)

    def let_go(self, group: int) -> None:
        """Close a group, as a VM's end does by whatever means."""
        del self._holders[group]
        for bdf in self._bound(group):
            self.resets[bdf] += 1
            self._mastering.discard(bdf)

    def fail(self, bdf: Bdf, error: int) -> None:
        """Let every write to the function be refused with that error number."""
        self._errors[bdf] = error

    def block(self, bdf: Bdf) -> None:
        """Let no write to the function end."""
        self._blocked.add(bdf)

    def heal(self, bdf: Bdf) -> None:
        """Let writes to the function work again."""
        self._errors.pop(bdf, None)
        self._blocked.discard(bdf)

    def _bound(self, group: int) -> list[Bdf]:
        return [f.bdf for f in self._bus.functions() if f.iommu_group == group and f.driver == VFIO_PCI]

    def _enter(self, bdf: Bdf, attribute: str, *, gone: int = errno.ENOENT) -> PciFunction:
        """The function that a write meets; raises where the write does not get through."""
        if bdf in self._blocked:
            raise WriteOverdue(f"the kernel does not return from {attribute} of {bdf}")
        function = self._bus.function(bdf)
        error = gone if function is None else self._errors.get(bdf, 0)
        if function is None or error:
            raise _failed(bdf, attribute, error)
        return function


def _failed(bdf: Bdf, attribute: str, error: int) -> WriteFailed:
    return WriteFailed(f"the kernel refused {attribute} of {bdf}", why=os.strerror(error))


def _host_driver(function: PciFunction) -> str:
    """The driver that a host of this kind would give a function."""
    if function.id.vendor == NVIDIA:
        return "nouveau"
    return "mlx5_core" if function.id.vendor == MELLANOX else "nvme"
