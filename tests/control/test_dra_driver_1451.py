# SPDX-License-Identifier: Apache-2.0
"""The tests that kubernetes-sigs/dra-driver-nvidia-gpu#1451 asks for, of whoever drives Fabric Manager."""

from __future__ import annotations

import pytest

from fmctl.core.allocate import Shape
from fmctl.core.errors import Fragmented, NoSuchPartition, PartitionHeld, VmRunning
from fmctl.core.lease import LeaseState
from tests.control.leasing import BOARDS, World, refuse

PAIRS = {"hgx-h100-8": ((1, 3), (2, 4)), "hgx-b200-8": ((1, 2), (3, 4))}
"""Two partitions that together are the GPUs of one partition of four."""
ACROSS = {"hgx-h100-8": (1, 2), "hgx-b200-8": (2, 3)}
"""GPUs of two partitions of two that are no partition themselves."""


@pytest.fixture(params=BOARDS)
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param)


def test_happy_path(world: World) -> None:
    lease = world.allocate("pod", "claim", gpu_ids=PAIRS[world.platform.name][0])
    assert (lease.state, world.active) == (LeaseState.ACTIVE, set(lease.partitions))
    world.start_vm("pod", lease.gpus)
    world.reconcile()
    world.stop_vm("pod")
    assert world.release(lease.id, wait=True).state is LeaseState.RELEASED
    assert world.active == set()


def test_request_across_a_partition_boundary(world: World) -> None:
    across = ACROSS[world.platform.name]
    assert refuse(world, "pod", "claim", gpu_ids=across) is NoSuchPartition
    for gpu in (1, 5):
        world.allocate("other", f"{gpu}", gpu_ids=(gpu,))
    assert refuse(world, "pod", "claim", count=4) is Fragmented
    assert world.store.by_request("pod", "claim") is None


def test_request_for_a_subset_of_a_partition(world: World) -> None:
    first, second = PAIRS[world.platform.name]
    assert refuse(world, "pod", "claim", gpu_ids=(*first, second[0])) is NoSuchPartition
    lease = world.allocate("pod", "claim", count=3, shape=Shape.ROUND_UP)
    assert refuse(world, "other", "claim", gpu_ids=lease.spare) is PartitionHeld
    inner = world.allocate("pod", "inner", count=1)
    assert not set(inner.gpus) & set(lease.held)


def test_two_requests_that_together_form_a_partition(world: World) -> None:
    first, second = (world.allocate("pod", f"{gpus}", gpu_ids=gpus) for gpus in PAIRS[world.platform.name])
    four = (*first.gpus, *second.gpus)
    assert refuse(world, "other", "claim", gpu_ids=four) is PartitionHeld
    assert world.active == {*first.partitions, *second.partitions}
    for lease in (first, second):
        world.release(lease.id, wait=True)
    assert set(world.allocate("other", "claim", gpu_ids=four).gpus) == set(four)


def test_deactivation_is_idempotent(world: World) -> None:
    lease = world.activate("pod", PAIR_ID[world.platform.name])
    (partition,) = lease.partitions
    assert [world.deactivate("pod", partition) for _ in range(3)] == [False, True, True]
    assert world.release(lease.id, wait=True).state is LeaseState.RELEASED
    again = world.activate("pod", partition)
    world.nvfm.deactivate(partition, timeout=1)
    assert world.release(again.id, wait=True).state is LeaseState.RELEASED
    assert world.active == set()


PAIR_ID = {"hgx-h100-8": 3, "hgx-b200-8": 4}


def test_restart_under_a_live_partition(world: World) -> None:
    lease = world.allocate("pod", "claim", count=2)
    world.start_vm("pod", lease.gpus)
    world.reconcile()
    before = len(world.line.calls)
    for _ in range(3):
        world.restart_daemon()
        world.settle()
    world.process.die()
    world.restart_fabric_manager()
    world.settle()
    assert world.line.calls[before:] == []
    assert world.active == set(lease.partitions)
    assert world.lease(lease.id).state is LeaseState.ACTIVE
    world.stop_vm("pod")
    world.release(lease.id, wait=True)
    assert world.active == set()


def test_forced_delete(world: World) -> None:
    """The pod is gone with no word to anybody, and what holds its GPUs is killed later."""
    lease = world.allocate("pod", "claim", count=2)
    world.start_vm("pod", lease.gpus)
    world.restart_daemon()
    with pytest.raises(VmRunning):
        world.release(lease.id)
    world.stop_vm("pod")
    world.restart_daemon()
    assert world.release(lease.id).state is LeaseState.RELEASING
    world.restart_daemon()
    world.settle()
    assert (world.active, world.leases) == (set(), [])


def test_rapid_create_and_delete_without_a_leak(world: World) -> None:
    for number in range(200):
        lease = world.allocate("pod", f"{number}", count=(1, 2, 4, 8)[number % 4])
        world.release(lease.id, wait=bool(number % 3))
        world.reconcile()
    world.settle()
    assert (world.active, world.leases) == (set(), [])
    assert len(world.store.leases(over=True)) == 200
