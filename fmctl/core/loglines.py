# SPDX-License-Identifier: Apache-2.0
"""Lines of the logs in the Service VM, and how a reader goes on where it stopped.

`control.logbuffer` keeps them in the agent, `control.logs` reads them in the daemon.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class LogSource(str, Enum):
    """Who wrote a line."""

    FABRIC_MANAGER = "fabric manager"
    KERNEL = "kernel"
    BREAK_GLASS = "break glass"
    """The agent, of a person's change where there is no daemon; `core.breakglass` reads it."""


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line, `time` in seconds since the epoch.

    `sequence` counts from 1 in each `instance`, a run of the agent; `dropped` is how many lines before it are lost.
    """

    source: LogSource
    time: float
    text: str
    sequence: int = 0
    instance: str = ""
    dropped: int = 0


@dataclass(frozen=True)
class LogPosition:
    """Where a reader stopped; the start where it never read."""

    instance: str = ""
    sequence: int = 0


@dataclass(frozen=True)
class KeptLog:
    """The newest lines that a reader keeps, the newest last, and how many it has lost since it began."""

    lines: tuple[LogLine, ...] = ()
    dropped: int = 0


class LogStream(Iterator[LogLine], Protocol):
    """Lines as they come; it ends with the agent, or raises FmctlError where the agent is lost."""

    def close(self) -> None:
        """End it, from any thread: the next line is not waited for any more."""
