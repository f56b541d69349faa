# SPDX-License-Identifier: Apache-2.0
"""What every side of the port `Claims` does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fmctl.core.ports import Claims
from fmctl.host.claims import FileClaims
from fmctl.sim.claims import MemoryClaims

Make = Callable[[], Claims]


@pytest.fixture(params=["file", "memory"])
def claims(request: pytest.FixtureRequest, folder: Path) -> Claims:
    return FileClaims(folder / "claims.json") if request.param == "file" else MemoryClaims()


def test_nobody_claims_anything_at_first(claims: Claims) -> None:
    assert claims.owners() == {}


def test_a_claim_is_kept_until_it_is_dropped(claims: Claims) -> None:
    claims.put(0, "a")
    claims.put(7, "b")
    assert claims.owners() == {0: "a", 7: "b"}
    claims.drop(0)
    assert claims.owners() == {7: "b"}


def test_a_later_claim_takes_the_place_of_an_earlier_one(claims: Claims) -> None:
    claims.put(3, "a")
    claims.put(3, "b")
    assert claims.owners() == {3: "b"}


def test_dropping_what_is_not_claimed_is_nothing(claims: Claims) -> None:
    claims.drop(3)
    assert claims.owners() == {}
