# SPDX-License-Identifier: Apache-2.0
"""The leases by which a layout's partitions are kept active, for tenants to take over.

Pure, beside `core.plan`, which brings such a lease to ACTIVE and to its end as any other; this decides that there is
one. They are made and ended only while nobody holds the GPUs, and where the host takes new work.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace

from fmctl.core import layouts
from fmctl.core.book import Book, Kind, MarkKind, of_lease
from fmctl.core.layout import OWNER, Applied
from fmctl.core.lease import Lease, LeaseState
from fmctl.core.partition import Partition
from fmctl.core.plan import ACTOR, Observed, Plan, Step, Write, unowned

_UNFINISHED = (LeaseState.PENDING, LeaseState.ACTIVATING)


def takeable(book: Book) -> dict[int, Lease]:
    """The layout's leases that a tenant's may take the place of, by partition: those under which no VM runs."""
    found = layouts.applied(book)
    return {
        partition: lease
        for lease in _own(book)
        for partition in lease.partitions
        if found is not None and partition in found.partitions
        if lease.state is not LeaseState.RELEASING and not (lease.vm_seen and lease.vm_gone is None)
    }


def is_settled(book: Book) -> bool:
    """Whether no lease of the layout's is on its way."""
    return all(lease.state is LeaseState.ACTIVE for lease in _own(book))


def plan(book: Book, seen: Observed, *, new_id: Callable[[], str], refused: str = "") -> Plan:
    """What to do next about the layout; `refused` tells why the host takes no new work, where it takes none."""
    found = layouts.applied(book)
    each = (*_ends(book, seen, found, refused), *_begins(book, seen, found, new_id, refused))
    drift = layouts.drift(book, seen.listed) if seen.listed is not None else ()
    return Plan(
        tuple(step for step in each if not isinstance(step, str)), (*drift, *(x for x in each if isinstance(x, str)))
    )


def _own(book: Book) -> tuple[Lease, ...]:
    return tuple(lease for lease in book.leases.values() if lease.owner == OWNER)


def _ends(book: Book, seen: Observed, found: Applied | None, refused: str) -> Iterator[Step | str]:
    for lease in _own(book):
        why = _needless(book, lease, found)
        if lease.state in _UNFINISHED and not why and refused:
            why = f"this host takes no new work: {refused}"
        if not why or lease.state is LeaseState.RELEASING:
            continue
        if lease.state is LeaseState.PENDING:
            over = replace(lease, state=LeaseState.RELEASED, ended=seen.now, reason=why)
            yield Write((of_lease(over, "released", actor=ACTOR, detail=why),))
        elif lease.state is LeaseState.ACTIVATING or (seen.open is not None and seen.open.isdisjoint(lease.held)):
            ends = replace(lease, state=LeaseState.RELEASING, reason=why)
            yield Write((of_lease(ends, "releasing", actor=ACTOR, detail=why),))
        else:
            who = "a VM holds its GPUs" if seen.open else "who holds its GPUs is not known"
            yield f"lease {lease.id} of the layout is kept, though {why}: {who}"


def _needless(book: Book, lease: Lease, found: Applied | None) -> str:
    """Why that lease is to end; empty where it is not."""
    if found is None:
        return "there is no layout any more"
    if not found.kept_active:
        return "the layout is not kept active any more"
    if not set(lease.partitions) <= set(found.partitions):
        return f"it is not in the layout {found.layout}"
    return _set_aside(book, lease.partitions, lease.held)


def _begins(
    book: Book, seen: Observed, found: Applied | None, new_id: Callable[[], str], refused: str
) -> Iterator[Step | str]:
    if found is None or not found.kept_active or seen.listed is None or found.problem(seen.listed):
        return
    for partition in map(seen.listed.get, found.partitions):
        if not set(book.held).isdisjoint(partition.gpu_ids):
            continue
        if why := refused or _in_the_way(book, seen, partition):
            yield f"partition {partition.id} of the layout {found.layout} is not activated: {why}"
        else:
            yield _begin(partition, new_id(), seen.now)


def _in_the_way(book: Book, seen: Observed, partition: Partition) -> str:
    """Why nobody's partition is not activated for the layout; empty where nothing is in the way."""
    if why := _set_aside(book, (partition.id,), partition.gpu_ids):
        return why
    if seen.open is None:
        return "who holds its GPUs is not known"
    if not seen.open.isdisjoint(partition.gpu_ids):
        return "somebody holds its GPUs"
    if seen.now < seen.unsettled.get(partition.id, 0.0):
        return "a call to Fabric Manager that was given up may take effect yet"
    strays = [str(p.id) for p in unowned(book, seen.listed) if p.overlaps(partition)] if seen.listed else []
    return f"partition {','.join(strays)} is active, and no lease holds it" if strays else ""


def _set_aside(book: Book, partitions: tuple[int, ...], gpus: tuple[int, ...]) -> str:
    """Why these are handed out to nobody; empty where they are."""
    for partition, mark in book.marked(Kind.PARTITION, MarkKind.CORDONED).items():
        if int(partition) in partitions:
            return f"partition {partition} is cordoned ({mark.reason})"
    for kind in (MarkKind.QUARANTINED, MarkKind.CLEANING):
        for gpu, mark in book.marked(Kind.GPU, kind).items():
            if int(gpu) in gpus:
                return f"GPU {gpu} is {kind.value} ({mark.reason})"
    return ""


def _begin(partition: Partition, lease_id: str, now: float) -> Write:
    lease = Lease(
        id=lease_id,
        owner=OWNER,
        request_id=lease_id,
        request=json.dumps({"partition_id": partition.id}),
        state=LeaseState.PENDING,
        partitions=(partition.id,),
        gpus=tuple(sorted(partition.gpu_ids)),
        created=now,
        unattended=True,
    )
    return Write((of_lease(lease, "pending", actor=ACTOR, detail="the layout keeps it active"),))
