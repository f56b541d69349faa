# SPDX-License-Identifier: Apache-2.0
"""A host with a layout: what is used, what is kept active for nobody, and what becomes of it when things die."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import replace

import pytest

from fmctl.core.allocate import Shape
from fmctl.core.book import Kind, Mark, MarkKind, of_lease, of_mark
from fmctl.core.errors import (
    ActivationFailed,
    BadRequest,
    FmctlError,
    HostCordoned,
    NoCapacity,
    NoSuchPartition,
    OutcomeUnknown,
    PartitionHeld,
    PolicyDenied,
    VmRunning,
)
from fmctl.core.fmcode import Operation
from fmctl.core.layout import OWNER, Layout, LayoutState
from fmctl.core.lease import Lease, LeaseState
from fmctl.core.policy import Policy
from fmctl.core.request import Request
from fmctl.core.rules import Mode, Rules
from tests.control.leasing import BOARDS, TIMEOUT, World, refuse

PAIRS = {3, 4, 5, 6}
"""The partitions of two GPUs of an H100 board."""


def apply(world: World, text: str = "", *, kept: bool | None = None, dry_run: bool = False) -> LayoutState:
    return world.controller.layouts.apply(text, keep_active=kept, actor="a person", timeout=TIMEOUT, dry_run=dry_run)


def differences(world: World, text: str = "", *, kept: bool | None = None) -> tuple[str, ...]:
    return world.controller.layouts.state(text, keep_active=kept, timeout=1).differences


def kept(world: World) -> list[Lease]:
    """The layout's own leases."""
    return [lease for lease in world.leases if lease.owner == OWNER]


def standing(text: str = "4x2", board: str = "hgx-h100-8", **settings: object) -> World:
    """A host whose layout is kept active."""
    world = World(board, **settings)  # type: ignore[arg-type]
    apply(world, text, kept=True)
    world.settle()
    return world


def test_only_the_layout_s_partitions_are_used() -> None:
    world = World()
    found = apply(world, "4x2", kept=False)
    assert (found.applied, found.shown, found.differences) == ("4x2 on 3,4,5,6", "4x2 on 3,4,5,6", ())
    assert [(row.partition_id, row.active, row.owner) for row in found.rows] == [(p, False, "") for p in sorted(PAIRS)]
    assert refuse(world, "a", "1", count=1) is NoSuchPartition
    assert refuse(world, "a", "2", partition_id=7) is PolicyDenied
    assert refuse(world, "a", "3", gpu_ids=(1, 2, 3, 4)) is PolicyDenied
    with pytest.raises(PolicyDenied, match="not in its layout 4x2"):
        world.activate("a", 1)
    lease = world.allocate("a", "4", count=1, shape=Shape.ROUND_UP)
    assert (set(lease.partitions) <= PAIRS, len(lease.spare)) == (True, 1)
    queries = world.controller.queries
    assert queries.capacity(timeout=1).partitions == {2: 3}
    assert queries.can_allocate((2, 2, 2), timeout=1)
    assert queries.can_allocate((1,), timeout=1) is None
    assert queries.rules == ("the layout is 4x2 on 3,4,5,6",)
    world.settle()
    assert world.active == set(lease.partitions)
    apply(world, "none")
    assert world.allocate("a", "1", count=1)


def test_a_layout_outlives_the_daemon_and_is_in_the_journal() -> None:
    world = World()
    apply(world, "2x4", kept=False)
    world.restart_daemon()
    assert refuse(world, "a", "1", count=2) is NoSuchPartition
    entry = world.store.entries(0, limit=10)[-1]
    assert (entry.kind, entry.what, entry.actor, entry.detail) == (Kind.HOST, "layout", "a person", "2x4 on 1,2")
    before = world.store.book.revision
    apply(world, "2x4", kept=False)
    assert world.store.book.revision == before
    apply(world, "none")
    assert world.store.entries(0, limit=10)[-1].what == "no longer layout"


