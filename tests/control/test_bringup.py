# SPDX-License-Identifier: Apache-2.0
"""What a request leaves that fails, is cancelled, comes true too late, or cannot be recorded: nothing."""

from __future__ import annotations

import pytest

from fmctl.core.allocate import Shape
from fmctl.core.errors import (
    ActivationFailed,
    AgentUnreachable,
    FabricNotReady,
    HostCordoned,
    NoCapacity,
    OutcomeUnknown,
    PartitionHeld,
    StoreUnusable,
)
from fmctl.core.fmcode import Operation
from fmctl.core.lease import LeaseState
from fmctl.core.plan import LATE
from fmctl.sim.faults import Faults
from tests.control.leasing import BOARDS, MANAGE, World, nothing_is_left, refuse

PAIR, OTHER_PAIR, QUAD, BOARD = 3, 4, 1, 0
"""Partitions of an H100 board: the GPUs 1 and 3, 2 and 4, the first four, and all."""


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize("fault", ["hang@activate:1", "close@activate:1", "code=-2@activate:1", "code=-5@activate:1"])
@pytest.mark.parametrize("count, shape", [(2, Shape.EXACT), (3, Shape.ROUND_UP), (2, Shape.UNLINKED)])
def test_a_request_that_failed_leaves_nothing_and_can_be_made_again(
    board: str, fault: str, count: int, shape: Shape
) -> None:
    world = World(board, MANAGE, fault)
    assert refuse(world, "a", "r", count=count, shape=shape) in (OutcomeUnknown, ActivationFailed)
    world.settle()
    assert nothing_is_left(world)
    world.nvfm.fail(Faults.parse([fault]))
    assert refuse(world, "a", "r", count=count, shape=shape) in (OutcomeUnknown, ActivationFailed)
    lease = world.allocate("a", "r", count=count, shape=shape)
    assert (lease.state, len(lease.gpus)) == (LeaseState.ACTIVE, count)
    assert world.active == set(lease.partitions)


def test_a_part_of_a_request_that_is_being_undone_is_not_taken_for_the_whole() -> None:
    world = World("hgx-h100-8", MANAGE, "code=-2@activate:2", "code=-2@deactivate:1+")
    assert refuse(world, "a", "r", count=2, shape=Shape.UNLINKED) is ActivationFailed
    assert [len(lease.gpus) for lease in world.leases] == [1]
    assert refuse(world, "a", "r", count=2, shape=Shape.UNLINKED) is FabricNotReady
    world.settle()
    assert nothing_is_left(world)
    assert len(world.allocate("a", "r", count=2, shape=Shape.UNLINKED).gpus) == 2


def test_a_cancelled_request_that_is_asked_for_again_is_what_it_was() -> None:
    world = World("hgx-h100-8", MANAGE, "code=-2@deactivate:1")
    with pytest.raises(FabricNotReady, match="cancelled"):
        world.allocate("a", "r", count=3, shape=Shape.ROUND_UP, alive=lambda: False)
    lease = world.allocate("a", "r", count=3, shape=Shape.ROUND_UP)
    assert (len(lease.gpus), len(lease.spare)) == (3, 1)


@pytest.mark.parametrize("restarts", [False, True])
def test_a_request_is_not_taken_up_while_its_own_undoing_may_take_effect(*, restarts: bool) -> None:
    """It would be deactivated under the tenant who was told that it is active."""
    world = World()
    world.line.late, world.line.slow = 50, Operation.DEACTIVATE
    with pytest.raises(FabricNotReady, match="cancelled"):
        world.allocate("a", "r", count=2, alive=lambda: False)
    if restarts:
        world.restart_daemon()
    with pytest.raises(FabricNotReady, match="being undone"):
        world.allocate("a", "r", count=2)
    with pytest.raises(FabricNotReady, match="being undone"):
        world.activate("a", PAIR)
    world.settle()
    assert nothing_is_left(world)
    assert world.allocate("a", "r", count=2).state is LeaseState.ACTIVE


def test_a_slow_activation_is_taken_up_although_its_undoing_was_begun() -> None:
    world = World("hgx-h100-8", MANAGE, "code=-2@deactivate:1")
    world.line.late = 10
    assert refuse(world, "a", "r", count=2) is OutcomeUnknown
    world.wait(10)
    world.reconcile()
    assert world.allocate("a", "r", count=2).state is LeaseState.ACTIVE


def test_a_caller_who_is_gone_before_the_commit_leaves_nothing() -> None:
    world = World()
    with pytest.raises(FabricNotReady, match="cancelled"):
        world.allocate("a", "r", count=2, alive=lambda: False)
    assert world.line.calls == [(Operation.ACTIVATE, PAIR), (Operation.DEACTIVATE, PAIR)]
    assert nothing_is_left(world)


def test_a_caller_who_is_gone_after_the_commit_finds_the_lease_by_the_request() -> None:
    world = World()
    world.fate.decide("commit", 2, after=True)
    assert world.mortal(lambda: world.allocate("a", "r", count=2)) is None
    lease = world.store.by_request("a", "r")
    assert lease and lease.state is LeaseState.ACTIVE
    world.settle()
    assert world.allocate("a", "r", count=2).id == lease.id


