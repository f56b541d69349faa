# SPDX-License-Identifier: Apache-2.0
"""Partition tables for tests of what is chosen from them, and what can be known of them by trying everything."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from fmctl import platforms
from fmctl.core.partition import Gpu, Partition

Table = tuple[Partition, ...]


def row(row_id: int, *gpu_ids: int) -> Partition:
    return Partition(row_id, tuple(map(Gpu, gpu_ids)))


def table(name: str) -> Table:
    """The table of a board that comes with fmctl."""
    return tuple(row(each.id, *each.gpu_ids) for each in platforms.load(name).partitions)


H100 = table("hgx-h100-8")
A100_16 = table("hgx-a100-16")
OVERLAPPING = (
    row(40, 2, 5, 7),
    row(9, 7, 8, 11),
    row(12, 11, 2),
    row(13, 5, 8),
    row(14, 2, 5),
    row(3, 8),
    row(2, 5),
    row(100, 11),
)
"""Ids and physical ids with gaps, rows in no order, odd sizes, and partitions that lie across each other."""
TWINS = (row(7, 1, 2), row(5, 2, 1), row(6, 3, 4), row(8, 1), row(4, 1), row(1, 3), row(2, 2, 3, 4))
"""Partitions that have the same GPUs."""
FAN = (row(1, 1, 6), row(2, 2, 6), row(3, 3, 6), row(4, 4, 5, 6), row(5, 2, 5), row(6, 3), row(7, 4), row(8, 5))
"""Partitions that share their last GPU."""
SMALL = {
    **{name: table(name) for name in ("hgx-h100-8", "hgx-b200-8", "hgx-a100-8")},
    "overlapping": OVERLAPPING,
    "twins": TWINS,
    "fan": FAN,
    "no single GPU": (row(1, 1, 2, 3, 4, 5, 6), row(2, 1, 2, 3), row(3, 4, 5, 6)),
}
"""Tables of so few GPUs that every set of busy ones can be tried."""


def gpus_of(partitions: Iterable[Partition]) -> list[int]:
    return sorted({gpu.physical_id for partition in partitions for gpu in partition.gpus})


def busy_sets(partitions: Sequence[Partition]) -> Iterator[frozenset[int]]:
    """Every set of the table's GPUs; of 16 GPUs, every 401st."""
    gpus = gpus_of(partitions)
    for bits in range(0, 1 << len(gpus), 401 if len(gpus) > 8 else 1):
        yield frozenset(gpu for place, gpu in enumerate(gpus) if bits >> place & 1)


def free_of(partitions: Iterable[Partition], busy: Iterable[int]) -> list[Partition]:
    return [p for p in partitions if not {gpu.physical_id for gpu in p.gpus} & set(busy)]


def disjoint(partitions: Sequence[Partition]) -> Iterator[Table]:
    """Every choice of partitions of which no two share a GPU, the empty one too."""
    if not partitions:
        yield ()
        return
    first, rest = partitions[0], partitions[1:]
    yield from disjoint(rest)
    for others in disjoint(free_of(rest, {gpu.physical_id for gpu in first.gpus})):
        yield (first, *others)
