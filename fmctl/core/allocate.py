# SPDX-License-Identifier: Apache-2.0
"""Which partitions serve a request: the choice that leaves most of the larger ones free.

Of the free partitions of the wanted size the one is taken after which most partitions of the largest size stay free;
then most of the next size, and so on; then the nearest to the preferred NUMA node; then the lowest id.
`core.explain` tells why that one, and `core.refusal` why none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from fmctl.core import refusal
from fmctl.core.availability import Availability, Distance
from fmctl.core.errors import BadRequest
from fmctl.core.partition import MAX_GPUS, Partition, PartitionList


class Shape(str, Enum):
    """What serves a number of GPUs that no partition has."""

    EXACT = "exact"
    """Nothing: the request is refused."""
    ROUND_UP = "round-up"
    """A partition of the next size, of which the rest is held and never given."""
    UNLINKED = "unlinked"
    """That many partitions of a single GPU, also where a partition of that size exists."""


@dataclass(frozen=True)
class Grant:
    """The partitions that serve a request. `gpus` are for the VM, `spare` are held and never given; both ascending."""

    partitions: tuple[Partition, ...]
    gpus: tuple[int, ...]
    spare: tuple[int, ...] = ()


@dataclass(frozen=True, order=True)
class Merit:
    """How good it is to take a partition; the least is the best.

    `lost` is how many free partitions that takes away, itself included, of each size of the table, largest first.
    """

    lost: tuple[int, ...]
    distance: Distance
    id: int


@dataclass(frozen=True)
class Need:
    """What serves a request: `pieces` partitions of `size` GPUs, each of which gives `given` of its GPUs."""

    size: int
    pieces: int
    given: int


@dataclass(frozen=True)
class Choice:
    """A partition that was chosen, from what was available, with the NUMA node that was preferred then."""

    available: Availability
    partition: Partition
    node: int | None


def need(available: Availability, count: int, shape: Shape = Shape.EXACT) -> Need:
    """What serves `count` GPUs in that shape, whether or not it is free.

    Raises BadRequest for a count that no board can serve, NoCapacity for more GPUs than this board has, and
    NoSuchPartition where no partition has a size that would do.
    """
    if not 1 <= count <= MAX_GPUS:
        raise refusal.out_of_range(count)
    if count > len(available.gpus):
        raise refusal.more_than_the_board(available, count)
    single_gpus = len({partition.gpu_ids for partition in available.offered if len(partition.gpus) == 1})
    if shape is Shape.UNLINKED:
        if single_gpus < count:
            raise refusal.too_few_singles(available, count, single_gpus)
        return Need(size=1, pieces=count, given=1)
    if count in available.sizes:
        return Need(size=count, pieces=1, given=count)
    larger = min((size for size in available.sizes if size > count), default=None)
    if shape is Shape.ROUND_UP and larger is not None:
        return Need(size=larger, pieces=1, given=count)
    raise refusal.no_such_size(available, count, larger=larger, single_gpus=single_gpus)


def merit(available: Availability, partition: Partition, given: int, *, node: int | None = None) -> Merit:
    """How good it is to take that free partition to give so many of its GPUs, near that NUMA node."""
    taken = set(partition.gpu_ids)
    lost = Counter(len(other.gpus) for other in available.free if not taken.isdisjoint(other.gpu_ids))
    return Merit(
        tuple(lost[size] for size in reversed(available.sizes)),
        available.distance(available.nearest(partition.gpu_ids, given, node), node),
        partition.id,
    )


def choose(
    partitions: Sequence[Partition],
    busy: Collection[int],
    count: int,
    *,
    nodes: Mapping[int, int] | None = None,
    node: int | None = None,
) -> Partition | None:
    """The partition of exactly `count` GPUs to take while the physical ids in `busy` are not free; None for none.

    `nodes` is the NUMA node of each physical id, and `node` the one that is preferred.
    """
    return best(Availability(partitions, busy, nodes=nodes or {}), count, node=node)


def best(available: Availability, size: int, *, given: int | None = None, node: int | None = None) -> Partition | None:
    """The partition of `size` GPUs to take, or None where none is free.

    `given` is how many of its GPUs are for the VM, all unless told, and `node` the NUMA node preferred for these.
    """
    candidates = [partition for partition in available.free if len(partition.gpus) == size]
    return min(candidates, key=lambda p: merit(available, p, given or size, node=node), default=None)


def choices(available: Availability, wanted: Need, *, node: int | None = None) -> tuple[Choice, ...]:
    """The choices one after the other, fewer than are wanted where no more partitions are free.

    Where no NUMA node is preferred, that of the first partition is for the others.
    """
    made: list[Choice] = []
    while len(made) < wanted.pieces and (chosen := best(available, wanted.size, given=wanted.given, node=node)):
        made.append(Choice(available, chosen, node))
        available = available.taking(chosen)
        node = available.nodes.get(chosen.gpu_ids[0]) if node is None else node
    return tuple(made)


def grant(available: Availability, count: int, shape: Shape = Shape.EXACT, *, node: int | None = None) -> Grant:
    """The partitions that serve `count` GPUs; `node` is the preferred NUMA node, and never a reason to refuse.

    Raises what `need` raises, NoCapacity where too few GPUs are free, and Fragmented where enough are but too few
    partitions of the size.
    """
    wanted = need(available, count, shape)
    made = choices(available, wanted, node=node)
    if len(made) < wanted.pieces:
        raise refusal.shortage(available, wanted.size, wanted.pieces)
    partitions = tuple(choice.partition for choice in made)
    given = {gpu for p in partitions for gpu in available.nearest(p.gpu_ids, wanted.given, node)}
    held = {gpu for p in partitions for gpu in p.gpu_ids}
    return Grant(partitions, tuple(sorted(given)), tuple(sorted(held - given)))


def by_partition(available: Availability, partition_id: int) -> Grant:
    """The partition of that id.

    Raises NoSuchPartition, PolicyDenied where it is not in the layout, or PartitionHeld where it is not free.
    """
    return _whole(available, PartitionList(tuple(available.partitions)).get(partition_id))


def by_gpus(available: Availability, gpu_ids: Iterable[int]) -> Grant:
    """The partition of exactly these GPUs, in any order.

    Raises BadRequest where none is named, and what `by_partition` does.
    """
    wanted = set(gpu_ids)
    if not wanted:
        raise BadRequest("no GPU is named", why="a request is for one GPU or more", fix="name physical ids")
    free = [partition for partition in available.free if set(partition.gpu_ids) == wanted]
    listed = PartitionList(tuple(available.partitions))
    return _whole(available, min(free, key=lambda p: p.id) if free else listed.with_gpus(wanted))


def _whole(available: Availability, partition: Partition) -> Grant:
    if partition.id in available.outside:
        raise refusal.outside(available, partition)
    if available.blocks(partition):
        raise refusal.held(available, partition)
    return Grant((partition,), tuple(sorted(partition.gpu_ids)))
