# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import pytest

from fmctl.core import breakglass
from fmctl.core.book import Book, Kind
from fmctl.core.breakglass import ASKED, DONE, Record
from fmctl.core.fmcode import Operation

RECORD = Record("boot", 1, 17.5, Operation.ACTIVATE, 3, "alice at host", "fmctld is gone", ASKED)


@pytest.mark.parametrize(
    "record",
    [RECORD, replace(RECORD, operation=Operation.DEACTIVATE, outcome=DONE, code=0), replace(RECORD, reason='é "x"')],
    ids=lambda record: record.outcome,
)
def test_a_record_is_read_as_it_was_written(record: Record) -> None:
    text = record.text()
    assert "\n" not in text
    assert breakglass.parse(text) == record


@pytest.mark.parametrize("text", ["", "x", "[]", "{}", RECORD.text()[:-5], RECORD.text().replace('"activate"', '"x"')])
def test_what_is_no_record_is_none(text: str) -> None:
    assert breakglass.parse(text) is None


@pytest.mark.parametrize(
    ("user", "reason", "says"),
    [
        ("", "why", "no user"),
        ("alice", " ", "no reason"),
        ("alice", "x" * 513, "513 characters"),
        ("alice", "a\nb", "cannot be printed"),
    ],
)
def test_who_and_why_are_wanted(user: str, reason: str, says: str) -> None:
    assert says in breakglass.problem(user, reason)
    assert breakglass.problem("alice", "why") == ""


def told(*records: Record) -> tuple[Book, list[str]]:
    book, said = Book(), []
    for record in records:
        entry = breakglass.entry(record, book)
        if entry is not None:
            said.append(f"{entry.kind.value} {entry.subject}: {entry.what} ({entry.actor}, {entry.detail})")
            book = book.after([entry.committed(book.revision + 1, 1.0)])
    return book, said


def test_the_book_is_told_every_record_once() -> None:
    records = (RECORD, replace(RECORD, number=2, outcome=DONE, code=0), replace(RECORD, number=3, partition_id=4))
    again = replace(RECORD, boot="another boot")
    book, said = told(*records, *records, again)
    who = "(alice at host, fmctld is gone)"
    assert said == [
        f"partition 3: activate, past fmctld: asked for {who}",
        f"partition 3: activate, past fmctld: done, code 0 {who}",
        f"partition 4: activate, past fmctld: asked for {who}",
        f"partition 3: activate, past fmctld: asked for {who}",
    ]
    assert {key[0] for key in book.marks} == {Kind.PARTITION}
