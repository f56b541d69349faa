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

SETTLE_FOR = 120.0
"""Seconds that Fabric Manager has to be ready once the agent answers, beyond the time that the agent has."""


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
    """Whether its domain was seen running."""


def noted(trial: Trial | None, image: str | None, seen: Seen, now: float) -> Trial | None:
    """The trial after one more look; `image` is what the store says is being tried."""
    if image is None:
        return None
    if trial is None or trial.image != image:
        trial = Trial(image, now)
    return replace(trial, has_run=trial.has_run or (seen.domain is not None and seen.domain.image == image))


def judge(trial: Trial, seen: Seen, failure: str, now: float, patience: float) -> tuple[Verdict, str]:
    """What becomes of it, and why; `failure` is why its start failed, where it did.

    `patience` is how many seconds it has, from the first look on, to be ready.
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
    if now - trial.since > patience:
        state = "its agent did not answer" if seen.fabric is None else f"Fabric Manager is {seen.fabric.value}"
        return Verdict.GO_BACK, f"it was not ready within {patience:.0f} s: {state}"
    return Verdict.GO_ON, ""
