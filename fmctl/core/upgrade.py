# SPDX-License-Identifier: Apache-2.0
"""Whether an image of the Service VM that is being tried is kept. Pure; `control.servicevm` asks at every look.

Before a trial begins the store notes it, so that a daemon that died in the middle goes on with it. Its start has reset
every NVSwitch, and until it is ready no NVLink is up, so going back interrupts nothing that is not lost already.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from fmctl.core.answers import FabricState
from fmctl.core.servicevm import Seen

FABRIC_START_FOR = 720.0
"""Seconds that Fabric Manager has to be ready once the agent answers: what its own unit allows from branch 570 on."""


class Verdict(str, Enum):
    """What becomes of an image that is being tried."""

    GO_ON = "go on"
    KEEP = "keep it"
    GO_BACK = "go back"


@dataclass(frozen=True)
class Trial:
    """An image that is being tried, as far as this daemon has seen it, in seconds of one clock."""

    image: str
    since: float
    has_run: bool = False
    """Whether its domain was seen running; `since` is when it first was, then."""
    answered: float | None = None
    """When its agent was first seen to answer."""


def noted(trial: Trial | None, image: str | None, seen: Seen, now: float) -> Trial | None:
    """The trial after one more look; `image` is what the store says is being tried."""
    if image is None:
        return None
    if trial is None or trial.image != image:
        trial = Trial(image, now)
    if seen.domain is None or seen.domain.image != image:
        return trial
    answered = now if trial.answered is None and seen.fabric is not None else trial.answered
    return replace(trial, since=trial.since if trial.has_run else now, has_run=True, answered=answered)


def judge(trial: Trial, seen: Seen, failure: str, now: float, start_timeout: float) -> tuple[Verdict, str]:
    """What becomes of it, and why; `failure` is why its start failed, where it did.

    It has `start_timeout` seconds to run, and as many again for its agent to answer.
    """
    if seen.domain is None:
        if trial.has_run:
            return Verdict.GO_BACK, "its domain ended before it was ready"
        if failure:
            return Verdict.GO_BACK, failure
    elif seen.domain.image != trial.image:
        return Verdict.GO_BACK, "it was never started: another image runs"
    elif seen.fabric is FabricState.READY:
        return Verdict.KEEP, ""
    elif seen.mismatch:
        return Verdict.GO_BACK, seen.mismatch
    if trial.answered is None:
        late = "its agent did not answer" if trial.has_run else "its domain did not run"
        overdue, text = now - trial.since > start_timeout, f"{late} within {start_timeout:.0f} s"
    else:
        overdue = now - trial.answered > FABRIC_START_FOR
        text = f"its Fabric Manager was not ready within {FABRIC_START_FOR:.0f} s"
    return (Verdict.GO_BACK, text) if overdue else (Verdict.GO_ON, "")
