# SPDX-License-Identifier: Apache-2.0
"""What becomes of an image that is being tried, from what is seen of it."""

from __future__ import annotations

import pytest

from fmctl.core.answers import FabricState
from fmctl.core.domain import Domain, DomainState
from fmctl.core.servicevm import Seen
from fmctl.core.upgrade import FABRIC_START_FOR, Trial, Verdict, judge, noted

START = 300.0


def domain(image: str) -> Domain:
    return Domain("u", "n", DomainState.RUNNING, image=image)


NOTHING = Seen(None, None)
BOOTING, UP = Seen(domain("new"), None), Seen(domain("new"), FabricState.INITIALISING)
READY, OTHER = Seen(domain("new"), FabricState.READY), Seen(domain("old"), FabricState.READY)
MISMATCHED = Seen(domain("new"), FabricState.NOT_STARTED, mismatch="Fabric Manager is 580.1 and the driver 570.2")
FRESH, RAN, ANSWERED = Trial("new", 0.0), Trial("new", 0.0, has_run=True), Trial("new", 0.0, True, 100.0)


@pytest.mark.parametrize(
    ("trial", "seen", "failure", "now", "verdict", "why"),
    [
        (FRESH, NOTHING, "", START, Verdict.GO_ON, ""),
        (FRESH, NOTHING, "", START + 1, Verdict.GO_BACK, "its domain did not run within 300 s"),
        (FRESH, NOTHING, "libvirt says no", 1.0, Verdict.GO_BACK, "libvirt says no"),
        (FRESH, OTHER, "", 1.0, Verdict.GO_BACK, "it was never started: another image runs"),
        (RAN, NOTHING, "", 1.0, Verdict.GO_BACK, "its domain ended before it was ready"),
        (RAN, BOOTING, "", START, Verdict.GO_ON, ""),
        (RAN, BOOTING, "", START + 1, Verdict.GO_BACK, "its agent did not answer within 300 s"),
        (RAN, BOOTING, "an old failure", 1.0, Verdict.GO_ON, ""),
        (ANSWERED, MISMATCHED, "", 101.0, Verdict.GO_BACK, "Fabric Manager is 580.1 and the driver 570.2"),
        (ANSWERED, UP, "", 100.0 + FABRIC_START_FOR, Verdict.GO_ON, ""),
        (ANSWERED, UP, "", 101.0 + FABRIC_START_FOR, Verdict.GO_BACK, "its Fabric Manager was not ready within 720 s"),
        (ANSWERED, BOOTING, "", START + 1, Verdict.GO_ON, ""),
        (ANSWERED, READY, "", 1e6, Verdict.KEEP, ""),
        (FRESH, READY, "", 1.0, Verdict.KEEP, ""),
    ],
)
def test_the_verdict(trial: Trial, seen: Seen, failure: str, now: float, verdict: Verdict, why: str) -> None:
    assert judge(trial, seen, failure, now, START) == (verdict, why)


def test_a_trial_is_noted_look_by_look() -> None:
    assert noted(FRESH, None, READY, 1.0) is None
    assert noted(None, "new", NOTHING, 1.0) == Trial("new", 1.0)
    assert noted(ANSWERED, "newer", NOTHING, 9.0) == Trial("newer", 9.0)
    assert noted(FRESH, "new", OTHER, 5.0) == FRESH
    assert noted(FRESH, "new", BOOTING, 5.0) == Trial("new", 5.0, has_run=True)
    assert noted(FRESH, "new", UP, 5.0) == Trial("new", 5.0, True, 5.0)
    assert noted(RAN, "new", BOOTING, 6.0) == RAN
    assert noted(RAN, "new", UP, 6.0) == Trial("new", 0.0, True, 6.0)
    assert noted(ANSWERED, "new", READY, 200.0) == ANSWERED
    assert noted(RAN, "new", NOTHING, 7.0) == RAN
