# SPDX-License-Identifier: Apache-2.0
"""Why `core.allocate` took one partition and not another: a verdict on each partition of the wanted size."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from fmctl.core import allocate, refusal
from fmctl.core.allocate import Choice, Merit, Need, Shape
from fmctl.core.availability import Availability, Block, Distance
from fmctl.core.partition import Partition

_PLACES = {
    Distance.PREFERRED: "all on the preferred NUMA node",
    Distance.ONE_NODE: "all on one NUMA node",
    Distance.SEVERAL_NODES: "not known to be on one NUMA node",
}


class Outcome(str, Enum):
    """What became of a candidate, and what decided it."""

    TAKEN = "taken"
    BLOCKED = "blocked"
    KEEPS_FEWER = "keeps-fewer"
    FARTHER = "farther"
    HIGHER_ID = "higher-id"
    TOO_FEW = "too-few"


@dataclass(frozen=True)
class Kept:
    """How many partitions of a size stay free after one candidate, and after the one that it was compared with."""

    size: int
    here: int
    there: int


@dataclass(frozen=True)
class Verdict:
    """Why a partition of the wanted size was taken or not, as values and as a text.

    `blocks` are what is in its way. `against` is the partition that it was compared with: the one taken or, for that
    one, the next best. `kept` is the first size, from the largest, of which the two leave different numbers free.
    """

    partition: Partition
    outcome: Outcome
    text: str
    against: int | None = None
    kept: Kept | None = None
    blocks: tuple[Block, ...] = ()


def explain(
    available: Availability, count: int, shape: Shape = Shape.EXACT, *, node: int | None = None
) -> tuple[Verdict, ...]:
    """A verdict on each partition of the size that serves `count` GPUs, in the table's order.

    Where several single GPUs are taken one by one, the verdict on one that was not is that of the last choice it stood
    in. Where the request cannot be served, none is taken. Raises what `allocate.need` raises.
    """
    wanted = allocate.need(available, count, shape)
    made = allocate.choices(available, wanted, node=node)
    candidates = [partition for partition in available.partitions if len(partition.gpus) == wanted.size]
    verdicts = {p.id: _blocked(available, p) for p in candidates}
    if len(made) < wanted.pieces:
        free = [p for p in candidates if p in available.free]
        text = f"it is free, but {wanted.pieces} such partitions are wanted and {len(made)} can be had"
        return tuple(Verdict(p, Outcome.TOO_FEW, text) if p in free else verdicts[p.id] for p in candidates)
    for choice in made:
        verdicts |= {verdict.partition.id: verdict for verdict in _compared(choice, wanted)}
    return tuple(verdicts[p.id] for p in candidates)


def _blocked(available: Availability, partition: Partition) -> Verdict:
    text = refusal.in_the_way(available, partition)
    return Verdict(partition, Outcome.BLOCKED, text, blocks=available.blocks(partition))


def _compared(choice: Choice, wanted: Need) -> list[Verdict]:
    """Verdicts on all that were free when that choice was made."""
    free = [partition for partition in choice.available.free if len(partition.gpus) == wanted.size]
    merits = {p.id: allocate.merit(choice.available, p, wanted.given, node=choice.node) for p in free}
    first, *others = sorted(free, key=lambda p: merits[p.id])
    if not others:
        text = f"it is the only free partition of {refusal.gpus(wanted.size)}"
        return [Verdict(first, Outcome.TAKEN, text)]
    better, next_best = merits[first.id], merits[others[0].id]
    _, text, kept = _decisive(choice.available, better, next_best, f"partition {next_best.id}, the next best,")
    verdicts = [Verdict(first, Outcome.TAKEN, text, next_best.id, kept)]
    for partition in others:
        outcome, text, kept = _decisive(choice.available, merits[partition.id], better, f"partition {first.id}")
        verdicts.append(Verdict(partition, outcome, text, first.id, kept))
    return verdicts


def _decisive(available: Availability, here: Merit, there: Merit, other: str) -> tuple[Outcome, str, Kept | None]:
    """The first point in which two merits differ: what it makes of the worse, and the text on the one `here`."""
    for size, lost_here, lost_there in zip(reversed(available.sizes), here.lost, there.lost, strict=True):
        if lost_here != lost_there:
            free = sum(len(partition.gpus) == size for partition in available.free)
            kept = Kept(size, free - lost_here, free - lost_there)
            partitions = f"partition{'' if kept.here == 1 else 's'} of {refusal.gpus(size)}"
            text = f"after it {kept.here} {partitions} would be free, after {other} {kept.there}"
            return Outcome.KEEPS_FEWER, text, kept
    if here.distance is not there.distance:
        text = f"the GPUs to give are {_PLACES[here.distance]}, those of {other} {_PLACES[there.distance]}"
        return Outcome.FARTHER, text, None
    order = "lower" if here.id < there.id else "higher"
    return Outcome.HIGHER_ID, f"it is as good as {other} and has the {order} id", None
