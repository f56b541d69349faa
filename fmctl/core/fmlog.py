# SPDX-License-Identifier: Apache-2.0
"""Lines of Fabric Manager's log: `[Nov 20 2026 15:07:37] [INFO] [tid 1234] text`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

SEVERE = frozenset({"ERROR", "CRITICAL"})
"""The levels that a person should hear of."""

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_LINE = re.compile(
    r"\[(?P<month>[A-Z][a-z]{2}) +(?P<day>\d{1,2}) (?P<year>\d{4}) (?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)\]"
    r" \[(?P<level>[A-Z]+)\]"
    r"(?: \[tid (?P<tid>\d+)\])? ?(?P<text>.*)"
)


@dataclass(frozen=True)
class Entry:
    """A line with a head; `when` is in the time zone of who wrote it."""

    when: datetime
    level: str
    text: str


def parse(line: str) -> Entry | None:
    """The entry of a line; None for one that has no head, as the later lines of a long entry."""
    found = _LINE.fullmatch(line)
    if found is None or found["month"] not in _MONTHS:
        return None
    year, day, hour, minute, second = (int(found[part]) for part in ("year", "day", "hour", "minute", "second"))
    try:
        when = datetime(year, _MONTHS.index(found["month"]) + 1, day, hour, minute, second)
    except ValueError:
        return None
    return Entry(when, found["level"], found["text"])


def line(when: datetime, level: str, tid: int, text: str) -> str:
    """The line of an entry."""
    return f"[{_MONTHS[when.month - 1]} {when:%d %Y %H:%M:%S}] [{level}] [tid {tid}] {text}"
