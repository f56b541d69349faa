# SPDX-License-Identifier: Apache-2.0
"""How leases are changed and how they end: by release, or by expiry under no VM."""

from __future__ import annotations

from typing import Any

import pytest

from fmctl.core.allocate import Shape
from fmctl.core.errors import (
    BadRequest,
    FabricNotReady,
    NoSuchLease,
    OutcomeUnknown,
    PartitionHeld,
    VmRunning,
)
from fmctl.core.fmcode import Operation
from fmctl.core.lease import LeaseState
from fmctl.core.plan import LATE
from tests.control.leasing import World, nothing_is_left, refuse, uuid_of

PAIR, OTHER_PAIR, QUAD, BOARD = 3, 4, 1, 0
"""Partitions of an H100 board: the GPUs 1 and 3, 2 and 4, the first four, and all."""


def test_nothing_is_granted_while_a_vm_s_holder_cannot_be_told_of_a_release() -> None:
    world = World()
    lease = world.allocate("a", "r", count=2)
    world.blind()
    with pytest.raises(VmRunning, match="cannot be told"):
        world.release(lease.id)
    assert world.lease(lease.id).state is LeaseState.ACTIVE


def test_nobody_releases_another_s_lease_and_none_that_is_not_there() -> None:
    world = World()
    lease = world.allocate("a", "r", count=2)
    with pytest.raises(PartitionHeld, match="owner 'a'"):
        world.release(lease.id, owner="b")
    with pytest.raises(NoSuchLease):
        world.release("nothing")
    assert world.release(lease.id, owner="a").state is LeaseState.RELEASING


def test_a_release_again_is_answered_as_it_is() -> None:
    world = World()
    lease = world.allocate("a", "r", count=2)
    assert world.release(lease.id).state is LeaseState.RELEASING
    revision = world.store.book.revision
    assert world.release(lease.id).state is LeaseState.RELEASING
    assert world.store.book.revision == revision
    assert world.release(lease.id, wait=True).state is LeaseState.RELEASED
    assert world.release(lease.id, wait=True).state is LeaseState.RELEASED
    assert world.line.calls.count((Operation.DEACTIVATE, PAIR)) == 1


def test_a_lease_whose_gpus_a_vm_has_is_not_released() -> None:
    world = World()
    lease = world.allocate("a", "r", count=2)
    world.start_vm("vm", lease.gpus)
    for wait in (False, True):
        with pytest.raises(VmRunning, match="qemu"):
            world.release(lease.id, wait=wait)
    assert (world.lease(lease.id).state, world.active) == (LeaseState.ACTIVE, {PAIR})
    world.stop_vm("vm")
    assert world.release(lease.id, wait=True).state is LeaseState.RELEASED


def test_a_vm_on_the_spare_gpu_of_a_lease_is_in_the_way_of_its_end() -> None:
    world = World()
    lease = world.allocate("a", "r", count=3, shape=Shape.ROUND_UP)
    world.start_vm("vm", lease.spare)
    with pytest.raises(VmRunning):
        world.release(lease.id)


def test_a_release_while_fabric_manager_is_away_is_recorded_and_finished_later() -> None:
    world = World()
    lease = world.allocate("a", "r", count=2)
    world.stop_fabric_manager()
    assert world.release(lease.id).state is LeaseState.RELEASING
    with pytest.raises(FabricNotReady):
        world.release(lease.id, wait=True)
    world.restart_daemon()
    assert refuse(world, "b", "r", count=8) is FabricNotReady
    assert world.restart_fabric_manager() == (PAIR,)
    world.settle()
    assert (world.lease(lease.id).state, world.active) == (LeaseState.RELEASED, set())


def test_what_is_left_of_a_request_can_be_released() -> None:
    world = World()
    world.line.late = 10
    assert refuse(world, "a", "r", count=2) is OutcomeUnknown
    left = world.leases[0]
    with pytest.raises(FabricNotReady, match="goes on by itself"):
        world.release(left.id, wait=True)
    world.wait(LATE)
    assert world.release(left.id, wait=True).state is LeaseState.FAILED
    assert nothing_is_left(world)


def test_a_lease_is_changed_as_it_is_known_or_not_at_all() -> None:
    world = World()
    lease = world.allocate("a", "r", count=2)
    changed = world.update(lease.id, lease.etag, vm_uuid=uuid_of("vm"), labels={"x": "y"}, lifetime=60.0)
    assert (changed.vm_uuid, changed.labels, changed.expires) == (uuid_of("vm"), {"x": "y"}, world.now + 60)
    with pytest.raises(PartitionHeld, match="etag"):
        world.update(lease.id, lease.etag, labels={})
    assert world.update(lease.id, changed.etag) == changed
    assert world.update(lease.id, lifetime=0.0).expires is None
    assert world.allocate("a", "r", count=2).labels == {"x": "y"}


@pytest.mark.parametrize("changes", [{"vm_uuid": "vm"}, {"labels": {"": "x"}}, {"labels": {"x": "\n"}}])
def test_a_change_that_is_malformed_is_refused(changes: dict[str, Any]) -> None:
    world = World()
    lease = world.allocate("a", "r", count=2)
    with pytest.raises(BadRequest):
        world.update(lease.id, **changes)
    assert world.lease(lease.id) == lease


def test_a_lease_that_is_over_is_not_changed() -> None:
    world = World()
    lease = world.allocate("a", "r", count=2)
    world.release(lease.id, wait=True)
    with pytest.raises(NoSuchLease, match="released"):
        world.update(lease.id, labels={})


def test_a_lease_is_given_to_another_vm_only_while_none_runs_under_it() -> None:
    world = World()
    lease = world.allocate("a", "r", count=2, vm_uuid=uuid_of("vm"))
    world.start_vm("vm", lease.gpus)
    world.reconcile()
    with pytest.raises(VmRunning):
        world.update(lease.id, vm_uuid=uuid_of("other"))
    world.stop_vm("vm")
    world.reconcile()
    for name in ("other", "third"):
        assert world.update(lease.id, vm_uuid=uuid_of(name)).vm_uuid == uuid_of(name)
    world.start_vm("third", lease.gpus)
    world.reconcile()
    assert (world.lease(lease.id).vm_gone, world.lease(lease.id).vm_generation) == (None, 1)


def test_a_lease_that_a_vm_used_never_expires_whichever_vm_it_is_for_now() -> None:
    world = World()
    lease = world.allocate("a", "r", count=2, lifetime=60.0)
    world.start_vm("vm", lease.gpus)
    world.reconcile()
    world.stop_vm("vm")
    world.reconcile()
    world.update(lease.id, vm_uuid=uuid_of("other"))
    world.wait(100)
    world.settle()
    assert (world.lease(lease.id).state, world.active) == (LeaseState.ACTIVE, {PAIR})


def test_a_lease_expires_unless_a_vm_was_seen_under_it() -> None:
    world = World()
    unused = world.allocate("a", "1", count=2, lifetime=60.0)
    used = world.allocate("a", "2", count=2, lifetime=60.0)
    world.start_vm("vm", used.gpus)
    world.wait(30)
    world.reconcile()
    world.stop_vm("vm")
    world.wait(29)
    world.reconcile()
    assert world.lease(unused.id).state is LeaseState.ACTIVE
    world.wait(2)
    world.reconcile()
    assert world.lease(unused.id).state is LeaseState.RELEASED
    world.settle()
    assert world.lease(used.id).state is LeaseState.ACTIVE
    assert world.active == set(used.partitions)
