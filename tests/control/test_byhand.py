# SPDX-License-Identifier: Apache-2.0
"""Partitions activated and deactivated by hand, which are leases, too."""

from __future__ import annotations

import pytest

from fmctl.core.allocate import Shape
from fmctl.core.errors import (
    FabricNotReady,
    OutcomeUnknown,
    PartitionHeld,
    VmRunning,
)
from fmctl.core.lease import LeaseState
from tests.control.leasing import MANAGE, TIMEOUT, World, nothing_is_left, refuse

PAIR, OTHER_PAIR, QUAD, BOARD = 3, 4, 1, 0
"""Partitions of an H100 board: the GPUs 1 and 3, 2 and 4, the first four, and all."""


def test_a_partition_activated_by_hand_is_a_lease() -> None:
    world = World()
    lease = world.activate("a", PAIR)
    assert (lease.owner, lease.partitions, lease.gpus) == ("a", (PAIR,), (1, 3))
    assert world.activate("a", PAIR) == lease
    assert not world.deactivate("a", PAIR)
    assert world.lease(lease.id).state is LeaseState.RELEASED
    assert world.deactivate("a", PAIR)


def test_what_is_answered_by_hand_is_the_partition_that_was_named() -> None:
    world = World()
    lease = world.allocate("a", "r", count=2, shape=Shape.UNLINKED)
    for partition in lease.partitions:
        changed = world.controller.activate("a", partition_id=partition, timeout=TIMEOUT)
        assert (changed.partition.id, changed.already) == (partition, True)


def test_one_partition_of_several_is_not_deactivated_alone() -> None:
    world = World()
    lease = world.allocate("a", "r", count=2, shape=Shape.UNLINKED)
    with pytest.raises(PartitionHeld, match=f"fmctl release {lease.id}|one of several"):
        world.deactivate("a", lease.partitions[0])
    assert world.active == set(lease.partitions)


def test_force_ends_another_s_lease_but_never_under_a_vm() -> None:
    world = World()
    lease = world.activate("a", PAIR)
    with pytest.raises(PartitionHeld):
        world.deactivate("b", PAIR)
    world.start_vm("vm", lease.gpus)
    with pytest.raises(VmRunning):
        world.deactivate("b", PAIR, force=True)
    assert world.active == {PAIR}
    world.stop_vm("vm")
    assert not world.deactivate("b", PAIR, force=True)
    assert (world.active, world.leases) == (set(), [])


def test_what_another_tool_activated_is_deactivated_by_hand_but_never_under_a_vm() -> None:
    world = World()
    world.nvfm.activate(PAIR, timeout=1)
    world.start_vm("vm", (3,))
    for force in (False, True):
        with pytest.raises(VmRunning):
            world.deactivate("a", PAIR, force=force)
    assert world.active == {PAIR}
    world.stop_vm("vm")
    assert not world.deactivate("a", PAIR)
    assert world.active == set()
    assert world.told("partition") == ["to be deactivated", "deactivated"]


def test_a_partition_that_is_being_undone_is_ended_by_hand() -> None:
    world = World("hgx-h100-8", MANAGE, "code=-2@deactivate:1")
    with pytest.raises(FabricNotReady):
        world.allocate("a", "r", partition_id=PAIR, alive=lambda: False)
    assert not world.deactivate("a", PAIR)
    assert nothing_is_left(world)


def test_a_partition_that_is_being_undone_with_others_is_not_taken_up_by_hand() -> None:
    world = World()
    world.line.late = 10
    assert refuse(world, "a", "r", count=2, shape=Shape.UNLINKED) is OutcomeUnknown
    for partition in world.leases[0].partitions:
        with pytest.raises(PartitionHeld):
            world.activate("a", partition)
    world.settle()
    assert nothing_is_left(world)
