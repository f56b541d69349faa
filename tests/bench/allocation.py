# SPDX-License-Identifier: Apache-2.0
"""How many requests the choice of partitions refuses, against the best choice there is, computed exactly.

Requests for 1, 2, 4 or 8 GPUs arrive as a Poisson process and hold their partition for an exponential time of mean 1;
one that finds no free partition of its size is lost. A state is the set of active partitions. Uniformised, this is a
Markov chain with a cost of 1 for each request lost, and its long-run cost for each request is the probability of a
refusal. Value iteration encloses that: the least and the greatest growth of the value in one step are bounds of the
long-run cost, for one fixed choice as for the best of all. The best refuses only what no free partition could serve.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from fmctl.core import allocate
from fmctl.core.availability import Availability
from fmctl.core.partition import Partition
from tests.tables import H100

NAME = "allocation_optimality"
LIMIT = 1.005
"""The highest ratio of refusals to those of the best choice."""

SIZES = (1, 2, 4, 8)
MIXES = ((50, 30, 20, 0), (60, 25, 15, 0), (30, 30, 30, 10), (80, 10, 8, 2))
"""Percent of the requests that are for each of SIZES."""
LOADS = (1.0, 2.5)
"""Requests in the mean time that one is served."""

PRECISION = 1e-9
"""The distance of the bounds at which value iteration ends."""

State = frozenset[int]
"""The ids of the active partitions."""
Choices = Callable[[Availability, int], Sequence[Partition]]
"""The partitions that may be taken for a size: none where none is free, and one where the choice is made."""


@dataclass(frozen=True)
class Result:
    """Probabilities of a refusal for one mix of sizes, in percent, and one load, in requests per time of service."""

    mix: tuple[int, ...]
    load: float
    ours: float
    optimal: float
    first_fit: float

    @property
    def ratio(self) -> float:
        return self.ours / self.optimal


@dataclass(frozen=True)
class Chain:
    """Where each state can go: by the end of a lease, and on a request of each size to one of several states.

    States are numbers. A size without a next state is refused.
    """

    departures: tuple[tuple[int, ...], ...]
    arrivals: tuple[tuple[tuple[int, ...], ...], ...]


def ours(available: Availability, size: int) -> Sequence[Partition]:
    chosen = allocate.best(available, size)
    return () if chosen is None else (chosen,)


def first_fit(available: Availability, size: int) -> Sequence[Partition]:
    return sorted(anything(available, size), key=lambda partition: partition.id)[:1]


def anything(available: Availability, size: int) -> Sequence[Partition]:
    return [partition for partition in available.free if len(partition.gpus) == size]


def reachable(partitions: Sequence[Partition]) -> dict[State, Availability]:
    """Every set of disjoint partitions, with what it leaves available."""
    found: dict[State, Availability] = {frozenset(): Availability(partitions)}
    new = list(found)
    while new:
        state = new.pop()
        for partition in found[state].free:
            larger = state | {partition.id}
            if larger not in found:
                found[larger] = found[state].taking(partition)
                new.append(larger)
    return found


def chain(states: dict[State, Availability], choices: Choices) -> Chain:
    number = {state: place for place, state in enumerate(states)}
    return Chain(
        tuple(tuple(number[state - {ended}] for ended in state) for state in states),
        tuple(
            tuple(tuple(number[state | {p.id}] for p in choices(available, size)) for size in SIZES)
            for state, available in states.items()
        ),
    )


def refusals(walk: Chain, mix: Sequence[int], load: float) -> float:
    """The probability that a request is refused, where each next state is the best of those that may be taken."""
    most = max(map(len, walk.departures))
    scale = load + most
    rates = [(index, load * percent / 100 / scale) for index, percent in enumerate(mix) if percent]
    values = [0.0] * len(walk.departures)
    while True:
        new = []
        for value, departures, arrivals in zip(values, walk.departures, walk.arrivals, strict=True):
            total = (most - len(departures)) * value
            for state in departures:
                total += values[state]
            total /= scale
            for index, rate in rates:
                options = arrivals[index]
                total += rate * (min([values[state] for state in options]) if options else 1 + value)
            new.append(total)
        growth = [after - before for after, before in zip(new, values, strict=True)]
        low, high = min(growth) * scale / load, max(growth) * scale / load
        if high - low <= PRECISION:
            return (low + high) / 2
        values = new


def measure(mixes: Iterable[tuple[int, ...]] = MIXES, loads: Iterable[float] = LOADS) -> list[Result]:
    """One result for each mix and load, on the table of H100."""
    states = reachable(H100)
    assert len(states) == 677
    chains = [chain(states, choices) for choices in (ours, anything, first_fit)]
    asked = itertools.product(mixes, loads)
    return [Result(mix, load, *(refusals(each, mix, load) for each in chains)) for mix, load in asked]


def report(result: Result) -> bool:
    """Print one result; whether it is within the limit."""
    figures = {
        "mix": "/".join(map(str, result.mix)),
        "load": result.load,
        "value": round(result.ours, 6),
        "unit": "probability",
        "reference": round(result.optimal, 6),
        "ratio": round(result.ratio, 5),
        "first_fit_ratio": round(result.first_fit / result.optimal, 5),
    }
    print(json.dumps({"name": NAME, **figures}), flush=True)
    if result.ratio > LIMIT:
        print(f"{NAME} is over its limit: ratio {LIMIT}", file=sys.stderr)
    return result.ratio <= LIMIT


def main() -> None:
    results = [report(result) for result in measure()]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
