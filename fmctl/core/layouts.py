# SPDX-License-Identifier: Apache-2.0
"""What a layout does to a table: which partitions it takes, what is offered of the rest, and what is not so yet.

Pure. The layout in force stands as a mark in the book.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from fmctl.core import owner as owners
from fmctl.core import packing, refusal
from fmctl.core.availability import Availability
from fmctl.core.book import Book, Kind, MarkKind
from fmctl.core.errors import NoSuchPartition
from fmctl.core.layout import OWNER, Applied, Layout
from fmctl.core.lease import Lease
from fmctl.core.partition import Partition, PartitionList


def applied(book: Book) -> Applied | None:
    """The layout of this host; None where all of the table is used."""
    mark = book.marks.get((Kind.HOST, "", MarkKind.LAYOUT))
    return None if mark is None else Applied.parse(mark.reason)


def place(layout: Layout, free: Availability, preferred: Iterable[Partition] = ()) -> tuple[Partition, ...]:
    """Partitions for a layout, by id: of the preferred ones as many as go together, and else such as are free.

    Where too few are free, others serve, which become so. Raises NoSuchPartition where the table has none that do.
    """
    table = Availability(free.partitions)
    pinned: list[Partition] = []
    wanted = list(layout.sizes)
    if packing.can_allocate(table, wanted) is None:
        raise _impossible(layout, table)
    for partition in preferred:
        size = len(partition.gpus)
        if size not in wanted or any(partition.overlaps(other) for other in pinned):
            continue
        rest = list(wanted)
        rest.remove(size)
        if packing.can_allocate(table.taking(*pinned, partition), rest) is not None:
            pinned.append(partition)
            wanted = rest
    found = packing.can_allocate(free.taking(*pinned), wanted) or packing.can_allocate(table.taking(*pinned), wanted)
    return tuple(sorted((*pinned, *(found or ())), key=lambda partition: partition.id))


def of_tenants(book: Book) -> Iterator[Lease]:
    """The leases that are not fmctl's own, oldest first."""
    leases = sorted(book.leases.values(), key=lambda lease: (lease.created, lease.id))
    return (lease for lease in leases if not owners.is_system(lease.owner))


def differences(target: Applied | None, book: Book, listed: PartitionList) -> tuple[str, ...]:
    """In what a host is not as that layout has it, in words; nothing where it is."""
    kept = target.partitions if target and target.kept_active else ()
    return (
        *_outside(target, book, listed),
        *(
            f"partition {p} is to be active, and is not"
            for p in kept
            if (partition := listed.find(p)) is not None and not partition.active and not _leased(book, partition)
        ),
        *(
            f"partition {p} is kept active, and is not to be"
            for lease in book.leases.values()
            if lease.owner == OWNER
            for p in lease.partitions
            if p not in kept
        ),
    )


def _outside(target: Applied | None, book: Book, listed: PartitionList) -> Iterator[str]:
    """What does not go with the layout until somebody else changes it."""
    if target is None:
        return
    if problem := target.problem(listed):
        yield problem
    for lease in of_tenants(book):
        if others := [p for p in lease.partitions if p not in target.partitions]:
            ids = ",".join(map(str, others))
            yield f"lease {lease.id} of {lease.owner} holds partition {ids}, which is not in the layout {target.layout}"
    held = {p for lease in book.leases.values() for p in lease.partitions}
    for partition in listed.partitions:
        if partition.active and partition.id not in held and partition.id not in target.partitions:
            yield f"partition {partition.id} is active for nobody known, and not in the layout {target.layout}"


def drift(book: Book, listed: PartitionList) -> tuple[str, ...]:
    """What of the layout's differences nothing is done about."""
    return tuple(_outside(applied(book), book, listed))


def _leased(book: Book, partition: Partition) -> bool:
    return any(not set(lease.held).isdisjoint(partition.gpu_ids) for lease in of_tenants(book))


def restricted(free: Availability, book: Book) -> Availability:
    """The same, of which only the layout's partitions are offered."""
    found = applied(book)
    if found is None:
        return free
    outside = frozenset(partition.id for partition in free.partitions if partition.id not in found.partitions)
    return replace(free, layout=str(found.layout), outside=outside)


def _impossible(layout: Layout, table: Availability) -> NoSuchPartition:
    most = packing.capacity(table).partitions
    return NoSuchPartition(
        f"this board cannot be laid out as {layout}",
        why="; ".join(_reasons(layout.sizes, most, len(table.gpus))) or "no such partitions go together",
        fix=f"choose from {', '.join(f'{n}x{size}' for size, n in most.items() if n)}, or a list of these sizes"
        if most
        else "wait until Fabric Manager reports its partitions",
    )


def _reasons(sizes: Sequence[int], most: Mapping[int, int], gpus: int) -> Iterator[str]:
    if sum(sizes) > gpus:
        yield f"it has {sum(sizes)} GPUs, and the board {gpus}"
    for size, count in sorted(Counter(sizes).items()):
        if size not in most:
            yield f"the board has no partition of {refusal.gpus(size)}"
        elif most[size] < count:
            yield f"of its partitions of {refusal.gpus(size)}, {most[size]} go together and {count} are wanted"
