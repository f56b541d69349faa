# SPDX-License-Identifier: Apache-2.0
"""Leases on request: what is granted, and what is refused."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from fmctl.core.allocate import Shape
from fmctl.core.errors import (
    ActivationFailed,
    BadRequest,
    FabricNotReady,
    Fragmented,
    HostCordoned,
    NoCapacity,
    NoSuchPartition,
    OutcomeUnknown,
    PartitionHeld,
    RequestIdReused,
)
from fmctl.core.fmcode import Operation
from fmctl.core.lease import LeaseState
from fmctl.core.request import Request
from tests.control.leasing import BOARDS, MANAGE, TIMEOUT, World, nothing_is_left, refuse

PAIR, OTHER_PAIR, QUAD, BOARD = 3, 4, 1, 0
"""Partitions of an H100 board: the GPUs 1 and 3, 2 and 4, the first four, and all."""


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_a_count_gets_a_partition_of_that_size(board: str, count: int) -> None:
    world = World(board)
    lease = world.allocate("a", "r", count=count)
    assert (lease.state, lease.owner, lease.generation) == (LeaseState.ACTIVE, "a", 1)
    assert (len(lease.gpus), lease.spare, len(lease.partitions)) == (count, (), 1)
    assert world.active == set(lease.partitions)
    assert set(world.gpus_of(lease.partitions[0])) == set(lease.gpus)
    assert world.lease(lease.id) == lease


def test_gpus_are_named_by_physical_id_by_address_or_by_partition() -> None:
    world = World()
    assert world.allocate("a", "1", gpu_ids=(3, 1)).partitions == (PAIR,)
    assert world.allocate("a", "2", addresses=(world.address[4], world.address[2])).partitions == (OTHER_PAIR,)
    assert world.allocate("a", "3", partition_id=2).gpus == (5, 6, 7, 8)
    assert world.active == {PAIR, OTHER_PAIR, 2}


def test_gpus_that_no_partition_has_are_refused() -> None:
    world = World()
    assert refuse(world, "a", "1", gpu_ids=(1, 2)) is NoSuchPartition
    assert refuse(world, "a", "2", partition_id=99) is NoSuchPartition
    assert refuse(world, "a", "3", count=3) is NoSuchPartition
    nvswitch = next(d.function.bdf for d in world.inventory.devices if d.function.bdf not in world.address.values())
    assert refuse(world, "a", "4", addresses=(nvswitch,)) is BadRequest
    assert nothing_is_left(world)


def test_a_shape_rounds_up_and_holds_the_rest() -> None:
    world = World()
    lease = world.allocate("a", "r", count=3, shape=Shape.ROUND_UP)
    assert (len(lease.gpus), len(lease.spare), len(lease.partitions)) == (3, 1, 1)
    assert not set(lease.spare) & set(lease.gpus)
    other = world.allocate("b", "r", count=4)
    assert not set(other.held) & set(lease.held)
    assert refuse(world, "c", "r", count=1) is NoCapacity


@pytest.mark.parametrize("board", BOARDS)
def test_unlinked_gpus_are_partitions_of_their_own(board: str) -> None:
    world = World(board)
    lease = world.allocate("a", "r", count=3, shape=Shape.UNLINKED)
    assert (len(lease.gpus), len(lease.partitions)) == (3, 3)
    assert world.active == set(lease.partitions)
    assert world.release(lease.id, wait=True).state is LeaseState.RELEASED
    assert world.active == set()


def test_a_numa_node_is_preferred() -> None:
    assert set(World().allocate("a", "r", count=4, numa_node=1).gpus) == {5, 6, 7, 8}
    assert set(World().allocate("a", "r", count=4, numa_node=0).gpus) == {1, 2, 3, 4}


def test_too_few_gpus_and_scattered_ones_are_told_apart() -> None:
    world = World()
    for gpu in (1, 5):
        world.allocate("a", f"{gpu}", gpu_ids=(gpu,))
    assert refuse(world, "b", "r", count=8) is NoCapacity
    assert refuse(world, "b", "r", count=4) is Fragmented
    assert world.store.by_request("b", "r") is None


def test_what_somebody_holds_is_refused_to_everybody_else_by_name() -> None:
    world = World()
    world.allocate("a", "r", partition_id=PAIR)
    wanted: tuple[dict[str, Any], ...] = ({"partition_id": PAIR}, {"gpu_ids": (1,)}, {"partition_id": QUAD})
    for number, asked in enumerate(wanted):
        with pytest.raises(PartitionHeld, match="owner 'a'"):
            world.allocate("b", f"{number}", **asked)
    assert world.active == {PAIR}


def test_what_another_tool_activated_is_neither_granted_nor_touched() -> None:
    world = World()
    world.nvfm.activate(PAIR, timeout=1)
    lease = world.allocate("a", "r", count=4)
    assert set(lease.gpus) == {5, 6, 7, 8}
    with pytest.raises(PartitionHeld, match="owner is unknown"):
        world.allocate("a", "s", partition_id=PAIR)
    world.settle()
    assert world.active == {PAIR, *lease.partitions}


def test_what_another_tool_activated_just_now_is_not_taken_for_one_s_own() -> None:
    world = World()
    world.reconcile()
    world.nvfm.activate(PAIR, timeout=1)
    with pytest.raises(PartitionHeld):
        world.allocate("a", "r", partition_id=PAIR)
    with pytest.raises(PartitionHeld):
        world.allocate("a", "r", partition_id=PAIR)
    world.settle()
    assert (world.active, world.leases) == ({PAIR}, [])


def test_what_another_tool_activated_stays_also_where_it_cannot_be_looked_at() -> None:
    world = World()
    world.reconcile()
    world.nvfm.activate(PAIR, timeout=1)
    world.line.heard = lambda operation, partition_id: setattr(world.line, "cut", 1)
    with pytest.raises(OutcomeUnknown, match="cannot be listed"):
        world.allocate("a", "r", partition_id=PAIR)
    world.settle()
    assert (world.active, world.leases) == ({PAIR}, [])


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("board", BOARDS)
def test_a_partition_with_an_nvlink_error_is_cordoned_and_the_next_one_taken(board: str, count: int) -> None:
    world = World(board, MANAGE, "code=-10@activate:1")
    lease = world.allocate("a", "r", count=count)
    (refused, taken) = [partition for _, partition in world.line.calls]
    assert refused != taken
    assert (lease.partitions, world.active) == ((taken,), {taken})
    assert [subject for _, subject, _ in world.store.book.marks] == [str(refused)]
    with pytest.raises(PartitionHeld, match="NVLINK_ERROR"):
        world.allocate("b", "r", partition_id=refused)


def test_of_several_partitions_only_the_one_with_an_nvlink_error_is_changed() -> None:
    world = World("hgx-h100-8", MANAGE, "code=-10@activate:2")
    lease = world.allocate("a", "r", count=3, shape=Shape.UNLINKED)
    assert (len(set(lease.gpus)), len(set(lease.partitions))) == (3, 3)
    assert world.active == set(lease.partitions)


def test_an_nvlink_error_of_the_only_candidate_is_the_caller_s_to_know() -> None:
    world = World("hgx-h100-8", MANAGE, "code=-10@activate:1")
    assert refuse(world, "a", "r", count=8) is ActivationFailed
    assert nothing_is_left(world)
    assert refuse(world, "a", "r", partition_id=BOARD) is PartitionHeld


def test_a_host_that_is_cordoned_takes_no_new_work_until_it_is_no_more() -> None:
    world = World()
    held = world.allocate("a", "held", count=1)
    world.controller.cordon("new firmware", actor="a person")
    world.restart_daemon()
    with pytest.raises(HostCordoned, match="new firmware"):
        world.allocate("a", "r", count=1)
    assert world.allocate("a", "held", count=1) == held
    world.release(held.id, wait=True)
    world.controller.uncordon(actor="a person")
    assert world.allocate("a", "r", count=1).state is LeaseState.ACTIVE


def test_a_trial_tells_what_would_be_granted_and_changes_nothing() -> None:
    world = World()
    request = Request("a", "r", count=2)
    grant = world.controller.leases.try_out(request, timeout=TIMEOUT)
    assert (world.leases, world.active, world.line.calls) == ([], set(), [])
    assert world.allocate("a", "r", count=2).gpus == grant.gpus
    with pytest.raises(NoCapacity):
        world.controller.leases.try_out(Request("a", "s", count=8), timeout=TIMEOUT)


def test_the_same_request_again_meets_the_same_lease_also_one_that_is_over() -> None:
    world = World()
    lease = world.allocate("a", "r", count=2)
    assert world.allocate("a", "r", count=2) == lease
    assert world.allocate("b", "r", count=2).id != lease.id
    world.release(lease.id)
    assert world.allocate("a", "r", count=2).state is LeaseState.RELEASING
    world.settle()
    ended = world.allocate("a", "r", count=2)
    assert (ended.id, ended.state) == (lease.id, LeaseState.RELEASED)
    world.restart_daemon()
    assert world.allocate("a", "r", count=2) == ended


def test_a_request_id_stands_for_one_request() -> None:
    world = World()
    lease = world.allocate("a", "r", count=2, labels={"x": "y"})
    different: tuple[dict[str, Any], ...] = (
        {"count": 1},
        {"gpu_ids": (1, 3)},
        {"count": 2, "labels": {"x": "z"}},
        {"count": 2, "labels": {"x": "y"}, "lifetime": 60.0},
        {"count": 2, "labels": {"x": "y"}, "shape": Shape.UNLINKED},
    )
    for asked in different:
        assert refuse(world, "a", "r", **asked) is RequestIdReused
    world.release(lease.id, wait=True)
    assert refuse(world, "a", "r", count=1) is RequestIdReused


def test_many_schedulers_at_once_get_what_is_there_and_no_more() -> None:
    world = World()
    failures: list[BaseException] = []
    granted: list[tuple[int, ...]] = []

    def schedule(name: str) -> None:
        for number in range(25):
            count = (1, 2, 4, 8)[(number + len(name)) % 4]
            try:
                request = Request(name, f"{number}", count=count)
                lease = world.controller.leases.allocate(request, timeout=60)
                granted.append(lease.gpus)
                world.controller.leases.release(lease.id, actor=name, timeout=60, wait=True)
            except NoCapacity:
                continue
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=schedule, args=("t" * n,)) for n in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []
    assert len(granted) > 25
    assert (world.active, world.leases) == (set(), [])


def test_activations_of_disjoint_partitions_do_not_disturb_each_other() -> None:
    world = World()
    threads = [
        threading.Thread(
            target=world.controller.leases.allocate, args=(Request(f"{n}", "r", count=1),), kwargs={"timeout": 60}
        )
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(lease.owner for lease in world.leases) == list("01234567")
    assert world.active == set(range(7, 15))


def test_the_same_request_from_many_callers_is_one_lease() -> None:
    world = World()
    ids: list[str] = []

    def ask() -> None:
        ids.append(world.controller.leases.allocate(Request("a", "r", count=2), timeout=60).id)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (len(ids), len(set(ids)), len(world.leases)) == (8, 1, 1)


def test_a_request_waits_for_its_turn_half_its_time_and_leaves_nothing() -> None:
    world = World()
    entered, leave = threading.Event(), threading.Event()

    def slow(operation: Operation, partition_id: int) -> None:
        entered.set()
        leave.wait(60)

    world.line.heard = slow
    first = threading.Thread(
        target=world.controller.leases.allocate, args=(Request("a", "r", count=1),), kwargs={"timeout": 60}
    )
    first.start()
    assert entered.wait(60)
    assert refuse(world, "b", "r", count=1) is FabricNotReady
    leave.set()
    first.join(60)
    assert [lease.owner for lease in world.leases] == ["a"]
