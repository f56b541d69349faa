# SPDX-License-Identifier: Apache-2.0
"""Whether the bench computes what it says: against closed formulas, and against every policy of a small board."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from fractions import Fraction

import pytest

from fmctl.core.availability import Availability
from tests.bench import allocation
from tests.bench.allocation import Chain, Result, anything, chain, first_fit, ours, reachable, refusals
from tests.tables import H100, row

PAIR_AND_ONE = (row(1, 1, 2), row(2, 1), row(3, 2), row(4, 3))


def erlang_b(servers: int, load: float) -> float:
    """The probability that all of so many servers are busy."""
    blocked = 1.0
    for number in range(1, servers + 1):
        blocked = load * blocked / (number + load * blocked)
    return blocked


@pytest.mark.parametrize("load", [0.5, 2.5])
@pytest.mark.parametrize(("mix", "servers"), [((100, 0, 0, 0), 8), ((0, 100, 0, 0), 4), ((0, 0, 0, 100), 1)], ids=str)
def test_requests_of_one_size_are_refused_as_erlang_says(mix: tuple[int, ...], servers: int, load: float) -> None:
    walk = chain(reachable(H100), ours)
    assert refusals(walk, mix, load) == pytest.approx(erlang_b(servers, load), rel=1e-5, abs=1e-9)


def policies(walk: Chain) -> Iterator[Chain]:
    """Every chain in which one choice is made in each state."""
    options = [tuple((state,) for state in each) or ((),) for arrivals in walk.arrivals for each in arrivals]
    width = len(allocation.SIZES)
    for made in itertools.product(*options):
        arrivals = tuple(tuple(made[place : place + width]) for place in range(0, len(made), width))
        yield Chain(walk.departures, arrivals)


def stationary(walk: Chain, mix: Sequence[int], load: Fraction) -> list[Fraction]:
    """The share of time in each state, by solving the balance equations exactly."""
    count = len(walk.departures)
    matrix = [[Fraction(0)] * (count + 1) for _ in range(count)]
    for state, (departures, arrivals) in enumerate(zip(walk.departures, walk.arrivals, strict=True)):
        moves = [(ended, Fraction(1)) for ended in departures]
        moves += [(each[0], load * mix[place] / 100) for place, each in enumerate(arrivals) if each]
        for there, rate in moves:
            matrix[there][state] += rate
            matrix[state][state] -= rate
    matrix[-1] = [Fraction(1)] * (count + 1)
    for place in range(count):
        pivot = next(line for line in range(place, count) if matrix[line][place])
        matrix[place], matrix[pivot] = matrix[pivot], matrix[place]
        matrix[place] = [value / matrix[place][place] for value in matrix[place]]
        for line in range(count):
            if line != place and (factor := matrix[line][place]):
                matrix[line] = [a - factor * b for a, b in zip(matrix[line], matrix[place], strict=True)]
    return [line[-1] for line in matrix]


def refused_share(walk: Chain, mix: Sequence[int], load: Fraction) -> float:
    shares = stationary(walk, mix, load)
    return float(
        sum(
            share * sum(percent for percent, each in zip(mix, arrivals, strict=True) if not each) / 100
            for share, arrivals in zip(shares, walk.arrivals, strict=True)
        )
    )


@pytest.mark.parametrize("mix", [(50, 50, 0, 0), (80, 20, 0, 0)], ids=str)
@pytest.mark.parametrize("load", [1.0, 2.5])
def test_the_best_choice_is_the_best_of_all_policies(mix: tuple[int, ...], load: float) -> None:
    states = reachable(PAIR_AND_ONE)
    every = [refused_share(walk, mix, Fraction(load)) for walk in policies(chain(states, anything))]
    assert len(every) == 24
    assert refusals(chain(states, anything), mix, load) == pytest.approx(min(every), abs=1e-8)
    assert min(every) < max(every) - 1e-4
    for choices in (ours, first_fit):
        walk = chain(states, choices)
        assert refusals(walk, mix, load) == pytest.approx(refused_share(walk, mix, Fraction(load)), abs=1e-8)


def test_first_fit_takes_the_lowest_id() -> None:
    assert [p.id for p in first_fit(Availability(H100, {1, 5}), 1)] == [8]
    assert first_fit(Availability(H100, {1, 5}), 4) == []


def test_the_choice_is_within_its_limit_and_better_than_first_fit() -> None:
    (result,) = allocation.measure(mixes=[(80, 10, 8, 2)], loads=[2.5])
    assert result.optimal <= result.ours <= allocation.LIMIT * result.optimal
    assert result.first_fit > 1.02 * result.optimal


@pytest.mark.parametrize(("probability", "good"), [(0.201, True), (0.2011, False)])
def test_a_result_over_the_limit_is_told(probability: float, *, good: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert allocation.report(Result((50, 30, 20, 0), 1.0, probability, 0.2, 0.3)) is good
    told = capsys.readouterr()
    figures = json.loads(told.out)
    assert (figures["name"], figures["mix"], figures["load"]) == ("allocation_optimality", "50/30/20/0", 1.0)
    assert (figures["value"], figures["reference"], figures["first_fit_ratio"]) == (probability, 0.2, 1.5)
    assert ("over its limit" in told.err) is not good