@pytest.mark.parametrize("board", BOARDS)
def test_a_slow_activation_that_happens_after_its_caller_gave_up_is_undone(board: str) -> None:
    world = World(board)
    world.line.late = 60
    assert refuse(world, "a", "r", count=2) is OutcomeUnknown
    (partition,) = world.leases[0].partitions
    world.reconcile()
    assert (world.active, len(world.leases)) == (set(), 1)
    assert refuse(world, "b", "r", count=8) is NoCapacity
    world.wait(60)
    assert world.active == {partition}
    world.reconcile()
    assert (world.active, len(world.leases)) == (set(), 1)
    world.wait(15)
    world.reconcile()
    assert nothing_is_left(world)


def test_a_slow_activation_is_undone_however_often_the_request_fails() -> None:
    world = World()
    world.line.late = 60
    assert refuse(world, "a", "r", count=2) is OutcomeUnknown
    world.line.cut = 1
    assert refuse(world, "a", "r", count=2) is AgentUnreachable
    world.line.cut = 2
    assert refuse(world, "a", "r", count=2) is AgentUnreachable
    world.settle()
    assert nothing_is_left(world)


def test_a_lease_waits_with_its_end_for_a_slow_call_of_its_beginning() -> None:
    world = World()
    world.line.late = 60
    assert refuse(world, "a", "r", count=2) is OutcomeUnknown
    lease = world.allocate("a", "r", count=2)
    with pytest.raises(FabricNotReady, match="goes on by itself"):
        world.release(lease.id, wait=True)
    world.restart_daemon()
    world.reconcile()
    assert (world.active, world.lease(lease.id).state) == (set(), LeaseState.RELEASING)
    world.wait(60)
    assert world.active == {PAIR}
    world.settle()
    assert (world.active, world.leases) == (set(), [])


def test_a_slow_call_is_waited_for_before_the_end_is_written_on_request() -> None:
    world = World()
    world.line.late = LATE - 1
    assert refuse(world, "a", "r", count=2) is OutcomeUnknown
    lease = world.leases[0]
    world.wait(LATE)
    assert world.release(lease.id, wait=True).state.over
    assert nothing_is_left(world)


def test_a_request_that_is_being_undone_is_new_work() -> None:
    world = World()
    world.line.late = 10
    assert refuse(world, "a", "r", count=2) is OutcomeUnknown
    world.gate.reason = "an NVSwitch is gone"
    assert refuse(world, "a", "r", count=2) is HostCordoned
    with pytest.raises(HostCordoned):
        world.activate("a", PAIR)
    world.settle()
    assert nothing_is_left(world)


@pytest.mark.parametrize("board", BOARDS)
def test_with_a_full_store_nothing_is_asked_of_fabric_manager(board: str) -> None:
    world = World(board)
    lease = world.allocate("a", "r", count=1)
    stray = next(row.id for row in world.platform.partitions if row.gpu_ids == (8,))
    world.nvfm.activate(stray, timeout=1)
    before = len(world.line.calls)
    world.store.full_commits = 4
    for change in (
        lambda: world.allocate("a", "s", count=2),
        lambda: world.release(lease.id),
        lambda: world.deactivate("a", lease.partitions[0]),
        lambda: world.deactivate("a", stray),
    ):
        with pytest.raises(StoreUnusable):
            change()
    assert len(world.line.calls) == before
    assert world.active == {stray, *lease.partitions}
    assert world.lease(lease.id) == lease


def test_an_activation_that_cannot_be_recorded_is_undone_once_it_can() -> None:
    """Until then its lease holds the partition: as far as anyone can tell, its caller died."""
    world = World()
    world.line.heard = lambda operation, partition_id: setattr(world.store, "full_commits", 3)
    assert refuse(world, "a", "r", count=2) is StoreUnusable
    world.line.heard = lambda operation, partition_id: None
    assert ([lease.state for lease in world.leases], world.active) == ([LeaseState.ACTIVATING], {PAIR})
    assert refuse(world, "b", "r", partition_id=PAIR) is PartitionHeld
    for _ in range(2):
        with pytest.raises(StoreUnusable):
            world.reconcile()
    assert world.active == {PAIR}
    world.reconcile()
    world.wait(LATE)
    world.reconcile()
    assert nothing_is_left(world)
    assert world.allocate("a", "r", count=2).state is LeaseState.ACTIVE


def test_an_activation_that_could_not_be_recorded_is_there_for_the_same_request() -> None:
    world = World()
    world.line.heard = lambda operation, partition_id: setattr(world.store, "full_commits", 1)
    assert refuse(world, "a", "r", count=2) is StoreUnusable
    world.line.heard = lambda operation, partition_id: None
    world.restart_daemon()
    lease = world.allocate("a", "r", count=2)
    assert (lease.state, world.active) == (LeaseState.ACTIVE, {PAIR})


def test_a_request_that_failed_says_why_even_if_its_end_cannot_be_written() -> None:
    world = World("hgx-h100-8", MANAGE, "code=-2@activate:1")
    world.line.heard = lambda operation, partition_id: setattr(world.store, "full_commits", 1)
    assert refuse(world, "a", "r", count=2) is ActivationFailed
    world.settle()
    assert nothing_is_left(world)
