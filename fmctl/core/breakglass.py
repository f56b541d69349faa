# SPDX-License-Identifier: Apache-2.0
"""What is recorded of a change that a person makes at the agent, past the daemon.

`control.breakglass` makes the change in the Service VM, and lets the daemon's book have the records once there is one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from fmctl.core.book import Book, Entry, Kind, Mark, MarkKind
from fmctl.core.fmcode import Operation

MAX_USER = 128
MAX_REASON = 512
MAX_OUTCOME = 1024
"""Characters of each, so that a record fits a line of the agent's logs."""

ASKED = "asked for"
DONE = "done"
ALREADY = "it was so before"


@dataclass(frozen=True)
class Record:
    """That a change was asked for, or what came of it.

    `boot` names the boot of the Service VM, in which `number` counts from 1; `time` is the Service VM's, in seconds
    since the epoch. `outcome` is one of the three words above, or why it failed, and `code` Fabric Manager's return
    code, None where it gave none.
    """

    boot: str
    number: int
    time: float
    operation: Operation
    partition_id: int
    user: str
    reason: str
    outcome: str
    code: int | None = None

    def text(self) -> str:
        """The record as one line of JSON."""
        plain = {**vars(self), "operation": self.operation.value, "outcome": self.outcome[:MAX_OUTCOME]}
        return json.dumps(plain, ensure_ascii=False)


def parse(text: str) -> Record | None:
    """The record of a line; None where it is none."""
    try:
        plain = json.loads(text)
        return Record(
            boot=str(plain["boot"]),
            number=int(plain["number"]),
            time=float(plain["time"]),
            operation=Operation(plain["operation"]),
            partition_id=int(plain["partition_id"]),
            user=str(plain["user"]),
            reason=str(plain["reason"]),
            outcome=str(plain["outcome"]),
            code=None if plain["code"] is None else int(plain["code"]),
        )
    except (ValueError, KeyError, TypeError):
        return None


def problem(user: str, reason: str) -> str:
    """Why nobody may be recorded so; empty where they may."""
    for name, text, most in (("user", user, MAX_USER), ("reason", reason, MAX_REASON)):
        if not text.strip():
            return f"no {name} is given"
        if len(text) > most:
            return f"the {name} has {len(text)} characters, and {most} are the most"
        if not text.isprintable():
            return f"the {name} has characters that cannot be printed"
    return ""


def entry(record: Record, book: Book) -> Entry | None:
    """What the book is told of a record; None where it has it already.

    Records come in their order, and all of a boot come again to every new daemon. So the mark of the partition names
    the newest one that the book has.
    """
    subject = str(record.partition_id)
    mark = book.marks.get((Kind.PARTITION, subject, MarkKind.BREAK_GLASS))
    boot, _, number = mark.reason.rpartition(" ") if mark else ("", "", "0")
    if boot == record.boot and record.number <= int(number):
        return None
    code = "" if record.code is None else f", code {record.code}"
    return Entry(
        Kind.PARTITION,
        subject,
        f"{record.operation.value}, past fmctld: {record.outcome}{code}",
        record.user,
        record.reason,
        mark=Mark(MarkKind.BREAK_GLASS, f"{record.boot} {record.number}", record.time),
    )
