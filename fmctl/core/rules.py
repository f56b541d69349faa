# SPDX-License-Identifier: Apache-2.0
"""The settings that decide what `core.plan` does of itself. `core.settings` reads them from the daemon's file."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Unowned(str, Enum):
    """What becomes of an active partition that no lease holds."""

    REPORT = "report"
    DEACTIVATE = "deactivate"


class Mode(str, Enum):
    """Whether this host is changed: never, always, or once a person accepts what was there before fmctl was."""

    OBSERVE = "observe"
    MANAGE = "manage"
    AUTO = "auto"


@dataclass(frozen=True)
class Rules:
    """The settings that decide. `release_gone_after` is in seconds; None keeps a lease whose VM is gone."""

    mode: Mode = Mode.AUTO
    unowned: Unowned = Unowned.REPORT
    release_gone_after: float | None = None


class NonGpuDomains(str, Enum):
    """What becomes of a domain that has none of the board's functions."""

    ALLOW = "allow"
    WARN = "warn"
    REFUSE = "refuse"
