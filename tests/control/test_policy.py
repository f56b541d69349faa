# SPDX-License-Identifier: Apache-2.0
"""Rules of the operator's over leases: what is refused, and what never is."""

from __future__ import annotations

import pytest

from fmctl.core.allocate import Shape
from fmctl.core.errors import LimitReached, OutcomeUnknown, PolicyDenied
from fmctl.core.lease import LeaseState
from fmctl.core.policy import Policy
from fmctl.core.request import Request
from tests.control.leasing import MANAGE, TIMEOUT, World, nothing_is_left, refuse


def ruled(**rules: object) -> World:
    return World(policy=Policy(**rules))  # type: ignore[arg-type]


def test_a_request_that_is_refused_by_a_rule_leaves_nothing() -> None:
    world = ruled(max_gpus_per_request=2, denied_owners=("x",))
    assert refuse(world, "a", "1", count=4) is PolicyDenied
    assert refuse(world, "a", "2", partition_id=1) is PolicyDenied
    assert refuse(world, "a", "3", gpu_ids=(1, 2, 3, 4)) is PolicyDenied
    assert refuse(world, "a", "4", count=3, shape=Shape.UNLINKED) is PolicyDenied
    assert refuse(world, "x", "5", count=1) is PolicyDenied
    with pytest.raises(PolicyDenied, match="max_gpus_per_request is 2"):
        world.activate("a", 1)
    with pytest.raises(PolicyDenied, match="denied_owners"):
        world.controller.leases.try_out(Request("x", "r", count=1), timeout=TIMEOUT)
    assert nothing_is_left(world)
    assert world.allocate("a", "r", count=2)


def test_a_spare_gpu_counts_until_it_is_free() -> None:
    world = ruled(max_gpus_per_owner=4)
    lease = world.allocate("a", "1", count=3, shape=Shape.ROUND_UP)
    assert refuse(world, "a", "2", count=1) is LimitReached
    assert world.allocate("b", "1", count=1)
    world.release(lease.id)
    assert refuse(world, "a", "2", count=1) is LimitReached
    world.settle()
    assert world.allocate("a", "2", count=1)


def test_a_host_keeps_gpus_back() -> None:
    world = ruled(max_gpus_per_host=4)
    world.allocate("a", "1", count=2)
    world.allocate("b", "1", count=2)
    with pytest.raises(LimitReached, match="max_gpus_per_host is 4, and 4 are leased"):
        world.allocate("c", "1", count=1)


def test_the_same_request_meets_its_lease_whatever_the_rules_are_now() -> None:
    world = ruled()
    lease = world.allocate("a", "r", count=4)
    world.policy = Policy(max_gpus_per_request=1, max_gpus_per_owner=1, max_gpus_per_host=1, denied_owners=("a",))
    world.restart_daemon()
    assert world.allocate("a", "r", count=4).id == lease.id
    world.settle()
    assert world.lease(lease.id).state is LeaseState.ACTIVE
    assert refuse(world, "a", "s", count=1) is PolicyDenied


def test_a_request_whose_outcome_was_unknown_is_settled_whatever_it_holds() -> None:
    world = World("hgx-h100-8", MANAGE, policy=Policy(max_gpus_per_owner=2))
    world.line.lost, world.line.cut = 1, 0
    world.line.heard = lambda operation, partition: setattr(world.line, "cut", 1)
    with pytest.raises(OutcomeUnknown):
        world.allocate("a", "r", count=2)
    world.line.heard = lambda operation, partition: None
    world.line.mend()
    assert world.allocate("a", "r", count=2).state is LeaseState.ACTIVE


def test_what_fits_and_what_is_explained_heed_the_rules() -> None:
    world = ruled(max_gpus_per_owner=2, max_gpus_per_host=6)
    world.allocate("a", "1", count=1)
    queries = world.controller.queries
    assert queries.capacity(timeout=1).partitions == {1: 5, 2: 2, 4: 0, 8: 0}
    assert queries.capacity(owner="a", timeout=1).partitions == {1: 1, 2: 0, 4: 0, 8: 0}
    assert queries.can_allocate((2, 2), timeout=1)
    assert queries.can_allocate((2, 2, 2), timeout=1) is None
    assert "max_gpus_per_host is 6, and 1 are leased" in queries.ruled_out((2, 2, 2))
    assert queries.can_allocate((1,), owner="a", timeout=1)
    assert queries.can_allocate((2,), owner="a", timeout=1) is None
    assert queries.explain(1, Shape.EXACT, owner="a", timeout=1)
    with pytest.raises(LimitReached, match="max_gpus_per_owner"):
        queries.explain(2, Shape.EXACT, owner="a", timeout=1)
    assert queries.rules == ("policy.max_gpus_per_owner is 2", "policy.max_gpus_per_host is 6, and 1 are leased")
