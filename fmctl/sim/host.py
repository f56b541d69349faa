# SPDX-License-Identifier: Apache-2.0
"""A pretended HGX host: its PCI functions, their drivers, its kernel and its libvirt, which know of each other.

`sim.tree` can be the guest in its Service VM.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from enum import Enum

from fmctl.core.domain import Domain
from fmctl.core.errors import FmctlError
from fmctl.core.fingerprint import Machine
from fmctl.core.pci import Bdf
from fmctl.core.platform import Platform
from fmctl.core.vfio import Holder
from fmctl.sim.firmware import SimulatedFirmware
from fmctl.sim.hypervisor import SimulatedHypervisor
from fmctl.sim.kernel import SimulatedKernel
from fmctl.sim.qemu import Guest, Hardware
from fmctl.sim.registers import SimulatedRegisters
from fmctl.sim.sysfs import SimulatedBus, gpu_addresses
from fmctl.sim.vfiodev import SimulatedVfio

QEMU = Holder(4242, "qemu-system-x86")
"""Who holds the groups of a running domain's hostdevs."""


class MapFault(str, Enum):
    """What is wrong with what a pretended host is told of its GPU map."""

    NONE = "none"
    UNCONFIRMED = "unconfirmed"
    """One source alone."""
    SWAPPED = "swapped"
    """A person's map has two GPUs swapped."""
    DUPLICATED = "duplicated"
    """Two GPUs say that they are the same module."""
    MISSING = "missing"
    """One GPU is named by nobody."""


class SimulatedHost:
    """A host with this board, on which domains hold the IOMMU groups of their hostdevs."""

    def __init__(
        self,
        platform: Platform,
        guest: Guest = nullcontext,
        *,
        shared_group: bool = False,
        map_fault: MapFault = MapFault.NONE,
    ) -> None:
        self._platform = platform
        self._map_fault = map_fault
        self.machine = Machine(str(uuid.uuid4()), "1.0 pretended", "PRETENDED-1")
        self.bus = SimulatedBus(platform, shared_group=shared_group)
        self.kernel = SimulatedKernel()
        self.devices = SimulatedVfio(self.bus)
        self.firmware = SimulatedFirmware(self.bus)
        self.hypervisor = SimulatedHypervisor(guest, Hardware(self._opened, self._closed))
        self.registers = SimulatedRegisters(platform, self.bus, self.devices)
        if map_fault in (MapFault.DUPLICATED, MapFault.MISSING):
            first, second = list(gpu_addresses(platform).values())[:2]
            if map_fault is MapFault.DUPLICATED:
                self.registers.tie(second, 1)
            else:
                self.registers.values.pop(first, None)

    def written_map(self) -> str:
        """What a person wrote of the GPU map; empty where nobody did."""
        addresses = dict(gpu_addresses(self._platform))
        if self._map_fault is MapFault.UNCONFIRMED:
            return ""
        if self._map_fault is MapFault.SWAPPED:
            addresses[1], addresses[2] = addresses[2], addresses[1]
        if self._map_fault is MapFault.MISSING:
            del addresses[1]
        return "".join(f"{number}: '{bdf}'\n" for number, bdf in addresses.items())

    def admin_tools(self, bdf: Bdf) -> str:
        """What gpu-admin-tools print of a GPU's module name."""
        numbers = {address: number for number, address in gpu_addresses(self._platform).items()}
        if bdf not in numbers or (self._map_fault is MapFault.MISSING and numbers[bdf] == 1):
            return f"INFO GPU {bdf} pretended BAR0 0x0 does not support module name query\n"
        same = self._map_fault is MapFault.DUPLICATED and numbers[bdf] == 2
        return f"INFO GPU {bdf} pretended BAR0 0x0 module name SXM_{1 if same else numbers[bdf]}\n"

    def _opened(self, domain: Domain) -> None:
        with contextlib.ExitStack() as undo:
            for group in self._groups(domain.hostdevs):
                try:
                    self.devices.hold(group, replace(QEMU, vm_uuid=domain.uuid))
                except OSError as error:
                    raise FmctlError(f"vfio /dev/vfio/{group}: {error.strerror}") from error
                undo.callback(self.devices.let_go, group)
            undo.pop_all()

    def _closed(self, domain: Domain) -> None:
        for group in self._groups(domain.hostdevs):
            self.devices.let_go(group)

    def _groups(self, bdfs: Sequence[Bdf]) -> tuple[int, ...]:
        groups = {f.bdf: f.iommu_group for f in self.bus.functions()}
        return tuple(dict.fromkeys(group for bdf in bdfs if (group := groups.get(bdf)) is not None))
