# SPDX-License-Identifier: Apache-2.0
"""What can be asked of this host without changing it: leases, capacity, why a partition wins, and the host itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from fmctl import __version__
from fmctl.control.chooser import Chooser
from fmctl.control.fabric import Fabric
from fmctl.control.gpus import Gpus
from fmctl.core import allocate, explain, layouts, packing
from fmctl.core.answers import AgentStatus, HostInfo, NewWork, ServiceVmStatus
from fmctl.core.availability import Availability
from fmctl.core.explain import Verdict
from fmctl.core.lease import GpuDevice, Lease
from fmctl.core.packing import Headroom
from fmctl.core.partition import Partition
from fmctl.core.platform import Platform
from fmctl.core.policy import Policy
from fmctl.core.ports import Store
from fmctl.core.versions import required_guest_driver


@dataclass(frozen=True)
class Page:
    """Leases of a list, and from where a watch misses nothing; `more` tells that there are others after the last."""

    leases: tuple[Lease, ...]
    revision: int
    store_id: str
    more: bool = False


class Queries:
    """Answers from the book and from the last list; only a list that never was is asked for."""

    def __init__(
        self,
        store: Store,
        fabric: Fabric,
        chooser: Chooser,
        gpus: Gpus,
        *,
        host_id: str = "",
        versions: Callable[[], AgentStatus | None] = lambda: None,
        service_vm: Callable[[], ServiceVmStatus] = ServiceVmStatus,
        platform: Callable[[], Platform | None] = lambda: None,
        new_work: Callable[[], NewWork] = NewWork,
        policy: Policy | None = None,
    ) -> None:
        """`new_work` tells why the host takes none, where it takes none."""
        self._store = store
        self._fabric = fabric
        self._chooser = chooser
        self._gpus = gpus
        self._host_id = host_id
        self._versions = versions
        self._service_vm = service_vm
        self._platform = platform
        self._new_work = new_work
        self._policy = policy or Policy()

    def lease(self, lease_id: str) -> Lease:
        """A lease, also one that is over; raises NoSuchLease."""
        return self._store.book.leases.get(lease_id) or self._store.lease(lease_id)

    def leases(self, *, owner: str = "", over: bool = False, after: str = "", limit: int = 0) -> Page:
        """Leases, oldest first: those of one owner if it is named, and with `over` also those that are over."""
        book = self._store.book
        found = self._store.leases(owner=owner, over=over, after=after, limit=limit + 1 if limit else 0)
        kept = found[:limit] if limit else found
        return Page(kept, book.revision, book.store_id, more=len(found) > len(kept))

    def devices(self, leases: Iterable[Lease]) -> dict[int, GpuDevice]:
        """What a VM manager needs of the GPUs that these leases hold for their VMs, by physical id."""
        held = [gpu for lease in leases if not lease.state.over for gpu in lease.gpus]
        return {device.physical_id: device for device in self._gpus.devices(held)} if held else {}

    def is_interrupted(self, lease: Lease) -> bool:
        """Whether its VM must start again to have NVLink."""
        return lease.interrupted(self._service_vm().fabric_generation)

    def capacity(self, *, owner: str = "", timeout: float) -> Headroom:
        """How many of each size could be granted now, as alternatives; nothing on a host that takes no new work.

        To that owner, or without one to several who hold nothing.
        """
        found = packing.capacity(self._available(timeout))
        if self.closed:
            return Headroom(dict.fromkeys(found.partitions, 0), found.gpus)
        return self._policy.limited(found, self._store.book, owner)

    @property
    def rules(self) -> tuple[str, ...]:
        """What the operator lets tenants have, in words; nothing where no rule is set."""
        book = self._store.book
        found = layouts.applied(book)
        return (*self._policy.told(book), *((f"the layout is {found}",) if found else ()))

    @property
    def closed(self) -> str:
        """Why the host takes no new work; empty where it takes some."""
        return self._new_work().refused

    def can_allocate(self, sizes: Sequence[int], *, owner: str = "", timeout: float) -> tuple[Partition, ...] | None:
        """Partitions that serve requests of these sizes together; None where there are none. Raises BadRequest.

        Of that owner, or without one of several who hold nothing.
        """
        found = packing.can_allocate(self._available(timeout), sizes)
        return None if self.closed or self.ruled_out(sizes, owner=owner) else found

    def ruled_out(self, sizes: Sequence[int], *, owner: str = "") -> str:
        """The rule by which requests of these sizes are refused together; empty where none is."""
        refusal = self._policy.refusal(self._store.book, sizes, owner)
        return refusal.why if refusal else ""

    def explain(
        self, count: int, shape: allocate.Shape, *, numa_node: int | None = None, owner: str = "", timeout: float
    ) -> tuple[Verdict, ...]:
        """Why each candidate would win or lose now, for that owner or one who holds nothing.

        Raises what `allocate.need` does, and PolicyDenied or LimitReached where a rule refuses them all.
        """
        free = self._available(timeout)
        need = allocate.need(free, count, shape)
        refusal = self._policy.refusal(self._store.book, [need.size * need.pieces], owner)
        if refusal is not None:
            raise refusal
        return explain.explain(free, count, shape, node=numa_node)

    def host_info(self) -> HostInfo:
        """Which host this is, and the versions on it."""
        seen, service_vm, platform = self._versions(), self._service_vm(), self._platform()
        fm_version = seen.fm_version if seen else ""
        return HostInfo(
            host_id=self._host_id,
            board=self._board(),
            platform=platform.name if platform else "",
            fm_version=fm_version,
            driver_version=seen.driver_version if seen else "",
            image=service_vm.image,
            required_guest_driver=required_guest_driver(fm_version) if fm_version else "",
            version=__version__,
            store_id=self._store.book.store_id,
            fabric_generation=service_vm.fabric_generation,
        )

    def _board(self) -> str:
        """A fingerprint of the partition table, by which a scheduler sees that a board was changed."""
        if self._fabric.seen is None:
            return ""
        table = [[p.id, list(p.gpu_ids)] for p in self._fabric.seen.partitions]
        return hashlib.sha256(json.dumps(table).encode()).hexdigest()[:16]

    def _available(self, timeout: float) -> Availability:
        return self._chooser.available(self._fabric.seen or self._fabric.peek(timeout))