def test_the_settings_name_the_layout_that_apply_takes() -> None:
    world = World(policy=Policy(layout=Layout.parse("2x4"), keep_layout_active=True))
    assert differences(world) == ("the settings want the layout 2x4, and none is applied",)
    assert world.allocate("a", "1", partition_id=7)
    found = apply(world)
    assert (found.settings, found.applied) == ("2x4", "2x4 on 1,2, kept active")
    apply(world, "4x2", kept=False)
    assert "the settings want the layout 2x4, and 4x2 on 3,4,5,6 is applied" in differences(world)
    with pytest.raises(BadRequest, match=r"policy\.layout is not set"):
        apply(World())


@pytest.mark.parametrize(("text", "error"), [("3x3", BadRequest), ("two", BadRequest), ("2x3", NoSuchPartition)])
def test_a_layout_that_cannot_be_is_refused_and_nothing_changes(text: str, error: type[FmctlError]) -> None:
    world = World()
    with pytest.raises(error):
        apply(world, "17x1" if text == "3x3" else text)
    with pytest.raises(error):
        differences(world, "17x1" if text == "3x3" else text)
    assert world.store.book.marks.keys() <= {(Kind.HOST, "", MarkKind.MET)}


def test_what_a_tenant_holds_outside_stays_until_it_is_released_and_is_told() -> None:
    world = World()
    lease = world.allocate("a", "1", partition_id=7)
    other = world.allocate("a", "2", partition_id=2)
    told = (
        f"lease {lease.id} of a holds partition 7, which is not in the layout 4x2",
        f"lease {other.id} of a holds partition 2, which is not in the layout 4x2",
    )
    assert differences(world, "4x2", kept=True)[:3] == (
        "the layout 4x2 on 3,4,5,6, kept active is not applied, but none",
        *told,
    )
    assert apply(world, "4x2", kept=True, dry_run=True).applied == ""
    assert apply(world, "4x2", kept=True).differences[:2] == told
    world.settle()
    assert world.active == {7, 2, 4}
    assert set(told) <= set(world.controller.reconciler.drift)
    assert set(told) <= set(world.controller.reconciler.preview(timeout=1).drift)
    assert world.allocate("a", "1", partition_id=7) == world.lease(lease.id)
    world.release(other.id)
    world.settle()
    assert world.active == {7, 4, 5, 6}
    world.release(lease.id)
    world.settle()
    assert (world.active, differences(world)) == (PAIRS, ())


def test_a_layout_takes_the_partitions_that_tenants_hold() -> None:
    world = World()
    world.allocate("a", "1", partition_id=2)
    world.allocate("a", "2", partition_id=10)
    assert apply(world, "4+2+1+1", kept=False).differences == ()
    assert {2, 10} <= {row.partition_id for row in apply(world, "4+2+1+1", kept=False).rows}


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize("text", ["8x1", "4x2", "2x4", "1x8", "4+2+1+1"])
def test_a_layout_is_kept_active_for_nobody(board: str, text: str) -> None:
    world = standing(text, board)
    sizes = sorted(len(world.gpus_of(p)) for p in world.active or ())
    assert sizes == sorted(Layout.parse(text).sizes)
    assert {(lease.state, lease.owner) for lease in kept(world)} == {(LeaseState.ACTIVE, OWNER)}
    assert differences(world) == ()
    assert world.controller.queries.capacity(timeout=1).gpus.free == 8
    calls = list(world.line.calls)
    world.settle()
    assert world.line.calls == calls


def test_what_is_kept_active_is_planned_before_it_is_done() -> None:
    world = World()
    apply(world, "2x4", kept=True)
    preview = world.controller.reconciler.preview(timeout=1)
    assert [type(step).__name__ for step in preview.steps] == ["Write", "Write"]
    assert (world.active, kept(world)) == (set(), [])
    assert len(differences(world)) == 2


