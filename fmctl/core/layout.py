# SPDX-License-Identifier: Apache-2.0
"""Layouts: which partitions of Fabric Manager's table a host uses, so that its board keeps one shape.

Pure. A layout names sizes, as `4x2` does four partitions of two GPUs; applied it names partitions, and stands as a mark
in the book. `core.availability` offers no others, and `core.standing` keeps them active where that is asked.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from fmctl.core import owner as owners
from fmctl.core import packing, refusal
from fmctl.core.availability import Availability
from fmctl.core.book import Book, Kind, MarkKind
from fmctl.core.errors import NoSuchPartition
from fmctl.core.lease import Lease
from fmctl.core.partition import MAX_GPUS, Partition, PartitionList

OWNER = owners.RESERVED + "layout"
"""Who holds what is kept active for nobody yet."""
NONE = "none"
"""The word for no layout."""
_PART = re.compile("(?:([1-9][0-9]?)x)?([1-9][0-9]?)")
_APPLIED = re.compile("([0-9x+]+) on ([0-9,]+)(, kept active)?")


@dataclass(frozen=True)
class Layout:
    """The sizes of a layout's partitions in GPUs, largest first."""

    sizes: tuple[int, ...]

    @classmethod
    def parse(cls, value: object) -> Layout:
        """Read `4x2`, `4+2+1+1` or both in one, as in `1x4+2x2`; raises ValueError."""
        parts = [_PART.fullmatch(part) for part in str(value).split("+")]
        if isinstance(value, bool) or not all(parts):
            raise ValueError(f"a layout such as 4x2 or 4+2+1+1 is wanted, not {value!r}")
        sizes = [int(part[2]) for part in parts if part for _ in range(int(part[1] or 1))]
        if sum(sizes) > MAX_GPUS:
            raise ValueError(f"{value} is a layout of {sum(sizes)} GPUs, and no board has more than {MAX_GPUS}")
        return cls(tuple(sorted(sizes, reverse=True)))

    def __str__(self) -> str:
        if len(set(self.sizes)) == 1:
            return f"{len(self.sizes)}x{self.sizes[0]}"
        return "+".join(map(str, self.sizes))


@dataclass(frozen=True)
class Applied:
    """A layout with its partitions, by id, ascending; `kept_active` tells that they are active for nobody, too."""

    layout: Layout
    partitions: tuple[int, ...]
    kept_active: bool = False

    @classmethod
    def parse(cls, text: str) -> Applied:
        """The way back from `str`; raises ValueError."""
        found = _APPLIED.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} is no layout with its partitions")
        return cls(Layout.parse(found[1]), tuple(map(int, found[2].split(","))), bool(found[3]))

    def __str__(self) -> str:
        ids = ",".join(map(str, self.partitions))
        return f"{self.layout} on {ids}{', kept active' * self.kept_active}"

    def problem(self, listed: PartitionList) -> str:
        """Why the table does not give these partitions; empty where it does."""
        found = [p for p in self.partitions if listed.find(p) is not None]
        sizes = sorted((len(listed.get(p).gpus) for p in found), reverse=True)
        if tuple(sizes) == self.layout.sizes:
            return ""
        return f"the partition table has no partitions {','.join(map(str, self.partitions))} of these sizes any more"


@dataclass(frozen=True)
class LayoutRow:
    """A partition of a layout, and who holds it; empty where nobody does."""

    partition_id: int
    gpus: tuple[int, ...]
    active: bool
    owner: str = ""


@dataclass(frozen=True)
class LayoutState:
    """A layout and how a host differs from it, in words.

    `settings` is what the settings want, `applied` what is in force, and `shown` what `rows` and `differences` are of;
    each is empty for none.
    """

    settings: str = ""
    applied: str = ""
    shown: str = ""
    rows: tuple[LayoutRow, ...] = ()
    differences: tuple[str, ...] = ()
    simulated: bool = False


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
