# SPDX-License-Identifier: Apache-2.0
"""Leases whose callers do not wait: they are brought up, or fail and are kept."""

from __future__ import annotations

import pytest

from fmctl.core.allocate import Shape
from fmctl.core.errors import (
    ActivationFailed,
    FabricNotReady,
)
from fmctl.core.lease import LeaseState
from tests.control.leasing import BOARDS, MANAGE, TIMEOUT, World, refuse

PAIR, OTHER_PAIR, QUAD, BOARD = 3, 4, 1, 0
"""Partitions of an H100 board: the GPUs 1 and 3, 2 and 4, the first four, and all."""


def test_nobody_waits_for_a_lease_that_the_reconciler_brings_up() -> None:
    world = World()
    lease = world.allocate("a", "r", count=3, shape=Shape.UNLINKED, wait=False)
    assert (lease.state, world.active, world.wakes) == (LeaseState.PENDING, set(), 1)
    world.restart_daemon()
    world.reconcile()
    lease = world.lease(lease.id)
    assert (lease.state, lease.generation, world.active) == (LeaseState.ACTIVE, 1, set(lease.partitions))
    assert world.allocate("a", "r", count=3, shape=Shape.UNLINKED) == lease


@pytest.mark.parametrize("board", BOARDS)
def test_a_lease_nobody_waits_for_that_fails_is_kept_and_says_why(board: str) -> None:
    world = World(board, MANAGE, "code=-2@activate:2+")
    lease = world.allocate("a", "r", count=2, shape=Shape.UNLINKED, wait=False)
    world.reconcile()
    failed = world.lease(lease.id)
    assert (failed.state, world.active, world.leases) == (LeaseState.FAILED, set(), [])
    assert "-2 (GENERIC_ERROR)" in failed.reason
    assert world.allocate("a", "r", count=2, shape=Shape.UNLINKED, wait=False) == failed


def test_a_lease_nobody_waits_for_moves_on_from_an_nvlink_error() -> None:
    world = World("hgx-h100-8", MANAGE, "code=-10@activate:1")
    lease = world.allocate("a", "r", count=2, wait=False)
    world.reconcile()
    assert world.lease(lease.id).state is LeaseState.ACTIVE
    assert world.lease(lease.id).partitions != lease.partitions
    assert world.active == set(world.lease(lease.id).partitions)


def test_a_lease_nobody_waits_for_does_not_take_what_another_tool_activated_meanwhile() -> None:
    world = World()
    lease = world.allocate("a", "r", count=2, wait=False)
    world.nvfm.activate(lease.partitions[0], timeout=1)
    world.settle()
    assert (world.lease(lease.id).state, world.active) == (LeaseState.FAILED, set(lease.partitions))


def test_a_lease_nobody_waited_for_can_be_waited_for() -> None:
    world = World()
    lease = world.allocate("a", "r", count=2, wait=False)
    active = world.allocate("a", "r", count=2)
    assert (active.id, active.state) == (lease.id, LeaseState.ACTIVE)
    world = World("hgx-h100-8", MANAGE, "code=-2@activate:1")
    lease = world.allocate("a", "r", count=2, wait=False)
    assert refuse(world, "a", "r", count=2) is ActivationFailed
    assert world.lease(lease.id).state is LeaseState.FAILED


def test_a_lease_nobody_waited_for_that_another_tool_blocks_is_not_active_yet() -> None:
    world = World()
    lease = world.allocate("a", "r", count=2, wait=False)
    world.nvfm.activate(7, timeout=1)
    world.reconcile()
    assert refuse(world, "a", "r", count=2) is FabricNotReady
    assert world.controller.activate("a", partition_id=8, timeout=TIMEOUT).partition.id == 8
    with pytest.raises(FabricNotReady):
        world.activate("a", PAIR)
    world.nvfm.deactivate(7, timeout=1)
    world.settle()
    assert world.lease(lease.id).state is LeaseState.ACTIVE


def test_a_request_that_nobody_waits_for_any_more_goes_on() -> None:
    world = World()
    world.fate.decide("commit", 1, after=True)
    world.mortal(lambda: world.allocate("a", "r", count=2))
    lease = world.allocate("a", "r", count=2, wait=False)
    world.reconcile()
    assert (world.lease(lease.id).state, world.active) == (LeaseState.ACTIVE, {PAIR})