def test_a_tenant_takes_over_an_active_partition_without_a_call_by_one_commit() -> None:
    world = standing()
    calls, before = len(world.line.calls), world.store.book.revision
    lease = world.allocate("a", "r", count=2)
    assert (lease.state, lease.partitions, lease.generation) == (LeaseState.ACTIVE, (3,), 1)
    assert (len(world.line.calls), world.store.book.revision) == (calls, before + 2)
    told = world.store.entries(before, limit=10)
    assert [(entry.what, entry.actor) for entry in told] == [("taken over", "a"), ("active", "a")]
    assert world.lease(told[0].subject).state is LeaseState.RELEASED
    assert len(kept(world)) == 3
    world.settle()
    assert world.active == PAIRS
    assert len(world.line.calls) == calls
    world.release(lease.id)
    world.settle()
    assert (world.active, len(kept(world))) == (PAIRS, 4)
    assert world.line.calls[calls:] == [(Operation.DEACTIVATE, 3), (Operation.ACTIVATE, 3)]


def test_the_reconciler_is_woken_once_a_partition_is_the_layout_s_again() -> None:
    world = standing()
    lease = world.allocate("a", "r", count=2)
    before = world.wakes
    world.release(lease.id, wait=True)
    assert (world.wakes, world.active) == (before + 1, PAIRS - {3})


def test_several_partitions_are_taken_over_together() -> None:
    world = standing("8x1")
    calls = len(world.line.calls)
    lease = world.allocate("a", "r", count=3, shape=Shape.UNLINKED)
    assert (lease.state, len(lease.partitions), len(kept(world))) == (LeaseState.ACTIVE, 3, 5)
    assert len(world.line.calls) == calls
    assert world.activate("b", 14).state is LeaseState.ACTIVE
    assert world.allocate("c", "r", count=1, wait=False).state is LeaseState.ACTIVE
    assert refuse(world, "d", "r", count=4, shape=Shape.UNLINKED) is NoCapacity
    assert len(world.line.calls) == calls


def test_a_dry_run_and_a_refusal_take_nothing_over() -> None:
    world = standing(policy=Policy(max_gpus_per_owner=2))
    before = world.store.book.revision
    assert world.controller.leases.try_out(Request("a", "r", count=2), timeout=TIMEOUT).gpus == (1, 3)
    assert refuse(world, "a", "r", count=3, shape=Shape.ROUND_UP) is NoSuchPartition
    with pytest.raises(FmctlError, match="cancelled"):
        world.allocate("a", "r", count=2, alive=lambda: False)
    assert (world.store.book.revision, world.active) == (before, PAIRS)
    assert world.controller.policy.max_gpus_per_owner == 2
    world.allocate("a", "r", count=2)
    with pytest.raises(NoCapacity, match="max_gpus_per_owner is 2, and it holds 2"):
        world.allocate("a", "s", count=2)


def test_a_partition_that_a_fresh_fabric_manager_lost_is_activated_for_the_tenant() -> None:
    world = standing()
    world.start_fresh()
    assert world.active == set()
    lease = world.allocate("a", "r", count=2)
    assert (lease.state, world.active) == (LeaseState.ACTIVE, {3})
    world.settle()
    assert (world.active, len(kept(world))) == (PAIRS, 3)


def test_the_layout_survives_fabric_manager_the_service_vm_and_the_daemon() -> None:
    world = standing()
    leases = {lease.id for lease in kept(world)}
    world.restart_fabric_manager()
    world.restart_daemon()
    world.settle()
    assert (world.active, {lease.id for lease in kept(world)}) == (PAIRS, leases)
    world.lose_service_vm()
    world.settle()
    assert (world.active, {lease.id for lease in kept(world)}) == (PAIRS, leases)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("nth", range(1, 12))
@pytest.mark.parametrize("what", ["commit", "call"])
def test_a_daemon_that_dies_anywhere_leaves_a_layout_that_comes_to_be(what: str, nth: int, *, after: bool) -> None:
    world = World()
    apply(world, "4x2", kept=True)
    world.fate.decide(what, nth, after=after)
    world.mortal(world.reconcile)
    with contextlib.suppress(NoCapacity):  # what Fabric Manager was asked for may come to be yet
        world.mortal(lambda: world.allocate("a", "r", count=2))
    world.settle()
    lease = world.allocate("a", "r", count=2)
    world.settle()
    assert world.lease(lease.id).state is LeaseState.ACTIVE
    assert (world.active, len(kept(world)), differences(world)) == (PAIRS, 3, ())


