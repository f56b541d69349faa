# SPDX-License-Identifier: Apache-2.0
"""What serves a request now: `core.allocate` over what this host has, holds and has set aside."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from fmctl.control.fabric import Budget, Fabric
from fmctl.control.gpus import Gpus
from fmctl.core import allocate, layouts, outcome, plan, standing
from fmctl.core.allocate import Grant, Shape
from fmctl.core.availability import Availability
from fmctl.core.book import Book, Kind, MarkKind
from fmctl.core.errors import NoSuchPartition
from fmctl.core.lease import Lease
from fmctl.core.partition import Partition, PartitionList
from fmctl.core.policy import Policy
from fmctl.core.ports import Store
from fmctl.core.request import Request


class Chooser:
    """Decides over the store's book and Fabric Manager's table, as last seen."""

    def __init__(self, store: Store, fabric: Fabric, gpus: Gpus, policy: Policy | None = None) -> None:
        """`policy` is for what `grant` serves: new leases."""
        self._policy = policy or Policy()
        self._store = store
        self._fabric = fabric
        self._gpus = gpus

    def grant(self, request: Request, budget: Budget) -> Grant:
        """What the request would get now.

        Raises PolicyDenied or LimitReached where a rule refuses it, what `core.allocate` does, and what a list does.
        """
        try:
            return self._granted(request, self._fabric.known(budget.look()))
        except NoSuchPartition:
            return self._granted(request, self._fabric.look(budget.look()))

    def named(self, partition_id: int | None, gpu_ids: Sequence[int], budget: Budget) -> Partition:
        """The partition of that id, or else of exactly these GPUs; raises NoSuchPartition, after another look."""

        def find(listed: PartitionList) -> Partition:
            return listed.with_gpus(gpu_ids) if partition_id is None else listed.get(partition_id)

        try:
            return find(self._fabric.known(budget.look()))
        except NoSuchPartition:
            return find(self._fabric.look(budget.look()))

    def instead(self, lease: Lease, refused: int, budget: Budget) -> Lease:
        """The lease with other GPUs in the place of a partition that Fabric Manager refused and that is cordoned now.

        Raises NoCapacity where there are none, and NoSuchPartition or PartitionHeld where it must be that partition.
        """
        request = Request.from_canonical(lease.owner, lease.request_id, lease.request)
        listed = self._fabric.known(budget.look())
        lost = set(listed.get(refused).gpu_ids)
        kept = tuple(partition for partition in lease.partitions if partition != refused)
        if kept:
            rest = available(self._store.book, listed, dict(self._gpus.nodes()), self._fabric.unsettled)
            grant = allocate.grant(rest, 1, Shape.UNLINKED)
            gpus = (*(gpu for gpu in lease.gpus if gpu not in lost), *grant.gpus)
            return replace(lease, partitions=(*kept, *(p.id for p in grant.partitions)), gpus=gpus)
        book = self._store.book
        others = {lease_id: other for lease_id, other in book.leases.items() if lease_id != lease.id}
        free = available(replace(book, leases=others), listed, dict(self._gpus.nodes()), self._fabric.unsettled)
        grant = self._chosen(request, free)
        return replace(lease, partitions=tuple(p.id for p in grant.partitions), gpus=grant.gpus, spare=grant.spare)

    def available(self, listed: PartitionList) -> Availability:
        """What of that table a new lease could have now, also in the place of a lease of the layout's."""
        book = self._store.book
        taken_over = standing.takeable(book)
        return available(book, listed, dict(self._gpus.nodes()), self._fabric.unsettled, taken_over.values())

    def _granted(self, request: Request, listed: PartitionList) -> Grant:
        free = self.available(listed)
        refusal = self._policy.refusal(self._store.book, [self._size(request, free)], request.owner)
        if refusal is not None:
            raise refusal
        return self._chosen(request, free)

    def _size(self, request: Request, free: Availability) -> int:
        """How many GPUs the request would hold; raises what `core.allocate.need` does, and NoSuchPartition."""
        if request.count is not None:
            need = allocate.need(free, request.count, request.shape)
            return need.size * need.pieces
        return len(self._named(request, free).gpus)

    def _named(self, request: Request, free: Availability) -> Partition:
        """The partition that a request names; of several with the same GPUs one of the layout."""
        listed = PartitionList(tuple(free.partitions))
        if request.partition_id is not None:
            return listed.get(request.partition_id)
        wanted = set(request.gpu_ids or self._gpus.physical_ids(request.addresses))
        laid_out = [partition for partition in free.offered if set(partition.gpu_ids) == wanted]
        return laid_out[0] if laid_out else listed.with_gpus(wanted)

    def _chosen(self, request: Request, free: Availability) -> Grant:
        if request.count is not None:
            return allocate.grant(free, request.count, request.shape, node=request.numa_node)
        partition = self._named(request, free)
        if partition.id not in free.outside:
            self._refuse_taken(partition, free.partitions)
        if request.partition_id is not None:
            return allocate.by_partition(free, partition.id)
        return allocate.by_gpus(free, partition.gpu_ids)

    def _refuse_taken(self, partition: Partition, table: Sequence[Partition]) -> None:
        """Raise PartitionHeld, which names the owners, where a lease or an active partition has one of its GPUs.

        What a lease of the layout's has, a new lease may take over.
        """
        free = standing.takeable(self._store.book)
        owners = {held: owner for held, owner in self.owners().items() if held not in free}
        if partition.id in owners or (partition.active and partition.id not in free):
            raise outcome.held(partition, owners.get(partition.id))
        taken = ({other.id for other in table if other.active} | set(owners)) - set(free)
        blockers = tuple(other for other in table if other.id in taken and other.overlaps(partition))
        if blockers:
            raise outcome.blocked(partition, blockers, owners)

    def owners(self) -> dict[int, str]:
        """The owner of each partition that a lease holds."""
        return {partition: lease.owner for lease in self._store.book.leases.values() for partition in lease.partitions}


def available(
    book: Book,
    listed: PartitionList,
    nodes: dict[int, int],
    unsettled: Collection[int] = (),
    taken_over: Collection[Lease] = (),
) -> Availability:
    """What of the table is free: what no lease holds, that is not active for nobody known, and is not set aside.

    Partitions that are `unsettled` may become active, or inactive, by themselves; `taken_over` are leases whose GPUs
    count as free. Of a layout only its partitions are offered.
    """
    changing = tuple(partition for partition in listed.partitions if partition.id in unsettled)
    stray = {gpu for partition in (*plan.unowned(book, listed), *changing) for gpu in partition.gpu_ids}

    def reasons(kind: Kind, mark: MarkKind) -> dict[int, str]:
        return {int(subject): found.reason for subject, found in book.marked(kind, mark).items()}

    of_gpus = reasons(Kind.GPU, MarkKind.CORDONED)
    beside = {
        partition.id: f"GPU {gpu}: {of_gpus[gpu]}"
        for partition in listed.partitions
        for gpu in partition.gpu_ids
        if gpu in of_gpus
    }
    free = {gpu for lease in taken_over for gpu in lease.held}
    found = Availability(
        listed.partitions,
        busy=stray | (set(book.held) - free),
        cordoned=beside | reasons(Kind.PARTITION, MarkKind.CORDONED),
        quarantined=reasons(Kind.GPU, MarkKind.QUARANTINED),
        cleaning=reasons(Kind.GPU, MarkKind.CLEANING),
        nodes=nodes,
    )
    return layouts.restricted(found, book)
