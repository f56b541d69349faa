# SPDX-License-Identifier: Apache-2.0
"""Active partitions and leases are made the same set, whatever fails or was changed by somebody else."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import pytest

from fmctl.control.fabric import Budget
from fmctl.core.errors import (
    AgentUnreachable,
    NoCapacity,
    OutcomeUnknown,
    StoreUnusable,
)
from fmctl.core.fmcode import FmCode, Operation
from fmctl.core.lease import LeaseState
from fmctl.core.partition import PartitionList
from fmctl.core.plan import INTERRUPTED, LATE
from fmctl.core.rules import Mode, Rules, Unowned
from fmctl.sim.fabric import Fabric
from fmctl.sim.faults import Faults
from tests.control.leasing import BOARDS, MANAGE, World

PAIR = {"hgx-h100-8": 3, "hgx-b200-8": 4}
SINGLE = {"hgx-h100-8": 7, "hgx-b200-8": 8}
"""The partition of GPU 1, which is one of the pair's."""


def test_a_deactivation_that_was_given_up_does_not_hit_the_next_tenant() -> None:
    world = World()
    lease = world.allocate("a", "r", count=2)
    world.line.late = 50
    with pytest.raises(OutcomeUnknown):
        world.release(lease.id, wait=True)
    world.reconcile()
    assert (world.active, world.lease(lease.id).state) == (set(), LeaseState.RELEASING)
    assert "may take effect yet" in world.controller.reconciler.drift[0]
    world.wait(60)
    world.reconcile()
    assert world.lease(lease.id).state is LeaseState.RELEASING
    world.wait(20)
    world.reconcile()
    assert world.lease(lease.id).state is LeaseState.RELEASED


def test_a_change_that_another_tool_made_meanwhile_is_waited_for_all_the_same() -> None:
    """A list that shows what a call was for does not tell whose change it shows."""
    world = World()
    world.reconcile()
    world.nvfm.activate(3, timeout=1)
    world.line.late = 50
    lease = world.activate("a", 3)
    world.release(lease.id)
    world.reconcile()
    assert (world.active, world.lease(lease.id).state) == (set(), LeaseState.RELEASING)
    world.wait(50)
    assert world.active == {3}
    world.settle()
    assert (world.active, world.lease(lease.id).state) == (set(), LeaseState.RELEASED)

    lease = world.allocate("a", "r", count=2)
    world.line.late = 50
    with pytest.raises(OutcomeUnknown):
        world.release(lease.id, wait=True)
    world.nvfm.deactivate(3, timeout=1)
    world.reconcile()
    with pytest.raises(NoCapacity):
        world.allocate("b", "r", count=8)
    world.settle()
    assert world.allocate("b", "r", count=8).state is LeaseState.ACTIVE


def test_a_stray_s_deactivation_that_was_given_up_keeps_its_gpus_from_everybody() -> None:
    world = World()
    world.nvfm.activate(3, timeout=1)
    world.line.late = 50
    with pytest.raises(OutcomeUnknown):
        world.deactivate("a", 3)
    assert not world.deactivate("a", 3)
    with pytest.raises(NoCapacity):
        world.allocate("a", "r", count=8)
    world.wait(LATE)
    assert world.allocate("a", "r", count=8).state is LeaseState.ACTIVE


def test_a_stray_s_deactivation_that_was_given_up_is_known_to_the_next_daemon() -> None:
    world = World()
    world.activate("a", 3)
    world.deactivate("a", 3)
    world.wait(1000)
    world.store.compact(leases_before=world.now, entries_before=world.now)
    world.nvfm.activate(3, timeout=1)
    world.line.late = 50
    with pytest.raises(OutcomeUnknown):
        world.deactivate("a", 3)
    world.deactivate("a", 3)
    world.restart_daemon()
    with pytest.raises(NoCapacity):
        world.allocate("a", "r", count=8)
    world.restart_daemon()
    world.wait(LATE)
    world.restart_daemon()
    assert world.allocate("a", "r", count=8).state is LeaseState.ACTIVE