@pytest.mark.parametrize("after", [False, True])
def test_a_take_over_is_whole_or_not_at_all(*, after: bool) -> None:
    world = standing()
    world.fate.decide("commit", 1, after=after)
    assert world.mortal(lambda: world.allocate("a", "r", count=2)) is None
    assert (len(kept(world)), len(world.leases)) == ((3, 4) if after else (4, 4))
    assert world.allocate("a", "r", count=2).state is LeaseState.ACTIVE
    world.settle()
    assert (world.active, len(kept(world))) == (PAIRS, 3)


@pytest.mark.parametrize("how", ["cordoned", "degraded", "observed"])
def test_a_host_that_takes_no_new_work_activates_nothing(how: str) -> None:
    world = World()
    apply(world, "4x2", kept=True)
    if how == "cordoned":
        world.controller.cordon("why", actor="a person")
    elif how == "degraded":
        world.gate.reason = "why"
    else:
        world.rules = Rules(Mode.OBSERVE)
        world.restart_daemon()
    world.settle()
    assert (world.active, world.leases) == (set(), [])
    assert any("takes no new work" in text for text in world.controller.reconciler.drift)
    if how == "observed":
        with pytest.raises(HostCordoned):
            apply(world, "2x4")
        return
    apply(world, "2x4", kept=True)
    world.settle()
    assert world.active == set()
    world.controller.uncordon(actor="a person")
    world.gate.reason = ""
    world.settle()
    assert world.active == {1, 2}


def test_a_cordon_ends_what_is_not_active_yet() -> None:
    world = World("hgx-h100-8", Rules(Mode.MANAGE), "code=-2@activate:1+")
    apply(world, "2x4", kept=True)
    world.reconcile()
    assert {lease.state for lease in kept(world)} == {LeaseState.ACTIVATING}
    world.controller.cordon("why", actor="a person")
    world.wait(100.0)
    world.settle()
    assert (world.active, world.leases) == (set(), [])


def test_a_cordon_leaves_what_was_active_before() -> None:
    world = standing()
    world.start_fresh()
    world.line.cut = 10_000
    with pytest.raises(FmctlError):
        world.reconcile()
    world.controller.cordon("why", actor="a person")
    world.settle()
    assert (world.active, len(kept(world))) == (PAIRS, 4)
    assert refuse(world, "a", "r", count=2) is HostCordoned


def test_another_layout_takes_the_place_of_the_one_before() -> None:
    world = standing("4x2")
    lease = world.allocate("a", "r", partition_id=3)
    apply(world, "2x4", kept=True)
    before = world.store.book.revision, len(world.line.calls)
    assert refuse(world, "b", "r", partition_id=2) is PartitionHeld
    assert (world.store.book.revision, len(world.line.calls)) == before
    world.settle()
    assert world.active == {3, 2}
    assert differences(world) == (f"lease {lease.id} of a holds partition 3, which is not in the layout 2x4",)
    world.release(lease.id)
    world.settle()
    assert (world.active, differences(world)) == ({1, 2}, ())
    apply(world, "2x4", kept=False)
    world.settle()
    assert (world.active, world.leases) == (set(), [])
    apply(world, "none")
    assert world.allocate("b", "s", count=1)


def test_gpus_that_somebody_holds_are_neither_activated_nor_let_go_nor_taken_over() -> None:
    world = World()
    world.start_vm("stray", (1, 3))
    apply(world, "4x2", kept=True)
    world.settle()
    assert world.active == PAIRS - {3}
    world.stop_vm("stray")
    world.settle()
    assert world.active == PAIRS
    world.start_vm("stray", (1,))
    with pytest.raises(VmRunning):
        world.allocate("a", "r", partition_id=3)
    apply(world, "none")
    world.settle()
    assert (world.active, [lease.state for lease in kept(world)]) == ({3}, [LeaseState.ACTIVE])
    assert any("is kept, though there is no layout any more" in text for text in world.controller.reconciler.drift)
    world.stop_vm("stray")
    world.settle()
    assert world.active == set()


