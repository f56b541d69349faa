# SPDX-License-Identifier: Apache-2.0
"""How many partitions fit together now: the capacity of a board, and whether a list of sizes can all be granted."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fmctl.core.availability import Availability, Cause
from fmctl.core.partition import MAX_GPUS, Partition
from fmctl.core.refusal import out_of_range


@dataclass(frozen=True)
class GpuCounts:
    """GPUs of the table. Each counts once: `total` is the sum of the others. Those `outside` no layout offers."""

    total: int
    free: int
    busy: int
    cleaning: int
    quarantined: int
    cordoned: int
    outside: int = 0


@dataclass(frozen=True)
class Headroom:
    """What could be granted now. `partitions` says of each size how many could be, if nothing else was."""

    partitions: Mapping[int, int]
    gpus: GpuCounts


def capacity(available: Availability) -> Headroom:
    """How many partitions of each size could be granted now, and how many GPUs are free."""
    causes = Counter(available.causes().values())
    packer = _Packer(available)
    return Headroom(
        {size: packer.most(size) for size in available.sizes},
        GpuCounts(
            total=len(available.gpus),
            free=causes[None],
            busy=causes[Cause.BUSY],
            cleaning=causes[Cause.CLEANING],
            quarantined=causes[Cause.QUARANTINED],
            cordoned=causes[Cause.CORDONED],
            outside=causes[Cause.OUTSIDE],
        ),
    )


def can_allocate(available: Availability, sizes: Sequence[int]) -> tuple[Partition, ...] | None:
    """Partitions of these sizes that can be granted together, in the order of `sizes`; None where there are none.

    Raises BadRequest for a size that no board can serve.
    """
    for size in sizes:
        if not 1 <= size <= MAX_GPUS:
            raise out_of_range(size)
    found = _Packer(available).pack(sizes)
    if found is None:
        return None
    by_size = {size: iter([p for p in found if len(p.gpus) == size]) for size in sizes}
    return tuple(next(by_size[size]) for size in sizes)


class _Packer:
    """Exact search for disjoint free partitions; sets of GPUs are the bits of a number.

    It decides on one GPU after the other, from the lowest: to cover it by a partition, or to leave it while there are
    GPUs to spare. Whether the rest can succeed depends on the undecided GPUs and the sizes still wanted alone, so no
    such pair is tried twice.
    """

    def __init__(self, available: Availability) -> None:
        bits = {gpu: 1 << place for place, gpu in enumerate(available.gpus)}
        self._partitions: dict[int, Partition] = {}
        self._starting: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for partition in available.free:
            mask = sum(bits[gpu] for gpu in partition.gpu_ids)
            self._partitions[mask] = partition
            self._starting[mask & -mask].append((mask.bit_count(), mask))

    def most(self, size: int) -> int:
        """The largest number of disjoint partitions of that size."""
        found = 0
        while self.pack([size] * (found + 1)) is not None:
            found += 1
        return found

    def pack(self, sizes: Iterable[int]) -> list[Partition] | None:
        """Disjoint partitions of these sizes, in any order; None where there are none."""
        useful = 0
        for mask in self._partitions:
            useful |= mask
        masks = self._search(useful, tuple(sorted(sizes)), set())
        return None if masks is None else [self._partitions[mask] for mask in masks]

    def _search(
        self, undecided: int, wanted: tuple[int, ...], failed: set[tuple[int, tuple[int, ...]]]
    ) -> list[int] | None:
        if not wanted:
            return []
        if sum(wanted) > undecided.bit_count() or (undecided, wanted) in failed:
            return None
        lowest = undecided & -undecided
        for size, mask in self._starting.get(lowest, ()):
            if size in wanted and mask & undecided == mask:
                place = wanted.index(size)
                rest = self._search(undecided ^ mask, wanted[:place] + wanted[place + 1 :], failed)
                if rest is not None:
                    return [mask, *rest]
        rest = self._search(undecided ^ lowest, wanted, failed)
        if rest is None:
            failed.add((undecided, wanted))
        return rest
