# SPDX-License-Identifier: Apache-2.0
"""What becomes of leases and their VMs when Fabric Manager or the Service VM dies."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fmctl.core.allocate import Shape
from fmctl.core.answers import FabricState
from fmctl.core.errors import (
    FabricNotReady,
)
from fmctl.core.lease import LeaseState
from fmctl.core.plan import INTERRUPTED
from fmctl.core.rules import Mode, Rules
from tests.control.leasing import BOARDS, World, uuid_of


def test_a_restart_is_told_exactly_what_active_leases_hold() -> None:
    world = World()
    world.process.die()
    assert world.restart_fabric_manager() == ()
    assert world.active == set()
    first, second = (world.allocate("a", f"{n}", count=2) for n in range(2))
    world.release(second.id, wait=True)
    world.nvfm.activate(2, timeout=1)
    world.process.die()
    assert world.restart_fabric_manager() == first.partitions
    assert world.active == set(first.partitions)
    world.settle()
    assert world.lease(first.id) == first
    assert "interrupted" not in world.told()


def test_a_restart_by_a_new_daemon_is_told_the_same() -> None:
    world = World()
    lease = world.allocate("a", "r", count=2)
    world.process.die()
    world.restart_daemon()
    assert world.restart_fabric_manager() == lease.partitions


def test_what_ends_is_told_to_a_restart_and_deactivated_after_it() -> None:
    world = World()
    lease = world.allocate("a", "r", count=2)
    world.process.die()
    world.release(lease.id)
    assert world.restart_fabric_manager() == lease.partitions
    world.settle()
    assert (world.active, world.leases) == (set(), [])


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize("loss", [World.stop_fabric_manager, World.lose_service_vm], ids=["FM", "Service VM"])
def test_a_fabric_that_came_back_empty_is_made_what_it_was_and_the_lease_says_so(
    board: str, loss: Callable[[World], None]
) -> None:
    world = World(board)
    lease = world.allocate("a", "r", count=2)
    other = world.allocate("b", "r", count=2, shape=Shape.UNLINKED)
    loss(world)
    with pytest.raises(FabricNotReady):
        world.reconcile()
    world.start_fresh()
    assert world.active == set()
    world.settle()
    assert world.active == {*lease.partitions, *other.partitions}
    again = world.lease(lease.id)
    assert (again.state, again.reason, again.generation) == (LeaseState.ACTIVE, "", 2)
    events = [entry for entry in world.store.entries(lease.revision, limit=100) if entry.subject == lease.id]
    assert [entry.what for entry in events] == ["interrupted", "active again"]
    assert events[0].detail == INTERRUPTED


def test_a_vm_from_before_a_fresh_start_is_interrupted_until_it_starts_again() -> None:
    world = World()
    lease = world.allocate("a", "r", count=2)
    single = world.allocate("b", "r", count=1)
    world.start_vm("vm", lease.gpus)
    world.start_vm("single", single.gpus)
    world.settle()
    queries = world.controller.queries
    assert not queries.is_interrupted(world.lease(lease.id))
    world.start_fresh()
    world.settle()
    assert queries.is_interrupted(world.lease(lease.id))
    assert not queries.is_interrupted(world.lease(single.id))
    world.stop_vm("vm")
    world.settle()
    assert queries.is_interrupted(world.lease(lease.id))
    world.start_vm("vm", lease.gpus)
    world.settle()
    assert not queries.is_interrupted(world.lease(lease.id))


def test_a_vm_that_is_seen_to_reboot_has_its_nvlinks_again_and_one_that_nobody_saw_has_not() -> None:
    world = World()
    lease = world.allocate("a", "r", count=2)
    world.start_vm("vm", lease.gpus)
    world.settle()
    world.start_fresh()
    world.settle()
    world.host.hypervisor.reboot(uuid_of("vm"))
    world.settle()
    queries = world.controller.queries
    assert queries.is_interrupted(world.lease(lease.id))
    world.host.hypervisor.watch(lambda: None)
    world.restart_daemon()
    world.host.hypervisor.reboot(uuid_of("vm"))
    world.settle()
    assert not queries.is_interrupted(world.lease(lease.id))
    world.start_fresh()
    world.settle()
    assert queries.is_interrupted(world.lease(lease.id))


def test_a_vm_that_started_while_fabric_manager_was_away_is_interrupted_by_a_fresh_start() -> None:
    world = World()
    lease = world.allocate("a", "r", count=2)
    world.stop_fabric_manager()
    world.start_vm("vm", lease.gpus)
    with pytest.raises(FabricNotReady):
        world.reconcile()
    assert world.lease(lease.id).vm_generation == 1
    world.start_fresh()
    world.settle()
    assert world.controller.queries.is_interrupted(world.lease(lease.id))


def test_a_vm_that_no_daemon_saw_start_is_interrupted_by_a_fresh_start() -> None:
    world = World()
    lease = world.allocate("a", "r", count=2)
    world.start_vm("vm", lease.gpus)
    world.start_fresh()
    world.restart_daemon()
    world.settle()
    assert (world.lease(lease.id).generation, world.lease(lease.id).vm_generation) == (2, 1)
    assert world.controller.queries.is_interrupted(world.lease(lease.id))


def test_what_needs_no_fabric_manager_is_done_while_it_is_away() -> None:
    world = World()
    expiring = world.allocate("a", "1", count=2, lifetime=60.0)
    used = world.allocate("a", "2", count=2)
    world.start_vm("vm", used.gpus)
    world.stop_fabric_manager()
    world.wait(61)
    with pytest.raises(FabricNotReady):
        world.reconcile()
    assert world.lease(expiring.id).state is LeaseState.RELEASING
    assert world.lease(used.id).vm_seen
    assert world.controller.refresh()[0] is FabricState.ENDED


def test_a_lease_whose_vm_is_gone_is_kept_and_reported() -> None:
    world = World()
    lease = world.allocate("a", "r", count=2, vm_uuid=uuid_of("vm"))
    world.start_vm("vm", lease.gpus)
    world.reconcile()
    world.stop_vm("vm")
    world.wait(1e6)
    world.settle()
    assert world.lease(lease.id).state is LeaseState.ACTIVE
    assert world.controller.reconciler.drift == (f"lease {lease.id} of a is kept, and its VM is gone",)
    world.start_vm("vm", lease.gpus)
    world.settle()
    assert world.lease(lease.id).vm_gone is None
    assert list(world.controller.reconciler.drift) == []


def test_a_lease_whose_vm_is_gone_is_released_after_the_time_that_is_set() -> None:
    world = World("hgx-h100-8", Rules(Mode.MANAGE, release_gone_after=200.0))
    lease = world.allocate("a", "r", count=2)
    world.start_vm("vm", lease.gpus)
    world.reconcile()
    world.stop_vm("vm")
    world.reconcile()
    world.wait(199)
    world.reconcile()
    assert world.lease(lease.id).state is LeaseState.ACTIVE
    world.wait(1)
    world.reconcile()
    assert (world.lease(lease.id).state, world.active) == (LeaseState.RELEASED, set())


def test_a_lease_whose_vm_has_other_gpus_is_not_freed_under_it() -> None:
    world = World("hgx-h100-8", Rules(Mode.MANAGE, release_gone_after=1.0))
    lease = world.allocate("a", "r", count=2, lifetime=10.0)
    world.start_vm("wider", (1, 2, 3))
    world.wait(100)
    world.settle()
    assert (world.lease(lease.id).state, world.lease(lease.id).vm_seen) == (LeaseState.ACTIVE, False)