def test_a_vm_that_runs_under_a_lease_of_the_layout_keeps_it() -> None:
    world = standing()
    world.start_vm("stray", (1, 3))
    world.settle()
    assert next(lease for lease in kept(world) if lease.partitions == (3,)).vm_seen
    assert world.allocate("a", "r", count=2).partitions == (4,)
    assert refuse(world, "a", "s", partition_id=3) is PartitionHeld
    world.stop_vm("stray")
    world.settle()
    assert world.allocate("a", "s", partition_id=3).state is LeaseState.ACTIVE


def test_who_holds_gpus_must_be_known() -> None:
    world = World()
    world.blind()
    apply(world, "4x2", kept=True)
    world.settle()
    assert world.active == set()
    world.see()
    world.settle()
    world.blind()
    apply(world, "none")
    world.settle()
    assert world.active == PAIRS
    world.see()
    world.settle()
    assert world.active == set()


def test_a_partition_that_cannot_be_activated_is_tried_again_later_and_in_nobody_s_way() -> None:
    world = World("hgx-h100-8", Rules(Mode.MANAGE), "code=-2@activate:1+")
    apply(world, "2x4", kept=True)
    world.reconcile()
    before = world.store.book.revision
    world.reconcile()
    assert world.store.book.revision == before
    assert len(differences(world)) == 2
    world.settle()
    assert (world.active, differences(world)) == ({1, 2}, ())


def test_a_partition_with_an_nvlink_error_is_cordoned_and_not_tried_again() -> None:
    world = World("hgx-h100-8", Rules(Mode.MANAGE), "code=-10@activate:1")
    apply(world, "4x2", kept=True)
    world.reconcile()
    world.reconcile()
    assert (Kind.PARTITION, "3", MarkKind.CORDONED) in world.store.book.marks
    assert (world.active, len(kept(world))) == (PAIRS - {3}, 3)
    assert any("partition 3 is cordoned" in text for text in world.controller.reconciler.drift)
    assert world.allocate("a", "r", count=2).partitions != (3,)


def test_what_is_set_aside_is_let_go() -> None:
    world = standing()
    mark = Mark(MarkKind.QUARANTINED, "it failed", 1.0)
    world.store.commit((of_mark(Kind.GPU, "1", mark),), at=1.0)
    world.settle()
    assert world.active == PAIRS - {3}
    assert any("GPU 1 is quarantined (it failed)" in text for text in world.controller.reconciler.drift)


def test_what_another_tool_activated_is_left_and_told() -> None:
    world = World()
    world.nvfm.activate(1, timeout=1)
    apply(world, "4x2", kept=True)
    world.settle()
    assert world.active == {1, 5, 6}
    assert "partition 1 is active for nobody known, and not in the layout 4x2" in differences(world)


def test_a_call_that_may_take_effect_yet_is_waited_out() -> None:
    world = World()
    world.nvfm.activate(3, timeout=1)
    world.reconcile()
    world.line.late = 50.0
    with pytest.raises(OutcomeUnknown):
        world.deactivate("a", 3)
    world.nvfm.deactivate(3, timeout=1)
    apply(world, "4x2", kept=True)
    world.reconcile()
    assert world.active == PAIRS - {3}
    world.wait(100.0)
    world.settle()
    assert world.active == PAIRS


def test_a_lease_of_the_layout_that_ends_is_not_taken_over() -> None:
    world = standing()
    apply(world, "4x2", kept=False)
    world.line.cut = 10_000
    with pytest.raises(FmctlError):
        world.reconcile()
    world.line.mend()
    assert {lease.state for lease in kept(world)} == {LeaseState.RELEASING}
    assert refuse(world, "a", "r", count=2) is NoCapacity
    world.settle()
    assert world.allocate("a", "r", count=2).state is LeaseState.ACTIVE


