# SPDX-License-Identifier: Apache-2.0
"""The GPUs of this host by their physical ids: what a VM manager needs of them, who has them open, which VM runs.

`core.gpumap` says which is which; `control.leases` and `control.reconciler` ask.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from fmctl.control.discovery import NoBoard
from fmctl.control.vfio import Vfio
from fmctl.core import gpumap
from fmctl.core.errors import BadRequest, FmctlError, HypervisorUnreachable
from fmctl.core.gpumap import GpuMap
from fmctl.core.inventory import Inventory, Role
from fmctl.core.lease import GpuDevice
from fmctl.core.marked import HostGpu
from fmctl.core.pci import Bdf
from fmctl.core.plan import Vm
from fmctl.core.ports import Hypervisor

log = logging.getLogger(__name__)

T = TypeVar("T")

RECENT = 5.0
"""Seconds for which the addresses, groups and NUMA nodes of a board are not looked for again."""
LIBVIRT_TIMEOUT = 5.0
"""Seconds that libvirt has to list its domains."""


class Gpus:
    """The board's GPUs. Where the host has no board nothing is open and no VM has any; it is someone else's then."""

    def __init__(
        self,
        inventory: Callable[[], Inventory],
        gpu_map: Callable[[Inventory], GpuMap | None],
        vfio: Vfio,
        hypervisor: Hypervisor | None,
        *,
        verified: Callable[[Inventory], GpuMap | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`inventory` raises NoBoard; `gpu_map` is None where nobody has said which GPU is which, and may raise.

        `verified` is that map where it counts, and None elsewhere.
        """
        self._clock = clock
        self._recent: tuple[float, Inventory] | None = None
        self._inventory = inventory
        self._map = gpu_map
        self._verified = verified
        self._vfio = vfio
        self._hypervisor = hypervisor

    def addresses(self) -> Mapping[int, Bdf]:
        """Where each GPU is by the verified map; raises MapUnverified, and NoBoard."""
        return self._sure(self._inventory())

    def devices(self, physical_ids: Iterable[int]) -> tuple[GpuDevice, ...]:
        """What a VM manager needs of these GPUs, as far as the verified map tells; never raises."""
        try:
            inventory = self._board()
            addresses = self._sure(inventory)
        except FmctlError:
            return tuple(GpuDevice(physical_id) for physical_id in physical_ids)
        functions = {device.function.bdf: device.function for device in inventory.devices}
        return tuple(
            GpuDevice(physical_id, bdf, found.iommu_group, found.numa_node)
            if (bdf := addresses.get(physical_id)) and (found := functions.get(bdf))
            else GpuDevice(physical_id, bdf)
            for physical_id in physical_ids
        )

    def nodes(self) -> Mapping[int, int]:
        """The NUMA node of each physical id, as far as it is known."""
        try:
            inventory = self._board()
            known = {device.function.bdf: device.function.numa_node for device in inventory.devices}
            addresses = self._addresses(inventory)
        except FmctlError:
            return {}
        return {gpu: node for gpu, bdf in addresses.items() if (node := known.get(bdf)) is not None and node >= 0}

    def physical_ids(self, addresses: Iterable[Bdf]) -> tuple[int, ...]:
        """Which GPUs have these addresses; raises BadRequest, MapUnverified and NoBoard."""
        ids = {bdf: physical_id for physical_id, bdf in self.addresses().items()}
        strange = [str(bdf) for bdf in addresses if bdf not in ids]
        if strange:
            raise BadRequest(
                f"no GPU of the board has the address {', '.join(strange)}",
                why="the GPU map does not name it",
                fix="choose addresses that `fmctl inventory` shows as GPUs",
            )
        return tuple(ids[bdf] for bdf in addresses)

    def seen(self) -> tuple[HostGpu, ...]:
        """Every GPU of the board as it is now, as far as it is known; never raises."""
        try:
            inventory = self._inventory()
            functions = [device.function for device in inventory.devices if device.role is Role.GPU]
            ids = {bdf: physical_id for physical_id, bdf in self._addresses(inventory).items()}
        except FmctlError:
            return ()
        try:
            usages = self._vfio.usages(inventory, [function.bdf for function in functions])
        except FmctlError:
            return tuple(HostGpu(ids.get(f.bdf), f.bdf, f.iommu_group, f.numa_node, f.driver) for f in functions)
        return tuple(
            HostGpu(
                ids.get(usage.function.bdf),
                usage.function.bdf,
                usage.function.iommu_group,
                usage.function.numa_node,
                usage.function.driver,
                usage.held_by if usage.is_held else "",
            )
            for usage in usages
        )

    def open(self) -> Mapping[int, str] | None:
        """Who holds the VFIO group of each GPU that is held, by physical id; None where that cannot be told."""
        return self._look(self._open)

    def held(self) -> frozenset[Bdf] | None:
        """The addresses of the GPUs whose VFIO groups are held; None where that cannot be told."""
        held = self._look(self._holders)
        return None if held is None else frozenset(held)

    def _look(self, look: Callable[[Inventory], Mapping[T, str] | None]) -> Mapping[T, str] | None:
        """What a look at the board tells; nothing where there is none, and None where it fails."""
        try:
            return look(self._inventory())
        except NoBoard:
            return {}
        except FmctlError as error:
            log.warning("who holds the GPUs cannot be told: %s", error)
            return None

    def _holders(self, inventory: Inventory) -> Mapping[Bdf, str]:
        gpus = [device.function.bdf for device in inventory.devices if device.role is Role.GPU]
        return {usage.function.bdf: usage.held_by for usage in self._vfio.usages(inventory, gpus) if usage.is_held}

    def _open(self, inventory: Inventory) -> Mapping[int, str] | None:
        held = self._holders(inventory)
        ids = {bdf: physical_id for physical_id, bdf in self._addresses(inventory).items()}
        if any(bdf not in ids for bdf in held):
            return None
        return {ids[bdf]: holder for bdf, holder in held.items()}

    def vms(self) -> tuple[Vm, ...] | None:
        """The VMs that run, with the GPUs that each was given; None where libvirt does not tell.

        Without libvirt there is none to follow.
        """
        if self._hypervisor is None:
            return ()
        try:
            domains = self._hypervisor.domains(timeout=LIBVIRT_TIMEOUT)
            inventory = self._inventory()
            ids = {bdf: physical_id for physical_id, bdf in self._addresses(inventory).items()}
        except NoBoard:
            ids = {}
        except HypervisorUnreachable:
            return None
        except FmctlError as error:
            log.warning("which VM has which GPU cannot be told: %s", error)
            return None
        return tuple(
            Vm(
                domain.uuid,
                domain.name,
                domain.instance,
                frozenset(ids[bdf] for bdf in domain.hostdevs if bdf in ids),
                domain.owner,
                domain.rebooted,
            )
            for domain in domains
        )

    def _board(self) -> Inventory:
        """The board as it is or was a moment ago, for what neither a driver nor a VM changes; raises NoBoard.

        To find it anew takes a look at every PCI function of the host, which no allocation should wait for.
        """
        if self._recent is None or self._clock() - self._recent[0] >= RECENT:
            self._recent = (self._clock(), self._inventory())
        return self._recent[1]

    def _sure(self, inventory: Inventory) -> Mapping[int, Bdf]:
        gpu_map = self._verified(inventory)
        if gpu_map is None:
            raise gpumap.not_verified()
        return gpu_map.addresses

    def _addresses(self, inventory: Inventory) -> Mapping[int, Bdf]:
        gpu_map = self._map(inventory)
        return gpu_map.addresses if gpu_map else {}
