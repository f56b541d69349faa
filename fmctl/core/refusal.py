# SPDX-License-Identifier: Apache-2.0
"""Why a number of GPUs cannot be granted, and what would fit, in words. `core.allocate` raises what this builds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from fmctl.core.availability import Availability, Cause
from fmctl.core.errors import BadRequest, Fragmented, NoCapacity, NoSuchPartition, PartitionHeld, PolicyDenied
from fmctl.core.partition import MAX_GPUS, Partition


def out_of_range(count: int) -> BadRequest:
    """No board can serve that count."""
    return BadRequest(
        f"{gpus(count)} cannot be asked for",
        why=f"a request is for 1 to {MAX_GPUS} GPUs",
        fix="ask for a number in that range",
    )


def more_than_the_board(available: Availability, count: int) -> NoCapacity:
    """The board has fewer GPUs, however many are free."""
    total = len(available.gpus)
    return NoCapacity(
        f"{gpus(count)} {_are(count)} wanted, and this board has {total}",
        why=_sizes_of_table(available),
        fix=f"ask for {_choice(available.sizes)}, or another host" if total else "ask another host",
    )


def no_such_size(available: Availability, count: int, *, larger: int | None, single_gpus: int) -> NoSuchPartition:
    """No partition has that many GPUs; `larger` is the next size, and `single_gpus` can be granted one by one."""
    shapes = [f"or in the shape round-up, which takes {larger}"] if larger else []
    shapes += [f"or in the shape unlinked, which takes {count} single GPUs"] if single_gpus >= count else []
    return NoSuchPartition(
        f"{_whose(available)} has no partition of {gpus(count)}",
        why=_sizes_of_table(available),
        fix=", ".join([_other_sizes(available), *shapes]),
    )


def too_few_singles(available: Availability, count: int, single_gpus: int) -> NoSuchPartition:
    """The table has fewer partitions of a single GPU than are wanted, however many are free."""
    return NoSuchPartition(
        f"{_whose(available)} has no {count} partitions of a single GPU",
        why=f"it has {single_gpus}; {_sizes_of_table(available)}",
        fix=f"{_other_sizes(available)} in the shape exact",
    )


def shortage(available: Availability, size: int, pieces: int = 1) -> NoCapacity:
    """Too few GPUs are free for `pieces` partitions of that size, or enough are and yet such partitions are not."""
    causes = Counter(available.causes().values())
    free, needed = causes.pop(None, 0), size * pieces
    fix = f"ask another host, or for {_choice(sizes)} here" if (sizes := _free_sizes(available)) else "ask another host"
    if free < needed:
        held = ", ".join(f"{causes[cause]} {_are(causes[cause])} {cause.value}" for cause in Cause if causes[cause])
        return NoCapacity(
            f"{gpus(needed)} {_are(needed)} wanted, and {free} {_are(free)} free",
            why=f"of {gpus(len(available.gpus))} {held}",
            fix=fix,
        )
    wanted = f"partition of {gpus(size)} is" if pieces == 1 else f"{pieces} partitions of {gpus(size)} are"
    blocked = [p for p in available.offered if len(p.gpus) == size and available.blocks(p)]
    return Fragmented(
        f"{gpus(free)} {_are(free)} free, but no {wanted}",
        why="; ".join(f"partition {p.id}: {in_the_way(available, p)}" for p in blocked),
        fix=fix,
    )


def held(available: Availability, partition: Partition) -> PartitionHeld:
    """A partition that the caller named is not free."""
    return PartitionHeld(
        f"partition {partition.id} is not free",
        why=in_the_way(available, partition),
        fix="wait until it is free, or choose another",
        partition_id=partition.id,
    )


def outside(available: Availability, partition: Partition) -> PolicyDenied:
    """A partition that the caller named is not in the layout, free or not."""
    return PolicyDenied(
        f"partition {partition.id} is not used on this host",
        why=f"it is not in its layout {available.layout}; {_sizes_of_table(available)}",
        fix="see `fmctl layout show`, and ask for one of the layout's, or another host",
        partition_id=partition.id,
    )


def in_the_way(available: Availability, partition: Partition) -> str:
    """What keeps a partition from being granted."""
    return ", ".join(map(str, available.blocks(partition)))


def gpus(count: int) -> str:
    """`1 GPU`, `2 GPUs`."""
    return f"{count} GPU{'' if count == 1 else 's'}"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _free_sizes(available: Availability) -> list[int]:
    return sorted({len(partition.gpus) for partition in available.free})


def _whose(available: Availability) -> str:
    return f"the layout {available.layout} of this host" if available.layout else "this board"


def _other_sizes(available: Availability) -> str:
    return f"ask for {_choice(available.sizes)}" if available.sizes else "ask another host"


def _sizes_of_table(available: Availability) -> str:
    if not available.sizes:
        return "the table has none of its partitions" if available.layout else "Fabric Manager reports no partition"
    return f"its partitions have {_choice(available.sizes)}"


def _choice(sizes: Iterable[int]) -> str:
    *others, last = sizes
    return f"{', '.join(map(str, others))} or {gpus(last)}" if others else gpus(last)
