# SPDX-License-Identifier: Apache-2.0
"""The daemon dies, at any write and at any call to Fabric Manager, and another one goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from fmctl.core.allocate import Shape
from fmctl.core.errors import (
    FabricNotReady,
    FmctlError,
    NoCapacity,
    OutcomeUnknown,
)
from fmctl.core.lease import LeaseState
from fmctl.core.plan import LATE
from fmctl.sim.faults import Faults
from tests.control.leasing import BOARDS, World


@dataclass(frozen=True)
class Scene:
    """Something that is done to what there was before; with `ends`, an end of it."""

    prepare: Callable[[World], object]
    act: Callable[[World], object]
    ends: bool = False


def allocate(world: World) -> object:
    return world.allocate("a", "r", count=2)


def unlinked(world: World) -> object:
    return world.allocate("a", "r", count=2, shape=Shape.UNLINKED)


def unattended(world: World) -> object:
    return world.allocate("a", "r", count=2, wait=False)


def reconcile(world: World) -> None:
    world.reconcile()


def release(world: World) -> object:
    return world.release(world.leases[0].id, wait=True)


def nothing(world: World) -> None:
    pass


def fail_and_ask_again(world: World) -> object:
    world.nvfm.fail(Faults.parse(["code=-5@activate:1"]))
    with contextlib.suppress(OutcomeUnknown):
        allocate(world)
    return allocate(world)


def cancel(world: World) -> None:
    with contextlib.suppress(FabricNotReady):
        world.allocate("a", "r", count=2, shape=Shape.UNLINKED, alive=lambda: False)


def nvlink_error(world: World) -> object:
    world.nvfm.fail(Faults.parse(["code=-10@activate:1"]))
    return allocate(world)


def lose_partitions(world: World) -> None:
    unlinked(world)
    world.start_fresh()


def expire(world: World) -> None:
    world.allocate("a", "r", count=2, lifetime=60.0)
    world.wait(61)


SCENES = {
    "allocate": Scene(nothing, allocate),
    "allocate several": Scene(nothing, unlinked),
    "fail and ask again": Scene(nothing, fail_and_ask_again),
    "cancel": Scene(nothing, cancel),
    "move from an NVLink error": Scene(nothing, nvlink_error),
    "bring up": Scene(unattended, reconcile),
    "activate again": Scene(lose_partitions, reconcile),
    "release": Scene(allocate, release, ends=True),
    "release several": Scene(unlinked, release, ends=True),
    "expire": Scene(expire, reconcile, ends=True),
}


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("what", ["commit", "call"])
@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES.keys())
def test_a_daemon_that_dies_at_any_write_or_call_leaves_a_lease_or_nothing(
    board: str, scene: Scene, what: str, when: str
) -> None:
    for nth in range(1, 20):
        world = World(board)
        scene.prepare(world)
        world.fate.decide(what, nth, after=when == "after")
        daemon = world.controller
        world.mortal(lambda scene=scene, world=world: scene.act(world))  # type: ignore[misc]
        died = world.controller is not daemon
        acknowledged = [lease for lease in world.leases if lease.state is LeaseState.ACTIVE]
        world.settle()
        assert world.active == {partition for lease in world.leases for partition in lease.partitions}
        assert {lease.state for lease in world.leases} <= {LeaseState.ACTIVE}
        if not scene.ends:
            assert {lease.id for lease in acknowledged} <= {lease.id for lease in world.leases}
        if not died:
            assert nth > 1
            assert len(world.leases) == (scene.act is not cancel and not scene.ends)
            return
    raise AssertionError("it never ended")


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_daemon_that_dies_at_a_call_which_happens_late_leaves_nothing(when: str) -> None:
    for scene in (SCENES["allocate"], SCENES["bring up"], SCENES["activate again"], SCENES["release"]):
        world = World()
        scene.prepare(world)
        world.line.late = 50
        world.fate.decide("call", 2, after=when == "after")
        with contextlib.suppress(OutcomeUnknown):
            world.mortal(lambda scene=scene, world=world: scene.act(world))  # type: ignore[misc]
        world.restart_daemon()
        world.settle()
        assert world.active == {partition for lease in world.leases for partition in lease.partitions}


def test_what_a_dead_daemon_may_have_asked_for_is_waited_for() -> None:
    world = World()
    world.fate.decide("call", 1, after=True)
    world.line.late = 50
    assert world.mortal(lambda: allocate(world)) is None
    world.reconcile()
    with pytest.raises(NoCapacity):
        world.allocate("b", "r", count=8)
    world.wait(50)
    world.reconcile()
    assert world.active == set()
    world.wait(LATE)
    world.reconcile()
    assert world.allocate("b", "r", count=8).state is LeaseState.ACTIVE


def test_a_deactivation_of_a_dead_daemon_does_not_hit_the_next_tenant() -> None:
    world = World()
    lease = world.allocate("a", "r", count=2)
    world.release(lease.id)
    world.line.late = 50
    with contextlib.suppress(FmctlError):
        world.reconcile()
    world.restart_daemon()
    world.reconcile()
    assert world.active == set()
    with pytest.raises(FmctlError):
        world.allocate("b", "r", gpu_ids=lease.gpus)
    world.settle()
    assert world.allocate("b", "r", gpu_ids=lease.gpus).state is LeaseState.ACTIVE
