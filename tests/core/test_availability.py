# SPDX-License-Identifier: Apache-2.0
"""What of a table is free, what is in the way of the rest, and which GPUs are near each other."""

from __future__ import annotations

import pytest

from fmctl.core.availability import Availability, Block, Cause, Distance
from tests.tables import H100, OVERLAPPING, row

BOARD = Availability(
    (row(4, 2, 1), row(5, 3, 4), row(6, 3), row(7, 5, 6, 7), row(8, 8)),
    busy={2, 1, 6, 99},
    cordoned={5: "links are degraded", 6: "", 77: "not of this table"},
    quarantined={5: "the reset failed", 6: "memory was not cleared"},
    cleaning={7: "reset", 6: "reset", 98: "reset"},
)


def test_what_nobody_named_is_free() -> None:
    assert Availability(H100).free == H100
    assert set(Availability(H100).causes().values()) == {None}
    nothing = Availability(())
    assert (nothing.gpus, nothing.sizes, nothing.free, nothing.causes()) == ((), (), (), {})


def test_gpus_and_sizes_are_those_of_the_table() -> None:
    assert Availability(OVERLAPPING).gpus == (2, 5, 7, 8, 11)
    assert Availability(OVERLAPPING).sizes == (1, 2, 3)
    assert Availability((row(1), row(2, 1))).sizes == (1,)


def test_one_gpu_in_the_way_is_enough() -> None:
    assert [p.id for p in BOARD.free] == [8]
    assert [p.id for p in Availability(H100, {3}).free] == [2, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14]
    assert [p.id for p in Availability(H100, quarantined={3: ""}, cleaning={5: ""}).free] == [
        4,
        6,
        7,
        8,
        10,
        12,
        13,
        14,
    ]


def test_a_cordoned_partition_leaves_those_that_share_its_gpus_free() -> None:
    assert 1 not in {p.id for p in Availability(H100, cordoned={1: ""}).free}
    assert len(Availability(H100, cordoned={1: ""}).free) == len(H100) - 1


def test_a_gpu_is_cordoned_when_every_partition_that_has_it_is() -> None:
    assert BOARD.causes() == {
        1: Cause.BUSY,
        2: Cause.BUSY,
        3: Cause.CORDONED,
        4: Cause.CORDONED,
        5: Cause.QUARANTINED,
        6: Cause.QUARANTINED,
        7: Cause.CLEANING,
        8: None,
    }
    assert Availability(H100, cordoned={0: "", 1: "", 3: ""}).causes()[1] is None


def test_blocks_are_all_that_is_in_the_way() -> None:
    partitions = {p.id: p for p in BOARD.partitions}
    assert BOARD.blocks(partitions[4]) == (Block(Cause.BUSY, (1, 2)),)
    assert BOARD.blocks(partitions[5]) == (Block(Cause.CORDONED, (3, 4), "links are degraded"),)
    assert BOARD.blocks(partitions[7]) == (
        Block(Cause.QUARANTINED, (5,), "the reset failed"),
        Block(Cause.QUARANTINED, (6,), "memory was not cleared"),
        Block(Cause.CLEANING, (7,), "reset"),
    )
    assert BOARD.blocks(partitions[8]) == ()


@pytest.mark.parametrize(
    ("block", "text"),
    [
        (Block(Cause.BUSY, (3,)), "GPU 3 is busy"),
        (Block(Cause.BUSY, (3, 5)), "GPUs 3,5 are busy"),
        (Block(Cause.CLEANING, (3,), "memory"), "GPU 3 is being cleaned (memory)"),
        (Block(Cause.QUARANTINED, (3,), "reset failed"), "GPU 3 is quarantined (reset failed)"),
        (Block(Cause.CORDONED, (3, 5), "degraded"), "the partition is cordoned (degraded)"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_a_block_reads_as_a_sentence(block: Block, text: str) -> None:
    assert str(block) == text


def test_taking_makes_busy_and_leaves_the_rest_as_it_was() -> None:
    before = Availability(H100, {1}, cordoned={14: "x"}, nodes={1: 0})
    after = before.taking(H100[5], H100[10])
    assert (set(after.busy), after.cordoned, after.nodes) == ({1, 5, 7, 4}, {14: "x"}, {1: 0})
    assert set(before.busy) == {1}


NODES = {1: 0, 2: 0, 3: 0, 4: 1, 5: 1, 6: 2, 7: 2, 8: 2}


@pytest.mark.parametrize(
    ("gpus", "node", "distance"),
    [
        ((1, 2), 0, Distance.PREFERRED),
        ((1, 2), 1, Distance.ONE_NODE),
        ((1, 2), None, Distance.ONE_NODE),
        ((1, 4), 0, Distance.SEVERAL_NODES),
        ((1, 9), 0, Distance.SEVERAL_NODES),
        ((9, 10), None, Distance.SEVERAL_NODES),
    ],
    ids=str,
)
def test_distance(gpus: tuple[int, ...], node: int | None, distance: Distance) -> None:
    assert Availability((), nodes=NODES).distance(gpus, node) is distance


@pytest.mark.parametrize(
    ("gpus", "count", "node", "nearest"),
    [
        pytest.param((8, 7, 6, 5), 3, None, (6, 7, 8), id="together"),
        pytest.param((1, 2, 3, 6, 7, 8), 2, None, (1, 2), id="the-lower-node-and-gpu"),
        pytest.param((1, 2, 3, 6, 7, 8), 2, 2, (6, 7), id="on-the-preferred-node"),
        pytest.param((1, 2, 3, 4, 5), 2, 1, (4, 5), id="on-the-preferred-node-though-another-has-more"),
        pytest.param((1, 2, 3, 4, 5), 3, 1, (1, 2, 3), id="together-before-the-preferred-node"),
        pytest.param((1, 4, 5, 6, 7), 4, 0, (4, 5, 6, 7), id="on-as-few-nodes-as-possible"),
        pytest.param((1, 2, 3, 6, 7, 8), 4, 2, (1, 6, 7, 8), id="on-two-nodes-more-on-the-preferred"),
        pytest.param((10, 9, 3, 2), 3, None, (2, 3, 9), id="unknown-nodes-last"),
        pytest.param((10, 9, 12, 11), 2, 1, (9, 10), id="no-node-known"),
    ],
)
def test_nearest(gpus: tuple[int, ...], count: int, node: int | None, nearest: tuple[int, ...]) -> None:
    assert Availability((), nodes=NODES).nearest(gpus, count, node) == nearest
