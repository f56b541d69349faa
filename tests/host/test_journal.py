# SPDX-License-Identifier: Apache-2.0
"""The audit journal by itself; tests/host/test_store.py has it beside a store."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from fmctl.core.book import Entry
from fmctl.host.journal import Journal, Journaled, read_journal
from tests.stores import FULL_ENTRY, T0, made, note

STORE = "the store"


def entry(number: int, what: str = "x") -> Entry:
    return note(what).committed(number, T0 + number)


def revisions(path: Path) -> list[int]:
    return [told.entry.revision for told in read_journal(path)]


def test_a_line_tells_all_of_an_entry_to_people_and_programs(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    journal = Journal(path, STORE)
    journal.append(journal.lines([replace(entry(1, "two\nlines"), actor="unix:0", detail="why")]))
    journal.append(journal.lines([made("1").committed(2, T0), FULL_ENTRY]))
    first, second, third = path.read_text().splitlines()
    assert json.loads(first) == {
        "store_id": STORE,
        "revision": 1,
        "time": "2023-11-14T22:13:21.250000Z",
        "kind": "host",
        "subject": "",
        "what": "two\nlines",
        "actor": "unix:0",
        "detail": "why",
    }
    assert (json.loads(second)["lease"]["id"], "forget" in json.loads(second)) == ("1", False)
    assert set(json.loads(third)) == {*json.loads(first), "lease", "forget", "mark", "unmark", "gpu_map"}
    assert list(read_journal(path))[2] == Journaled(STORE, FULL_ENTRY)


def test_nothing_is_read_where_nothing_is(tmp_path: Path) -> None:
    assert list(read_journal(tmp_path / "audit.jsonl")) == []
    assert Journal(tmp_path / "audit.jsonl", STORE).last() == 0


def test_what_cannot_be_read_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    journal = Journal(path, STORE)
    good = json.loads(journal.lines([entry(5)]))
    bad: list[object] = [
        {**good, "revision": "5"},
        {**good, "kind": "moon"},
        {**good, "time": "yesterday"},
        {**good, "store_id": None},
        {**good, "later": 1},
        {key: value for key, value in good.items() if key != "what"},
        [good],
        None,
    ]
    lines = [*(json.dumps(item).encode() for item in bad), b'{"revision": 7, "wh', b"\xff\xfe\x00", b"", b"[" * 100_000]
    path.write_bytes(b"\n".join([journal.lines([entry(4)]).strip(), *lines, json.dumps(good).encode(), *lines[-4:]]))
    assert revisions(path) == [4, 5]
    assert journal.last() == 5


def test_a_cut_line_stays_and_the_next_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    journal = Journal(path, STORE)
    journal.append(journal.lines([entry(1), entry(2)]))
    cut = path.read_bytes()[:-7]
    path.write_bytes(cut)
    assert journal.last() == 1
    journal.append(journal.lines([entry(2), entry(3)]))
    assert path.read_bytes().startswith(cut + b"\n{")
    assert revisions(path) == [1, 2, 3]


def test_the_last_revision_is_that_of_this_store(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    mine, other = Journal(path, STORE), Journal(path, "another")
    mine.append(mine.lines([entry(8)]))
    other.append(other.lines([entry(1), entry(2)]))
    assert (mine.last(), other.last(), Journal(path, "third").last()) == (8, 2, 0)


def test_one_older_file_is_kept_and_neither_grows_beyond_the_limit(tmp_path: Path) -> None:
    path, limit = tmp_path / "audit.jsonl", 2000
    journal = Journal(path, STORE, limit=limit)
    for number in range(1, 101):
        journal.append(journal.lines([entry(number)]))
        assert journal.last() == number
        assert all(file.stat().st_size <= limit for file in tmp_path.iterdir())
        assert revisions(path) == list(range(revisions(path)[0], number + 1))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["audit.jsonl", "audit.jsonl.1"]
    assert (tmp_path / "audit.jsonl.1").stat().st_size > limit / 2
    assert len(revisions(path)) < 100


def test_the_last_revision_is_found_right_after_another_file_was_begun(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    journal = Journal(path, STORE)
    journal.append(journal.lines([entry(3)]))
    path.rename(tmp_path / "audit.jsonl.1")
    assert journal.last() == 3
    path.write_text("torn")
    assert journal.last() == 3


def test_lines_longer_than_the_limit_are_written_still(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    journal = Journal(path, STORE, limit=10)
    for number in (1, 2, 3):
        journal.append(journal.lines([entry(number)]))
    assert revisions(path) == [2, 3]
    path.write_text("")
    journal.append(journal.lines([entry(3)]))
    assert revisions(path) == [2, 3]