def test_an_unreachable_agent_or_libvirt_changes_nothing() -> None:
    world = World()
    lease = world.allocate("a", "r", count=2, lifetime=60.0)
    world.line.cut = 1000
    world.host.hypervisor.disconnect()
    world.wait(100)
    with pytest.raises(AgentUnreachable):
        world.reconcile()
    assert world.lease(lease.id) == lease
    world.line.mend()
    world.reconcile()
    assert world.lease(lease.id) == lease
    world.host.hypervisor.reconnect()
    world.blind()
    world.reconcile()
    assert world.lease(lease.id) == lease
    assert world.active == {3}


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize("code", [c for c in FmCode if c is not FmCode.SUCCESS], ids=lambda c: str(c.name))
def test_no_code_is_taken_for_the_end_of_a_lease(board: str, code: FmCode) -> None:
    """-4 and -18 tell the error families' "not active", of a partition that is still listed as active."""
    world = World(board, MANAGE, f"code={int(code)}@deactivate:1")
    lease = world.allocate("a", "r", count=2)
    world.release(lease.id)
    world.reconcile()
    assert (world.lease(lease.id).state, world.active) == (LeaseState.RELEASING, set(lease.partitions))
    assert world.controller.reconciler.drift
    with pytest.raises(NoCapacity):
        world.allocate("b", "r", count=8)
    world.settle()
    assert (world.lease(lease.id).state, world.active) == (LeaseState.RELEASED, set())


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize("code", [c for c in FmCode if c is not FmCode.SUCCESS], ids=lambda c: str(c.name))
def test_no_code_is_taken_for_an_activation(board: str, code: FmCode) -> None:
    world = World(board, MANAGE, f"code={int(code)}@activate:2")
    lease = world.allocate("a", "r", count=2)
    world.start_fresh()
    world.reconcile()
    assert world.active == set()
    assert (world.lease(lease.id).state, world.lease(lease.id).reason) == (LeaseState.ACTIVE, INTERRUPTED)
    world.wait(61)
    world.reconcile()
    assert (world.active, world.lease(lease.id).reason) == (set(lease.partitions), "")


@pytest.mark.parametrize("board", BOARDS)
def test_an_activation_that_an_overlap_blocks_waits_for_it(board: str) -> None:
    world = World(board)
    lease = world.allocate("a", "r", partition_id=PAIR[board])
    world.start_fresh()
    world.nvfm.activate(SINGLE[board], timeout=1)
    world.settle()
    assert (world.active, world.lease(lease.id).state) == ({SINGLE[board]}, LeaseState.ACTIVE)
    assert any("is blocked by the active" in line for line in world.controller.reconciler.drift)
    world.nvfm.deactivate(SINGLE[board], timeout=1)
    world.settle()
    assert (world.active, world.lease(lease.id).reason) == ({PAIR[board]}, "")


def test_a_step_that_fails_is_tried_again_later_and_later() -> None:
    world = World("hgx-h100-8", MANAGE, "code=-2@deactivate:1+")
    lease = world.allocate("a", "r", count=2)
    other = world.allocate("b", "r", count=2)
    world.release(lease.id)
    tries = []
    for _ in range(300):
        before = len(world.line.calls)
        world.reconcile()
        if len(world.line.calls) > before:
            tries.append(world.now)
        world.wait(1)
    gaps = [later - earlier for earlier, later in itertools.pairwise(tries)]
    assert gaps[:6] == [1, 2, 4, 8, 16, 32]
    assert set(gaps[6:]) == {60}
    world.release(other.id)
    world.nvfm.fail(Faults())
    world.reconcile()
    assert world.lease(other.id).state is LeaseState.RELEASED


@pytest.mark.parametrize("board", BOARDS)
def test_a_partition_that_nobody_holds_is_reported_and_left(board: str) -> None:
    world = World(board)
    world.nvfm.activate(PAIR[board], timeout=1)
    world.settle()
    assert world.active == {PAIR[board]}
    assert world.controller.reconciler.drift == (f"partition {PAIR[board]} is active, and no lease holds it",)


