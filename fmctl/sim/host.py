# SPDX-License-Identifier: Apache-2.0
"""A pretended HGX host: its PCI functions, their drivers, its kernel and its libvirt, which know of each other.

`sim.tree` can be the guest in its Service VM.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

from fmctl.core.domain import Domain
from fmctl.core.errors import FmctlError
from fmctl.core.pci import Bdf
from fmctl.core.platform import Platform
from fmctl.core.vfio import Holder
from fmctl.sim.hypervisor import SimulatedHypervisor
from fmctl.sim.kernel import SimulatedKernel
from fmctl.sim.qemu import Guest, Hardware
from fmctl.sim.sysfs import SimulatedBus
from fmctl.sim.vfiodev import SimulatedVfio

QEMU = Holder(4242, "qemu-system-x86")
"""Who holds the groups of a running domain's hostdevs."""


class SimulatedHost:
    """A host with this board, on which domains hold the IOMMU groups of their hostdevs."""

    def __init__(self, platform: Platform, guest: Guest = nullcontext, *, shared_group: bool = False) -> None:
        self.bus = SimulatedBus(platform, shared_group=shared_group)
        self.kernel = SimulatedKernel()
        self.devices = SimulatedVfio(self.bus)
        self.hypervisor = SimulatedHypervisor(guest, Hardware(self._opened, self._closed))

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
