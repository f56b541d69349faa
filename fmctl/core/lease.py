# SPDX-License-Identifier: Apache-2.0
"""Leases: who holds which partition, since when, on whose request, in what state.

`core.allocate` chooses what a lease holds, `core.book` collects the leases of a host, and `control.leases` makes and
ends them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from fmctl.core.pci import Bdf

MULTI_GPU = 2
"""From so many GPUs on, a lease has NVLinks that others can interrupt."""


class LeaseState(str, Enum):
    """How far a lease is.

    A lease holds its GPUs from PENDING to RELEASING. The commit that makes it ACTIVE is the acknowledgement.
    """

    PENDING = "pending"
    ACTIVATING = "activating"
    ACTIVE = "active"
    RELEASING = "releasing"
    RELEASED = "released"
    FAILED = "failed"

    @property
    def over(self) -> bool:
        """Whether a lease in this state holds nothing and never will again."""
        return self in (LeaseState.RELEASED, LeaseState.FAILED)


class Ending(str, Enum):
    """What a lease that is RELEASING comes to: released, failed after it was accepted, or gone without a trace."""

    RELEASED = "released"
    FAILED = "failed"
    UNDONE = "undone"
    UNDOING = "undoing"
    """The same, once Fabric Manager is asked to deactivate what it holds."""

    @property
    def leaves_nothing(self) -> bool:
        """Whether the lease is gone without a trace."""
        return self in (Ending.UNDONE, Ending.UNDOING)


@dataclass(frozen=True)
class GpuDevice:
    """A leased GPU as a VM manager needs it; all but the physical id is None where it is not known."""

    physical_id: int
    address: Bdf | None = None
    iommu_group: int | None = None
    numa_node: int | None = None

    @property
    def vfio_path(self) -> str:
        """What a VM opens of it; empty where the group is not known."""
        return "" if self.iommu_group is None else f"/dev/vfio/{self.iommu_group}"


@dataclass(frozen=True)
class Lease:
    """One lease, as it was last committed.

    `id` is a UUID. `request_id` is the caller's own name for the request, unique for an owner, and `request` the
    canonical text of what was asked for under it. `partitions` are ids in Fabric Manager's table; `gpus` are the
    physical ids that the tenant's VM gets, and `spare` those that are held beside and given to nobody.

    Times are in seconds since the epoch. `expires` ends a lease under which no VM was ever seen running; `vm_seen`
    tells that one was. `unattended` tells that whoever asked was answered before the lease was active, so that it is
    brought to its end without them.

    `reason` explains FAILED, or what is odd about another state. `ending` tells what RELEASING comes to: not before
    `unsettled_until`, for a call to Fabric Manager that was given up may take effect until then.

    `generation` is the fabric generation in which its partitions were last activated, and `vm_generation` the one in
    which its VM last started, as libvirt's number `vm_instance` tells; 0 before. `vm_rebooted` is when that VM was last
    seen to boot again since, which counts as a start. `vm_gone` is since when that VM, which was seen, runs no more.

    `fm_version` is Fabric Manager's, and `required_guest_driver` the driver that a guest must have. `revision` is the
    store's, of the commit that changed the lease last; it serves as the lease's etag.
    """

    id: str
    owner: str
    request_id: str
    request: str
    state: LeaseState
    partitions: tuple[int, ...]
    gpus: tuple[int, ...]
    spare: tuple[int, ...] = ()
    created: float = 0.0
    ended: float | None = None
    expires: float | None = None
    vm_uuid: str = ""
    vm_seen: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    unattended: bool = False
    reason: str = ""
    ending: Ending = Ending.RELEASED
    unsettled_until: float = 0.0
    generation: int = 0
    vm_generation: int = 0
    vm_instance: int = 0
    vm_rebooted: float | None = None
    vm_gone: float | None = None
    fm_version: str = ""
    required_guest_driver: str = ""
    revision: int = 0

    @property
    def held(self) -> tuple[int, ...]:
        """The physical ids of every GPU that nobody else may have."""
        return (*self.gpus, *self.spare)

    @property
    def etag(self) -> str:
        """What a caller must know to change the lease: it differs after every change."""
        return str(self.revision)

    def interrupted(self, generation: int) -> bool:
        """Whether its VM lost its NVLinks, for good until that VM starts again.

        A guest sets up its part of the fabric as it starts, so a fabric that was started fresh since heals nothing in
        a guest that runs (FM User Guide, "Resiliency").
        """
        multi = len(self.held) >= MULTI_GPU
        return multi and self.state is LeaseState.ACTIVE and 0 < self.vm_generation < generation
