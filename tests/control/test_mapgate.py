# SPDX-License-Identifier: Apache-2.0
"""While the GPU map is not verified nothing is activated, by nobody, and what runs goes on."""

from __future__ import annotations

import pytest

from fmctl.core.errors import MapUnverified
from fmctl.core.lease import LeaseState
from tests.control.leasing import World, nothing_is_left, refuse


@pytest.fixture
def world() -> World:
    return World()


def test_no_request_is_served_and_none_leaves_anything(world: World) -> None:
    world.map_is_verified = False
    assert refuse(world, "a", "r", count=2) is MapUnverified
    assert refuse(world, "a", "r", count=2, wait=False) is MapUnverified
    with pytest.raises(MapUnverified):
        world.activate("a", 3)
    assert nothing_is_left(world) and not world.line.calls
    assert set(world.controller.queries.capacity(timeout=5.0).partitions.values()) == {0}


def test_the_same_request_is_served_once_the_map_is_verified(world: World) -> None:
    world.map_is_verified = False
    refuse(world, "a", "r", count=2)
    world.map_is_verified = True
    assert world.allocate("a", "r", count=2).state is LeaseState.ACTIVE


def test_what_runs_goes_on_and_can_be_released(world: World) -> None:
    lease = world.allocate("a", "r", count=2)
    world.map_is_verified = False
    world.reconcile()
    assert world.lease(lease.id).state is LeaseState.ACTIVE and world.active == set(lease.partitions)
    assert world.allocate("a", "r", count=2) == world.lease(lease.id)
    world.release(lease.id, wait=True)
    assert world.active == set()


def test_leases_that_stand_wait_for_the_map_after_a_boot(world: World) -> None:
    lease = world.allocate("a", "r", count=2)
    pending = world.allocate("b", "r", count=2, wait=False)
    world.map_is_verified = False
    world.start_fresh()
    world.restart_daemon()
    for _ in range(3):
        world.reconcile()
        world.wait(100.0)
    assert world.active == set()
    assert [found.state for found in world.leases] == [LeaseState.ACTIVE, LeaseState.ACTIVATING]
    world.map_is_verified = True
    world.wait(100.0)
    world.reconcile()
    assert world.active == {*lease.partitions, *pending.partitions}


def test_nothing_that_ran_before_is_adopted(world: World) -> None:
    world.nvfm.activate(3, timeout=5.0)
    world.start_vm("tenant", (1, 3))
    world.map_is_verified = False
    with pytest.raises(MapUnverified):
        world.controller.reconciler.adopt({"tenant": "a"}, dry_run=False, timeout=5.0)
    assert not world.leases
    world.map_is_verified = True
    world.controller.reconciler.adopt({"tenant": "a"}, dry_run=False, timeout=5.0)
    assert [lease.gpus for lease in world.leases] == [(1, 3)]


def test_no_lease_tells_where_its_gpus_are(world: World) -> None:
    lease = world.allocate("a", "r", count=2)
    assert all(gpu.address for gpu in world.gpus.devices(lease.gpus))
    world.map_is_verified = False
    assert [gpu.address for gpu in world.gpus.devices(lease.gpus)] == [None, None]
