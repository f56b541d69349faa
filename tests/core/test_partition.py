# SPDX-License-Identifier: Apache-2.0
"""Partitions: what overlaps, and how one is found."""

from __future__ import annotations

import pytest

from fmctl.core.errors import NoSuchPartition
from fmctl.core.partition import Gpu, Partition, PartitionList


def row(row_id: int, *gpu_ids: int, active: bool = False, nvlinks: int = 18) -> Partition:
    return Partition(row_id, tuple(Gpu(gpu_id, nvlinks) for gpu_id in gpu_ids), active)


BOARD = PartitionList(
    (
        row(4, 1, 2, 3, 4),
        row(5, 1, 3),
        row(7, 4, 2, active=True),
        row(9, 1, nvlinks=0),
        row(10, 3, nvlinks=0, active=True),
    ),
    max_partitions=8,
)


def test_what_fabric_manager_did_not_say_counts_as_nothing() -> None:
    assert Gpu(3) == Gpu(3, nvlinks=0, nvlinks_max=0, line_rate_mbps=0, uuid="", pci_bus_id="")
    assert Partition(1, ()) == Partition(1, (), active=False)
    assert PartitionList(()) == PartitionList((), max_partitions=0, simulated=False)


def test_gpu_ids_keep_the_order_of_fabric_manager() -> None:
    assert BOARD.get(7).gpu_ids == (4, 2)


@pytest.mark.parametrize(("row_id", "nvlinks"), [(4, 72), (5, 36), (9, 0)])
def test_nvlinks_are_those_of_all_gpus(row_id: int, nvlinks: int) -> None:
    assert BOARD.get(row_id).nvlinks == nvlinks


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        pytest.param((1, 3), (1, 2), True, id="one-shared"),
        pytest.param((1, 3), (3, 1), True, id="the-same"),
        pytest.param((1, 3), (2, 4), False, id="none-shared"),
        pytest.param((1, 2, 3, 4), (4,), True, id="inside"),
    ],
)
def test_partitions_overlap_if_they_share_a_gpu(one: tuple[int, ...], other: tuple[int, ...], *, overlap: bool) -> None:
    assert row(1, *one).overlaps(row(2, *other)) is overlap
    assert row(2, *other).overlaps(row(1, *one)) is overlap


def test_blockers_are_the_other_active_partitions_that_share_a_gpu() -> None:
    assert [p.id for p in BOARD.blockers(BOARD.get(4))] == [7, 10]
    assert [p.id for p in BOARD.blockers(BOARD.get(5))] == [10]
    assert BOARD.blockers(BOARD.get(9)) == ()
    assert BOARD.blockers(BOARD.get(7)) == ()


def test_find_answers_none_for_an_id_that_the_board_lacks() -> None:
    assert BOARD.find(0) is None
    assert BOARD.find(10) is BOARD.partitions[4]


def test_get_refuses_an_id_that_the_board_lacks_and_names_those_it_has() -> None:
    with pytest.raises(NoSuchPartition) as refused:
        BOARD.get(3)
    assert refused.value.partition_id == 3
    assert refused.value.what == "there is no partition 3"
    assert refused.value.why == "this board has partitions 4, 5, 7, 9, 10"


def test_get_says_when_there_is_no_partition_at_all() -> None:
    with pytest.raises(NoSuchPartition, match="Fabric Manager reports no partition"):
        PartitionList(()).get(0)


@pytest.mark.parametrize("gpu_ids", [(2, 4), (4, 2), (2, 4, 2)], ids=str)
def test_with_gpus_takes_the_set_in_any_order(gpu_ids: tuple[int, ...]) -> None:
    assert BOARD.with_gpus(gpu_ids).id == 7


def test_with_gpus_wants_exactly_the_set_and_shows_those_of_its_size() -> None:
    with pytest.raises(NoSuchPartition) as refused:
        BOARD.with_gpus([2, 1])
    assert refused.value.what == "no partition has exactly the GPUs 1,2"
    assert refused.value.why == "partitions of 2 on this board: {1,3} {4,2}"


def test_with_gpus_says_when_no_partition_has_that_size() -> None:
    with pytest.raises(NoSuchPartition, match="this board has no partition of 3 GPUs"):
        BOARD.with_gpus([1, 2, 3])


def test_with_active_changes_one_row_and_leaves_the_list_as_it_was() -> None:
    changed = BOARD.with_active(5, active=True)
    assert [p.id for p in changed.partitions if p.active] == [5, 7, 10]
    assert [p.id for p in BOARD.partitions if p.active] == [7, 10]
    assert changed.max_partitions == 8
    assert [p.id for p in changed.with_active(7, active=False).partitions if p.active] == [5, 10]