@pytest.mark.parametrize("board", BOARDS)
def test_a_partition_that_nobody_holds_is_deactivated_where_that_is_set_but_never_under_a_vm(board: str) -> None:
    world = World(board, Rules(Mode.MANAGE, Unowned.DEACTIVATE))
    world.nvfm.activate(PAIR[board], timeout=1)
    world.start_vm("vm", world.gpus_of(PAIR[board])[:1])
    world.settle()
    assert world.active == {PAIR[board]}
    world.stop_vm("vm")
    for missing in (world.host.hypervisor.disconnect, world.blind):
        missing()
        world.reconcile()
        assert world.active == {PAIR[board]}
        world.host.hypervisor.reconnect()
        world.see()
    world.settle()
    assert world.active == set()
    assert world.told("partition") == ["to be deactivated", "deactivated"]


def test_nothing_is_deactivated_that_a_vm_opened_after_the_look() -> None:
    world = World()
    lease = world.allocate("a", "r", count=2)
    world.release(lease.id)
    take_turn = world.controller.reconciler._turn.within

    @contextlib.contextmanager
    def start_first(timeout: float) -> Iterator[Budget]:
        if not world.held:
            world.start_vm("vm", lease.gpus)
        with take_turn(timeout) as budget:
            yield budget

    world.controller.reconciler._turn.within = start_first  # type: ignore[method-assign]
    world.reconcile()
    assert (world.active, world.line.calls) == ({3}, [(Operation.ACTIVATE, 3)])


@pytest.mark.parametrize("board", BOARDS)
def test_a_partition_that_another_tool_deactivated_is_activated_again(board: str) -> None:
    world = World(board)
    lease = world.allocate("a", "r", count=2)
    world.nvfm.deactivate(lease.partitions[0], timeout=1)
    world.settle()
    assert world.active == set(lease.partitions)
    assert "interrupted" in world.told("lease")


@pytest.mark.parametrize("board", BOARDS)
def test_a_table_that_changed_marks_the_leases_and_guesses_nothing(board: str) -> None:
    world = World(board)
    lease = world.allocate("a", "1", partition_id=PAIR[board])
    other = world.allocate("b", "2", count=4)
    changed = World({"hgx-h100-8": "hgx-b200-8", "hgx-b200-8": "hgx-h100-8"}[board])
    world.start_fresh()
    world.nvfm.replace(Fabric.started(changed.platform, now=world.now))
    before = len(world.line.calls)
    world.settle()
    assert "the partition table has no partitions" in world.lease(lease.id).reason
    assert (world.lease(lease.id).state, world.lease(other.id).state) == (LeaseState.ACTIVE, LeaseState.ACTIVE)
    asked = [partition for _, partition in world.line.calls[before:]]
    assert PAIR[board] not in asked
    world.release(lease.id)
    world.settle()
    assert world.lease(lease.id).state is LeaseState.RELEASED
    world.start_fresh()
    world.settle()
    assert (world.active, world.lease(other.id).reason) == (set(other.partitions), "")


def test_a_full_store_stops_what_is_to_be_written_first() -> None:
    world = World("hgx-h100-8", Rules(Mode.MANAGE, Unowned.DEACTIVATE))
    lease = world.allocate("a", "r", count=2)
    assert lease
    world.nvfm.activate(4, timeout=1)
    world.start_vm("vm", (1, 3))
    world.store.full_commits = 2
    with pytest.raises(StoreUnusable):
        world.reconcile()
    assert world.active == {3, 4}
    world.settle()
    assert world.active == {3}


def test_a_list_that_is_older_than_a_change_is_not_gone_on_from() -> None:
    world = World()
    lease = world.allocate("a", "r", count=2)
    world.restart_daemon()
    list_partitions = world.line.list_partitions

    def slow(*, timeout: float) -> PartitionList:
        listed = list_partitions(timeout=timeout)
        world.line.list_partitions = list_partitions  # type: ignore[method-assign]
        world.release(lease.id, wait=True)
        return listed

    world.line.list_partitions = slow  # type: ignore[method-assign]
    world.controller.list_partitions(timeout=1)
    assert world.controller.fabric.seen == world.listed
