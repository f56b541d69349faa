# SPDX-License-Identifier: Apache-2.0
"""The settings that decide what `core.plan` and `core.clean` do. `core.settings` reads them from the daemon's file."""

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


class Memory(str, Enum):
    """How it is made sure that nothing of a tenant is left in a GPU's memory."""

    RESET_ONLY = "reset-only"
    """By the reset alone, which proves nothing, and is recorded so."""
    COMMAND = "command"
    """By a command of the operator's that says yes or no."""


class Firmware(str, Enum):
    """What becomes of evidence of a GPU's firmware."""

    OFF = "off"
    RECORD = "record"
    ENFORCE = "enforce"
    """Firmware of which there is no evidence, or that is not on the operator's list, is quarantined with its GPU."""


@dataclass(frozen=True)
class Rules:
    """The settings that decide. `release_gone_after` is in seconds; None keeps a lease whose VM is gone.

    `clean` tells that GPUs are cleaned between tenants: not where the board is another host's, which cleans them. After
    `refused_for` seconds in which Fabric Manager refuses to deactivate a partition its GPUs are quarantined.
    """

    mode: Mode = Mode.AUTO
    unowned: Unowned = Unowned.REPORT
    release_gone_after: float | None = None
    clean: bool = False
    refused_for: float = 600.0


class NonGpuDomains(str, Enum):
    """What becomes of a domain that has none of the board's functions."""

    ALLOW = "allow"
    WARN = "warn"
    REFUSE = "refuse"
