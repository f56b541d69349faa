# SPDX-License-Identifier: Apache-2.0
"""Which partition serves a request, on every set of busy GPUs, and what is refused in which words."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pytest

from fmctl.core.allocate import Grant, Shape, best, by_gpus, by_partition, choose, grant
from fmctl.core.availability import Availability
from fmctl.core.errors import BadRequest, Fragmented, NoCapacity, NoSuchPartition, PartitionHeld
from fmctl.core.partition import Partition
from tests.tables import (
    A100_16,
    H100,
    OVERLAPPING,
    SMALL,
    TWINS,
    Table,
    busy_sets,
    disjoint,
    free_of,
    gpus_of,
    row,
    table,
)

TABLES = {**SMALL, "hgx-a100-16": A100_16}
B200 = table("hgx-b200-8")
HALVES = {gpu: (gpu - 1) // 4 for gpu in range(1, 9)}
"""Two NUMA nodes, with four GPUs each."""


def kept(partitions: Table, busy: Collection[int], taken: Partition) -> list[int]:
    """How many partitions of each size stay free, largest size first."""
    left = [len(p.gpus) for p in free_of(partitions, {*busy, *gpus_of([taken])})]
    return [left.count(size) for size in sorted({len(p.gpus) for p in partitions}, reverse=True)]


def spread(gpus: Collection[int], nodes: Mapping[int, int], node: int | None) -> int:
    """0 on that node, 1 on another, 2 on several or where nobody knows."""
    there = [nodes.get(gpu, -gpu) for gpu in gpus]
    if len(set(there)) > 1 or there[0] < 0:
        return 2
    return 0 if there[0] == node else 1


def ids(granted: Grant) -> list[int]:
    return [partition.id for partition in granted.partitions]


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize(
    ("nodes", "node"),
    [
        pytest.param({}, None, id="no nodes"),
        pytest.param({gpu: gpu // 5 for gpu in range(1, 17)}, 1, id="a node preferred"),
        pytest.param({gpu: gpu % 2 for gpu in range(1, 14)}, None, id="none preferred"),
    ],
)
def test_the_choice_keeps_most_then_is_nearest_then_has_the_lowest_id(
    name: str, nodes: dict[int, int], node: int | None
) -> None:
    partitions = TABLES[name]
    for busy in busy_sets(partitions):
        available = Availability(partitions, busy, nodes=nodes)
        for size in range(1, 17):
            candidates = [p for p in free_of(partitions, busy) if len(p.gpus) == size]
            chosen = best(available, size, node=node)
            if not candidates:
                assert chosen is None
                continue
            assert chosen in candidates
            wanted = max(kept(partitions, busy, p) for p in candidates)
            candidates = [p for p in candidates if kept(partitions, busy, p) == wanted]
            nearest = min(spread(p.gpu_ids, nodes, node) for p in candidates)
            assert chosen.id == min(p.id for p in candidates if spread(p.gpu_ids, nodes, node) == nearest)


def test_every_state_that_leases_can_reach_is_left_through_free_partitions_alone() -> None:
    states = list(disjoint(H100))
    assert len(states) == 677
    for active in states:
        available = Availability(H100).taking(*active)
        for size in (1, 2, 4, 8):
            chosen = best(available, size)
            free = [p for p in H100 if len(p.gpus) == size and not any(p.overlaps(other) for other in active)]
            assert (chosen in free) if free else (chosen is None)


def test_partitions_of_one_size_are_packed_where_larger_ones_are_broken_already() -> None:
    available = Availability(H100)
    order = []
    while chosen := best(available, 1):
        order.append(chosen.gpu_ids[0])
        available = available.taking(chosen)
    assert order == [1, 3, 2, 4, 5, 7, 6, 8]


@pytest.mark.parametrize(
    ("partitions", "busy", "size", "chosen"),
    [
        pytest.param(H100, {5}, 1, 13, id="the pair that is broken"),
        pytest.param(H100, {5}, 2, 6, id="the four that is broken"),
        pytest.param(H100, {1, 6}, 2, 4, id="both fours are broken, so the lowest id"),
        pytest.param(A100_16, {9}, 2, 16, id="the four whose eights are all broken"),
        pytest.param(A100_16, {9}, 4, 7, id="each four breaks as many eights, so the lowest id"),
        pytest.param(A100_16, {3}, 8, 2, id="the only eight beside"),
        pytest.param(OVERLAPPING, (), 1, 3, id="as many are lost with another, so the lowest id"),
        pytest.param(OVERLAPPING, (), 2, 14, id="the one that spares a larger one"),
    ],
)
def test_choices(partitions: Table, busy: Collection[int], size: int, chosen: int) -> None:
    found = choose(partitions, busy, size)
    assert found is not None
    assert found.id == chosen


def test_smaller_partitions_count_where_the_larger_ones_do_not_tell() -> None:
    board = (row(1, 1, 2), row(2, 3, 4), row(3, 1), row(4, 2), row(5, 3))
    assert ids(grant(Availability(board), 2)) == [2]


def test_the_order_of_the_table_does_not_matter() -> None:
    for busy in busy_sets(OVERLAPPING):
        for size in (1, 2, 3):
            there = best(Availability(OVERLAPPING, busy), size)
            assert there == best(Availability(OVERLAPPING[::-1], busy), size)


def test_of_partitions_with_the_same_gpus_the_one_that_is_not_cordoned_is_taken() -> None:
    assert ids(grant(Availability(TWINS, {3}), 2)) == [5]
    assert ids(grant(Availability(TWINS, {3}, cordoned={5: "x"}), 2)) == [7]


@pytest.mark.parametrize(
    "kwargs",
    [
        pytest.param({"cordoned": {7: "x", 9: "x"}}, id="cordoned"),
        pytest.param({"quarantined": {1: "x", 3: "x"}}, id="quarantined"),
        pytest.param({"cleaning": {1: "x", 3: "x"}}, id="cleaning"),
    ],
)
def test_what_is_withheld_is_never_a_candidate(kwargs: dict[str, dict[int, str]]) -> None:
    available = Availability(H100, **kwargs)  # type: ignore[arg-type]
    taken = []
    while chosen := best(available, 1):
        taken.append(chosen.gpu_ids[0])
        available = available.taking(chosen)
    assert sorted(taken) == [2, 4, 5, 6, 7, 8]


def test_what_is_withheld_counts_as_broken_already() -> None:
    assert ids(grant(Availability(H100, cordoned={6: "x"}), 1)) == [12]
    assert ids(grant(Availability(H100, quarantined={7: "x"}), 1)) == [11]
    assert ids(grant(Availability(H100, cleaning={4: "x"}), 2)) == [3]


def test_numa_decides_between_equals_alone() -> None:
    available = Availability(H100, nodes=HALVES)
    assert ids(grant(available, 2, node=1)) == [5]
    assert ids(grant(available, 4, node=1)) == [2]
    assert ids(grant(available, 2)) == ids(grant(available, 2, node=7)) == [3]
    assert ids(grant(Availability(H100, {2}, nodes=HALVES), 2, node=1)) == [3]


def test_one_node_goes_before_several() -> None:
    nodes = {1: 0, 3: 1, 2: 0, 4: 0, 5: 0, 7: 1, 6: 1, 8: 1}
    assert ids(grant(Availability(H100, nodes=nodes), 2)) == [4]
    assert ids(grant(Availability(H100, nodes=nodes), 2, node=1)) == [6]


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("shape", Shape)
def test_a_count_is_served_or_refused_as_the_table_allows(name: str, shape: Shape) -> None:
    partitions = TABLES[name]
    sizes = {len(p.gpus) for p in partitions}
    total = len(gpus_of(partitions))
    for busy in busy_sets(partitions):
        available = Availability(partitions, busy, nodes=HALVES)
        for count in range(1, 17):
            larger = min([size for size in sizes if size >= count], default=0)
            single_gpus = len({p.gpu_ids for p in partitions if len(p.gpus) == 1})
            size = {Shape.EXACT: count if count in sizes else 0, Shape.ROUND_UP: larger, Shape.UNLINKED: 1}[shape]
            pieces = count if shape is Shape.UNLINKED else 1
            candidates = {p.gpu_ids for p in free_of(partitions, busy) if len(p.gpus) == size}
            try:
                granted = grant(available, count, shape)
            except (NoCapacity, NoSuchPartition) as refused:
                free = total - len(busy)
                expected: type[Exception] = Fragmented if free >= size * pieces else NoCapacity
                if not size or (shape is Shape.UNLINKED and single_gpus < count):
                    expected = NoSuchPartition
                assert type(refused) is (NoCapacity if count > total else expected)
                assert not size or len(candidates) < pieces
                assert refused.what and refused.why and refused.fix
                continue
            assert [len(p.gpus) for p in granted.partitions] == [size] * pieces
            held = [gpu for p in granted.partitions for gpu in p.gpu_ids]
            assert len(held) == len(set(held)) and not busy & set(held)
            assert len(granted.gpus) == count
            assert sorted(granted.gpus + granted.spare) == sorted(held)
            assert granted.gpus == tuple(sorted(granted.gpus)) and granted.spare == tuple(sorted(granted.spare))


def test_exact_gives_the_whole_partition() -> None:
    assert grant(Availability(B200), 4) == Grant((B200[1],), (1, 2, 3, 4))
    assert grant(Availability((row(3, 9, 2),)), 2).gpus == (2, 9)


def test_round_up_holds_the_rest_and_never_gives_it() -> None:
    assert grant(Availability(H100), 3, Shape.ROUND_UP) == Grant((H100[1],), (1, 2, 3), (4,))
    assert grant(Availability(H100), 6, Shape.ROUND_UP).spare == (7, 8)
    assert grant(Availability(A100_16), 9, Shape.ROUND_UP).spare == (10, 11, 12, 13, 14, 15, 16)
    assert grant(Availability(H100), 4, Shape.ROUND_UP) == grant(Availability(H100), 4)


def test_round_up_takes_no_larger_size_than_the_next() -> None:
    board = (row(1, 1, 2, 3, 4), row(2, 5, 6, 7), row(3, 8))
    assert ids(grant(Availability(board), 2, Shape.ROUND_UP)) == [2]
    with pytest.raises(Fragmented):
        grant(Availability(board, {5}), 2, Shape.ROUND_UP)


@pytest.mark.parametrize(
    ("node", "gpus", "spare"),
    [(None, (1, 2, 3, 4, 5), (6, 7, 8)), (1, (1, 5, 6, 7, 8), (2, 3, 4))],
    ids=str,
)
def test_round_up_keeps_what_it_gives_together(node: int | None, gpus: tuple[int, ...], spare: tuple[int, ...]) -> None:
    granted = grant(Availability(H100, nodes=HALVES), 5, Shape.ROUND_UP, node=node)
    assert (granted.gpus, granted.spare) == (gpus, spare)


def test_round_up_judges_a_partition_by_the_gpus_that_it_would_give() -> None:
    nodes = {1: 0, 2: 0, 3: 1, 4: 1, 5: 0, 6: 2, 7: 2, 8: 2}
    assert grant(Availability(H100, nodes=nodes), 3, Shape.ROUND_UP) == Grant((H100[2],), (6, 7, 8), (5,))
    assert ids(grant(Availability(H100, nodes=nodes), 4, Shape.ROUND_UP)) == [1]


def test_unlinked_takes_single_gpus_also_where_a_partition_has_the_size() -> None:
    assert ids(grant(Availability(H100), 4, Shape.UNLINKED)) == [7, 9, 8, 10]
    assert grant(Availability(H100, {1, 5}), 3, Shape.UNLINKED).gpus == (2, 3, 7)


def test_unlinked_stays_on_the_node_that_it_began_on() -> None:
    nodes = {1: 1, 2: 0, 3: 0, 4: 1}
    singles = tuple(row(10 + gpu, gpu) for gpu in nodes)
    assert ids(grant(Availability(singles, nodes=nodes), 2, Shape.UNLINKED)) == [11, 14]
    assert ids(grant(Availability(singles, nodes=nodes), 3, Shape.UNLINKED, node=0)) == [12, 13, 11]


def test_unlinked_returns_to_the_preferred_node_where_it_had_to_begin_on_another() -> None:
    board = (row(1, 2, 3), row(2, 4, 5), *(row(10 + gpu, gpu) for gpu in range(1, 6)))
    available = Availability(board, nodes={1: 1, 2: 1, 3: 1, 4: 0, 5: 0})
    assert ids(grant(available, 2, Shape.UNLINKED, node=0)) == [11, 14]
    assert ids(grant(available, 2, Shape.UNLINKED)) == [11, 12]


def refusal(available: Availability, count: int, shape: Shape = Shape.EXACT) -> tuple[str, str, str]:
    with pytest.raises((BadRequest, NoCapacity, NoSuchPartition)) as refused:
        grant(available, count, shape)
    return refused.value.what, refused.value.why, refused.value.fix


@pytest.mark.parametrize("count", [-1, 0, 17])
@pytest.mark.parametrize("shape", Shape)
def test_a_count_that_no_board_can_serve_is_a_bad_request(count: int, shape: Shape) -> None:
    with pytest.raises(BadRequest) as refused:
        grant(Availability(A100_16), count, shape)
    assert refused.value.what == f"{count} GPUs cannot be asked for"
    assert refused.value.why == "a request is for 1 to 16 GPUs"


def test_too_few_free_gpus() -> None:
    available = Availability(
        H100, {1, 2}, quarantined={3: "x"}, cleaning={4: "x"}, cordoned={0: "x", 2: "x", 5: "x", 11: "x"}
    )
    assert refusal(available, 4) == (
        "4 GPUs are wanted, and 3 are free",
        "of 8 GPUs 1 is quarantined, 1 is being cleaned, 2 are busy, 1 is cordoned",
        "ask another host, or for 1 or 2 GPUs here",
    )
    assert refusal(Availability(H100, range(1, 9)), 1) == (
        "1 GPU is wanted, and 0 are free",
        "of 8 GPUs 8 are busy",
        "ask another host",
    )
    assert refusal(Availability(H100, range(2, 9)), 3, Shape.ROUND_UP)[0] == "4 GPUs are wanted, and 1 is free"


def test_enough_free_gpus_but_no_partition_names_what_blocks() -> None:
    available = Availability(H100, {1}, cleaning={5: "reset"}, cordoned={0: "old", 3: "links"})
    assert refusal(available, 4) == (
        "6 GPUs are free, but no partition of 4 GPUs is",
        "partition 1: GPU 1 is busy; partition 2: GPU 5 is being cleaned (reset)",
        "ask another host, or for 1 or 2 GPUs here",
    )
    available = Availability(H100, {1, 6}, cordoned={3: "links", 4: "links", 5: "slow"})
    assert refusal(available, 2)[1] == (
        "partition 3: the partition is cordoned (links), GPU 1 is busy; partition 4: the partition is cordoned (links);"
        " partition 5: the partition is cordoned (slow); partition 6: GPU 6 is busy"
    )
    available = Availability(H100, cordoned={p.id: "x" for p in H100[8:]})
    assert refusal(available, 2, Shape.UNLINKED)[0] == "8 GPUs are free, but no 2 partitions of 1 GPU are"


def test_a_size_that_no_partition_has_says_what_fits() -> None:
    assert refusal(Availability(H100), 3) == (
        "this board has no partition of 3 GPUs",
        "its partitions have 1, 2, 4 or 8 GPUs",
        "ask for 1, 2, 4 or 8 GPUs, or in the shape round-up, which takes 4, or in the shape unlinked, which takes 3"
        " single GPUs",
    )
    assert refusal(Availability(TWINS), 4)[2] == "ask for 1, 2 or 3 GPUs"
    big = (row(1, 1, 2, 3), row(2, 4, 5))
    assert refusal(Availability(big), 4, Shape.ROUND_UP)[1:] == (
        "its partitions have 2 or 3 GPUs",
        "ask for 2 or 3 GPUs",
    )
    assert refusal(Availability(big), 1)[2] == "ask for 2 or 3 GPUs, or in the shape round-up, which takes 2"
    assert refusal(Availability(big), 2, Shape.UNLINKED) == (
        "this board has no 2 partitions of a single GPU",
        "it has 0; its partitions have 2 or 3 GPUs",
        "ask for 2 or 3 GPUs in the shape exact",
    )


@pytest.mark.parametrize("shape", Shape)
def test_more_gpus_than_the_board_has_is_for_another_host(shape: Shape) -> None:
    assert refusal(Availability(H100), 9, shape) == (
        "9 GPUs are wanted, and this board has 8",
        "its partitions have 1, 2, 4 or 8 GPUs",
        "ask for 1, 2, 4 or 8 GPUs, or another host",
    )
    assert refusal(Availability(()), 1, shape) == (
        "1 GPU is wanted, and this board has 0",
        "Fabric Manager reports no partition",
        "ask another host",
    )


def test_a_partition_is_taken_by_its_id() -> None:
    assert by_partition(Availability(H100, {1}), 4) == Grant((H100[4],), (2, 4))
    with pytest.raises(NoSuchPartition, match="there is no partition 15"):
        by_partition(Availability(H100), 15)


def test_a_partition_is_taken_by_exactly_its_gpus() -> None:
    assert by_gpus(Availability(H100), [7, 5, 7]) == Grant((H100[5],), (5, 7))
    with pytest.raises(NoSuchPartition, match="no partition has exactly the GPUs 5,6"):
        by_gpus(Availability(H100), [5, 6])
    with pytest.raises(BadRequest, match="no GPU is named"):
        by_gpus(Availability(H100), [])


def test_of_partitions_with_the_same_gpus_one_that_is_free_is_taken_by_its_gpus() -> None:
    assert ids(by_gpus(Availability(TWINS), [1, 2])) == [5]
    assert ids(by_gpus(Availability(TWINS, cordoned={5: "x"}), [1, 2])) == [7]


def test_a_named_partition_that_is_not_free_is_held() -> None:
    available = Availability(H100, {1}, cordoned={4: "links"}, quarantined={8: "reset failed"})
    with pytest.raises(PartitionHeld) as refused:
        by_partition(available, 3)
    assert (refused.value.what, refused.value.why) == ("partition 3 is not free", "GPU 1 is busy")
    assert refused.value.partition_id == 3
    with pytest.raises(PartitionHeld, match="the partition is cordoned"):
        by_gpus(available, [4, 2])
    with pytest.raises(PartitionHeld, match=r"GPU 8 is quarantined \(reset failed\)"):
        by_gpus(available, [8])
