# SPDX-License-Identifier: Apache-2.0
"""Leases whose GPUs are set aside after they were granted: before they are ACTIVE they get none of them."""

from __future__ import annotations

import pytest

from fmctl.core import clean
from fmctl.core.book import Kind, MarkKind
from fmctl.core.clean import Rules
from fmctl.core.errors import FabricNotReady
from fmctl.core.lease import LeaseState
from fmctl.core.rules import Mode, Unowned
from fmctl.core.rules import Rules as LeaseRules
from fmctl.sim.faults import NO_FAULTS
from tests.control.leasing import World

DEACTIVATE = LeaseRules(Mode.MANAGE, Unowned.DEACTIVATE)


def cleaning(world: World) -> set[int]:
    return {int(gpu) for gpu in world.store.book.marked(Kind.GPU, MarkKind.CLEANING)}


@pytest.mark.parametrize("begun", [False, True])
def test_a_lease_that_waited_for_a_stranger_s_partition_to_end_does_not_get_its_gpus(*, begun: bool) -> None:
    world = World("hgx-h100-8", DEACTIVATE, cleans=Rules())
    lease = world.allocate("a", "r", gpu_ids=(1, 3), wait=False)
    if begun:
        world.map_is_verified = False
        world.reconcile()
        world.map_is_verified = True
    assert world.lease(lease.id).state is (LeaseState.ACTIVATING if begun else LeaseState.PENDING)
    world.nvfm.activate(7, timeout=1)
    world.reconcile()
    failed = world.lease(lease.id)
    assert (failed.state, cleaning(world), world.active) == (LeaseState.FAILED, {1}, set())
    assert failed.reason == "the GPUs 1 were set aside after they were granted: somebody else may have used them"
    world.settle()
    assert cleaning(world) == set()
    assert world.allocate("a", "s", gpu_ids=(1, 3)).state is LeaseState.ACTIVE


def test_a_request_that_is_undone_is_not_taken_up_again_once_its_gpus_are_in_quarantine() -> None:
    world = World("hgx-h100-8", LeaseRules(Mode.MANAGE), "code=-2@deactivate:1+", cleans=Rules())
    with pytest.raises(FabricNotReady):
        world.allocate("a", "r", count=2, alive=lambda: False)
    (lease,) = world.leases
    world.store.commit(clean.stuck(world.store.book, lease.gpus[:1], "it is not deactivated", world.now), at=world.now)
    with pytest.raises(FabricNotReady, match=f"the GPUs {lease.gpus[0]} were set aside"):
        world.allocate("a", "r", count=2)
    world.nvfm.fail(NO_FAULTS)
    world.settle()
    assert world.leases == []
    assert set(world.allocate("a", "r", count=2).gpus).isdisjoint(lease.gpus[:1])
