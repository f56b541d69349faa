# SPDX-License-Identifier: Apache-2.0
"""Which rule refuses a request, and in which words."""

from __future__ import annotations

import pytest

from fmctl.core import schema
from fmctl.core.book import Book
from fmctl.core.errors import InvalidDocument, LimitReached, NoCapacity, PolicyDenied, Reason, restore
from fmctl.core.lease import Lease, LeaseState
from fmctl.core.packing import GpuCounts, Headroom
from fmctl.core.policy import Policy, held_by
from fmctl.core.settings import DaemonSettings

FREE = GpuCounts(total=8, free=8, busy=0, cleaning=0, quarantined=0, cordoned=0)


def book(*held: tuple[str, int, int]) -> Book:
    """Leases: the owner, the GPUs that are given, and the spare ones."""
    leases = {
        f"{n}": Lease(
            f"{n}", owner, f"{n}", "{}", LeaseState.ACTIVE, (n,), tuple(range(1, 1 + gpus)), tuple(range(9, 9 + spare))
        )
        for n, (owner, gpus, spare) in enumerate(held)
    }
    return Book(leases=leases)


def why(policy: Policy, state: Book, *sizes: int, owner: str = "") -> str:
    refusal = policy.refusal(state, sizes, owner)
    return refusal.why if refusal else ""


def test_without_rules_nothing_is_refused() -> None:
    assert Policy().refusal(book(("a", 8, 0)), [16, 16], "a") is None
    assert Policy().told(book()) == ()


def test_what_a_request_holds_is_limited() -> None:
    refusal = Policy(max_gpus_per_request=4).refusal(book(), [5], "a")
    assert isinstance(refusal, PolicyDenied)
    assert (refusal.what, refusal.why) == (
        "a request for 5 GPUs is refused",
        "the setting policy.max_gpus_per_request is 4",
    )
    assert Policy(max_gpus_per_request=4).refusal(book(("a", 8, 0)), [4, 4], "a") is None


def test_what_an_owner_holds_is_limited_spare_gpus_included() -> None:
    policy, state = Policy(max_gpus_per_owner=4), book(("a", 2, 1), ("b", 4, 0))
    refusal = policy.refusal(state, [2], "a")
    assert isinstance(refusal, LimitReached)
    assert refusal.what == "owner 'a' may not hold 2 GPUs more"
    assert refusal.why == "the setting policy.max_gpus_per_owner is 4, and it holds 3"
    assert why(policy, state, 1, owner="a") == ""
    assert why(policy, state, 1, 1, owner="a") == refusal.why
    assert why(policy, state, 1, owner="b").endswith("it holds 4")
    assert why(policy, state, 4, 4) == ""
    assert why(policy, state, 5).endswith("it holds 0")


def test_what_all_owners_hold_is_limited_but_not_what_the_host_holds_itself() -> None:
    policy, state = Policy(max_gpus_per_host=6), book(("a", 2, 0), ("b", 2, 0), ("system:layout", 4, 0))
    assert held_by(state) == 4
    assert why(policy, state, 2, owner="c") == ""
    assert why(policy, state, 4, owner="c") == "the setting policy.max_gpus_per_host is 6, and 4 are leased"
    assert why(policy, state, 2, 1) == "the setting policy.max_gpus_per_host is 6, and 4 are leased"


@pytest.mark.parametrize(
    ("owner", "rule"),
    [
        ("team-a", ""),
        ("guest", ""),
        ("guest-1", "allowed_owners does not name it"),
        ("other", "allowed_owners does not name it"),
        ("team-x", "denied_owners names it"),
        ("team-x1", ""),
    ],
)
def test_owners_are_named_and_denied_ones_go_first(owner: str, rule: str) -> None:
    policy = Policy(allowed_owners=("team-*", "guest"), denied_owners=("team-x",))
    refusal = policy.refusal(book(), [1], owner)
    assert (isinstance(refusal, PolicyDenied), refusal.why if refusal else "") == (
        bool(rule),
        f"the setting policy.{rule}" if rule else "",
    )


def test_what_could_be_granted_is_what_the_rules_leave() -> None:
    found = Headroom({1: 8, 2: 4, 4: 2, 8: 1}, FREE)
    state = book(("a", 2, 0))
    assert Policy(max_gpus_per_request=2).limited(found, state).partitions == {1: 8, 2: 4, 4: 0, 8: 0}
    assert Policy(max_gpus_per_host=6).limited(found, state).partitions == {1: 4, 2: 2, 4: 1, 8: 0}
    per_owner = Policy(max_gpus_per_owner=4)
    assert per_owner.limited(found, state).partitions == {1: 8, 2: 4, 4: 2, 8: 0}
    assert per_owner.limited(found, state, "a").partitions == {1: 2, 2: 1, 4: 0, 8: 0}
    assert Policy(denied_owners=("a",)).limited(found, state, "a").partitions == {1: 0, 2: 0, 4: 0, 8: 0}


def test_the_rules_are_told() -> None:
    policy = Policy(max_gpus_per_host=6, denied_owners=("x", "y-*"))
    assert policy.told(book(("a", 2, 1))) == (
        "policy.max_gpus_per_host is 6, and 3 are leased",
        "policy.denied_owners is x, y-*",
    )


def test_a_limit_is_a_matter_of_capacity_to_whoever_hears_of_it() -> None:
    error = LimitReached("w", why="y", fix="f")
    assert error.reason is Reason.NO_CAPACITY
    restored = restore("NO_CAPACITY", error.metadata())
    assert (type(restored), restored.why) == (NoCapacity, "y")


def test_the_settings_hold_the_rules() -> None:
    read = schema.load(DaemonSettings, "policy:\n  max_gpus_per_owner: 4\n  denied_owners: [x]\n", "fmctld.yaml")
    assert read.policy == Policy(max_gpus_per_owner=4, denied_owners=("x",))
    for wrong in ("max_gpus_per_owner: 0", "max_gpus_per_host: 17", "allowed_owners: a", "max_gpus: 1"):
        with pytest.raises(InvalidDocument, match=r"policy\."):
            schema.load(DaemonSettings, f"policy: {{{wrong}}}", "fmctld.yaml")
