# SPDX-License-Identifier: Apache-2.0
"""Why a partition was taken, and why another was not."""

from __future__ import annotations

import pytest

from fmctl.core.allocate import Shape, grant
from fmctl.core.availability import Availability, Block, Cause
from fmctl.core.errors import NoCapacity, NoSuchPartition
from fmctl.core.explain import Kept, Outcome, Verdict, explain
from tests.tables import A100_16, H100, SMALL, TWINS, busy_sets, free_of, gpus_of, row


def told(verdicts: tuple[Verdict, ...]) -> dict[int, str]:
    return {verdict.partition.id: verdict.text for verdict in verdicts}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("shape", Shape)
def test_verdicts_agree_with_what_is_granted(name: str, shape: Shape) -> None:
    partitions = SMALL[name]
    for busy in busy_sets(partitions):
        available = Availability(partitions, busy, nodes={gpu: gpu % 3 for gpu in range(1, 7)})
        for count in range(1, 5):
            try:
                taken = set(grant(available, count, shape, node=1).partitions)
            except NoSuchPartition:
                with pytest.raises(NoSuchPartition):
                    explain(available, count, shape)
                continue
            except NoCapacity:
                taken = set()
                if count > len(gpus_of(partitions)):
                    continue
            verdicts = explain(available, count, shape, node=1)
            size = {len(verdict.partition.gpus) for verdict in verdicts}
            assert [v.partition for v in verdicts] == [p for p in partitions if {len(p.gpus)} == size]
            assert {v.partition for v in verdicts if v.outcome is Outcome.TAKEN} == taken
            blocked = {v.partition for v in verdicts if v.outcome is Outcome.BLOCKED}
            assert blocked == {v.partition for v in verdicts} - set(free_of(partitions, busy))
            assert taken or {v.outcome for v in verdicts} <= {Outcome.BLOCKED, Outcome.TOO_FEW}
            assert all(v.text for v in verdicts)


@pytest.mark.parametrize("node", [None, 0, 1])
def test_what_decided_is_so(node: int | None) -> None:
    nodes = {gpu: gpu // 6 for gpu in range(1, 17)}
    for busy in busy_sets(A100_16):
        available = Availability(A100_16, busy, nodes=nodes)
        for count in (1, 2, 4, 8):
            for verdict in explain(available, count, node=node):
                if verdict.against is None:
                    continue
                other = next(p for p in A100_16 if p.id == verdict.against)
                here, there = available.taking(verdict.partition).free, available.taking(other).free
                differing = [
                    Kept(size, one, two)
                    for size in (16, 8, 4, 2, 1)
                    if (one := sum(len(p.gpus) == size for p in here))
                    != (two := sum(len(p.gpus) == size for p in there))
                ]
                assert verdict.kept == (differing[0] if differing else None)
                if differing:
                    assert (differing[0].here < differing[0].there) is (verdict.outcome is Outcome.KEEPS_FEWER)
                distances = [available.distance(p.gpu_ids, node) for p in (verdict.partition, other)]
                if verdict.outcome is Outcome.FARTHER:
                    assert distances[0] > distances[1]
                if verdict.outcome is Outcome.HIGHER_ID:
                    assert distances[0] == distances[1] and verdict.partition.id > other.id


def test_it_names_the_partitions_that_larger_ones_would_be_lost_with() -> None:
    verdicts = explain(Availability(H100, {5}), 2)
    assert told(verdicts) == {
        3: "after it 0 partitions of 4 GPUs would be free, after partition 6 1",
        4: "after it 0 partitions of 4 GPUs would be free, after partition 6 1",
        5: "GPU 5 is busy",
        6: "after it 1 partition of 4 GPUs would be free, after partition 3, the next best, 0",
    }
    assert [v.outcome for v in verdicts] == [
        Outcome.KEEPS_FEWER,
        Outcome.KEEPS_FEWER,
        Outcome.BLOCKED,
        Outcome.TAKEN,
    ]
    assert [v.against for v in verdicts] == [6, 6, None, 3]
    assert [v.kept for v in verdicts] == [Kept(4, 0, 1), Kept(4, 0, 1), None, Kept(4, 1, 0)]
    assert verdicts[2].blocks == (Block(Cause.BUSY, (5,)),)


def test_it_names_what_is_in_the_way() -> None:
    available = Availability(H100, {3}, cordoned={2: "links", 1: "links"}, cleaning={4: "reset"})
    assert told(explain(available, 4)) == {
        1: "the partition is cordoned (links), GPU 4 is being cleaned (reset), GPU 3 is busy",
        2: "the partition is cordoned (links)",
    }


def test_it_names_the_node_or_the_id_between_equals() -> None:
    available = Availability(H100, nodes={**dict.fromkeys(range(1, 5), 0), 5: 1, 7: 1, 6: 1})
    assert told(explain(available, 2, node=1)) == {
        3: "the GPUs to give are all on one NUMA node, those of partition 5 all on the preferred NUMA node",
        4: "the GPUs to give are all on one NUMA node, those of partition 5 all on the preferred NUMA node",
        5: "the GPUs to give are all on the preferred NUMA node, those of partition 3, the next best, all on one NUMA"
        " node",
        6: "the GPUs to give are not known to be on one NUMA node, those of partition 5 all on the preferred NUMA node",
    }
    assert [v.outcome for v in explain(available, 2, node=1)][::3] == [Outcome.FARTHER, Outcome.FARTHER]
    assert told(explain(Availability(H100), 4)) == {
        1: "it is as good as partition 2, the next best, and has the lower id",
        2: "it is as good as partition 1 and has the higher id",
    }


def test_the_only_one_needs_no_comparison() -> None:
    assert told(explain(Availability(H100), 8)) == {0: "it is the only free partition of 8 GPUs"}


def test_rounding_up_is_judged_by_the_gpus_to_give() -> None:
    nodes = {1: 0, 2: 0, 3: 1, 4: 1, 5: 0, 6: 2, 7: 2, 8: 2}
    verdicts = explain(Availability(H100, nodes=nodes), 3, Shape.ROUND_UP)
    assert [v.outcome for v in verdicts] == [Outcome.FARTHER, Outcome.TAKEN]


def test_single_gpus_have_the_verdict_of_the_last_choice_they_stood_in() -> None:
    verdicts = {v.partition.id: v for v in explain(Availability(H100), 3, Shape.UNLINKED)}
    taken = [row_id for row_id, verdict in verdicts.items() if verdict.outcome is Outcome.TAKEN]
    assert taken == [7, 8, 9]
    assert verdicts[9].kept == Kept(2, 3, 2)
    assert verdicts[10].outcome is Outcome.HIGHER_ID
    assert verdicts[11].text == "after it 0 partitions of 4 GPUs would be free, after partition 8 1"
    twins = explain(Availability(TWINS), 2, Shape.UNLINKED)
    assert told(twins)[8] == "it is as good as partition 4 and has the higher id"


def test_too_few_single_gpus_take_none() -> None:
    available = Availability(H100, range(3, 9))
    verdicts = explain(available, 3, Shape.UNLINKED)
    assert {v.outcome for v in verdicts} == {Outcome.BLOCKED, Outcome.TOO_FEW}
    assert told(verdicts)[7] == "it is free, but 3 such partitions are wanted and 2 can be had"
    assert explain(Availability((row(1, 1), row(2, 2)), {1}), 1)[1].outcome is Outcome.TAKEN