def test_what_another_tool_activated_before_the_layout_did_is_not_taken_over() -> None:
    world = World()
    apply(world, "4x2", kept=True)
    world.fate.decide("commit", 1, after=True)
    world.mortal(world.reconcile)
    (first,) = kept(world)
    assert first.state is LeaseState.PENDING
    world.nvfm.activate(first.partitions[0], timeout=1)
    assert refuse(world, "a", "r", partition_id=first.partitions[0]) is PartitionHeld
    assert (world.active, world.store.by_request("a", "r")) == (set(first.partitions), None)


def test_a_lease_that_nobody_waits_for_takes_over_what_is_active_of_it() -> None:
    world = standing("8x1")
    world.nvfm.deactivate(8, timeout=1)
    lease = world.allocate("a", "r", count=8, shape=Shape.UNLINKED, wait=False)
    assert lease.state is LeaseState.ACTIVATING
    world.settle()
    assert (world.lease(lease.id).state, len(world.active or ())) == (LeaseState.ACTIVE, 8)


def test_a_lease_is_not_moved_to_what_the_layout_holds() -> None:
    world = World("hgx-h100-8", Rules(Mode.MANAGE), "code=-10@activate:9")
    apply(world, "8x1", kept=True)
    world.reconcile()
    world.nvfm.deactivate(7, timeout=1)
    assert refuse(world, "a", "r", count=2, shape=Shape.UNLINKED) is ActivationFailed
    world.settle()
    held = [partition for lease in world.leases for partition in lease.partitions]
    assert (sorted(held), world.active) == (list(range(8, 15)), set(range(8, 15)))


def test_a_lease_keeps_what_the_one_in_whose_place_it_is_had_open() -> None:
    world = standing()
    (first, *_) = kept(world)
    until = world.now + 50.0
    world.store.commit((of_lease(replace(first, unsettled_until=until), "told"),), at=world.now)
    lease = world.allocate("a", "r", partition_id=first.partitions[0])
    assert (lease.state, lease.unsettled_until) == (LeaseState.ACTIVE, until)


def test_a_partition_outside_is_outside_whoever_has_its_gpus() -> None:
    world = standing()
    assert refuse(world, "b", "1", partition_id=1) is PolicyDenied
    world.allocate("a", "r", partition_id=3)
    assert refuse(world, "b", "2", partition_id=1) is PolicyDenied


def test_a_lease_of_the_layout_is_nobody_s_to_change() -> None:
    world = standing()
    (first, *_) = kept(world)
    for change in (
        lambda: world.release(first.id),
        lambda: world.update(first.id, labels={"a": "b"}),
        lambda: world.deactivate("a", first.partitions[0], force=True),
    ):
        with pytest.raises(PolicyDenied, match="system:layout"):
            change()
    with pytest.raises(PartitionHeld):
        world.deactivate("a", first.partitions[0])
    with pytest.raises(BadRequest):
        world.allocate(OWNER, "r", count=2)
    assert world.active == PAIRS


def test_a_tenant_goes_first_while_the_layout_is_being_activated() -> None:
    world = World()
    apply(world, "4x2", kept=True)
    world.line.cut = 0
    for number in itertools.count(1):
        world.fate.decide("commit", number, after=True)
        if world.mortal(world.reconcile) is not None or len(kept(world)) == 4:
            break
        if kept(world):
            break
    assert {lease.state for lease in kept(world)} <= {LeaseState.PENDING, LeaseState.ACTIVATING}
    lease = world.allocate("a", "r", partition_id=kept(world)[0].partitions[0])
    assert lease.state is LeaseState.ACTIVE
    world.settle()
    assert world.active == PAIRS


def test_apply_waits_for_what_can_be_done() -> None:
    world = World()
    world.controller.layouts._wake = world.reconcile
    found = world.controller.layouts.apply("4x2", keep_active=True, actor="x", timeout=5, wait=True)
    assert (found.differences, world.active) == ((), PAIRS)
