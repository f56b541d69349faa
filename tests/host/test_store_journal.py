# SPDX-License-Identifier: Apache-2.0
"""The audit journal beside a store: it has every entry of it, whatever crashed or could not be written in between."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from fmctl.core.errors import Compacted, StoreUnusable
from fmctl.core.lease import LeaseState
from fmctl.host.journal import read_journal
from fmctl.host.store import FileStore
from tests.stores import BIG, T0, all_entries, longest_file, made, note


def journal_lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_store_works_while_its_journal_cannot_be_written_and_catches_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fmctl")
    folder, path = tmp_path / "log", tmp_path / "log" / "audit.jsonl"
    with FileStore(tmp_path / "leases.db", journal=path) as store:
        store.commit([note("1")], at=T0)
        folder.rename(tmp_path / "moved")
        folder.write_text("no folder")
        store.commit([note("2")], at=T0)
        store.commit([note("3")], at=T0)
        assert store.book.revision == 3
        store.compact(leases_before=T0 + 1, entries_before=T0 + 1)
        assert len(all_entries(store)) == 3
        (warned,) = (record.getMessage() for record in caplog.records)
        assert f"{path} cannot be written" in warned
        folder.unlink()
        (tmp_path / "moved").rename(folder)
        store.commit([note("4")], at=T0)
        assert [line["revision"] for line in journal_lines(path)] == [1, 2, 3, 4]
        assert caplog.records[-1].getMessage() == f"{path} has every entry again"
        store.commit([note("5")], at=T0)
        assert [line["revision"] for line in journal_lines(path)] == [1, 2, 3, 4, 5]
        store.compact(leases_before=T0 + 1, entries_before=T0 + 1)
        path.unlink()
        path.mkdir()
        store.commit([note("6")], at=T0)
        store.compact(leases_before=T0 + 1, entries_before=T0 + 1)
    with FileStore(tmp_path / "leases.db") as store:
        assert [e.revision for e in store.entries(4, limit=9)] == [5, 6]
        with pytest.raises(Compacted):
            store.entries(3, limit=9)


def test_a_journal_that_is_taken_away_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with FileStore(tmp_path / "leases.db", journal=path) as store:
        store.commit([note("1")], at=T0)
        store.commit([note("2")], at=T0)
        path.rename(tmp_path / "shipped")
        store.commit([note("3")], at=T0)
    assert [line["revision"] for line in journal_lines(path)] == [3]


def test_a_journal_that_was_cut_while_the_store_is_open_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b"x" * (1 << 20) + b"\n")
    with FileStore(tmp_path / "leases.db", journal=path) as store:
        store.commit([note("1"), note("2")], at=T0)
        with longest_file(path.stat().st_size + 400):
            store.commit([note("3"), note(BIG), note("5")], at=T0)
        assert [told.entry.revision for told in read_journal(path)] == [1, 2, 3]
        assert not path.read_bytes().endswith(b"\n")
        store.commit([note("6")], at=T0)
        assert [told.entry for told in read_journal(path)] == list(all_entries(store))


@pytest.mark.parametrize("lost", ["nothing", "end", "one line", "three lines", "all", "newline"])
def test_what_a_crash_left_out_of_the_journal_is_added_at_open(tmp_path: Path, lost: str) -> None:
    path = tmp_path / "audit.jsonl"
    with FileStore(tmp_path / "leases.db", journal=path) as store:
        for number in range(4):
            store.commit([made(str(number), LeaseState.RELEASED), note("x")], at=T0 + number)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(
        {
            "nothing": whole,
            "end": whole[:-20],
            "one line": b"".join(lines[:-1]),
            "three lines": b"".join(lines[:-3]) + lines[-3][:9],
            "all": b"",
            "newline": whole[:-1],
        }[lost]
    )
    with FileStore(tmp_path / "leases.db", journal=path) as store:
        assert [told.entry for told in read_journal(path)] == list(all_entries(store))
        store.commit([note("later")], at=T0)
    journaled = list(read_journal(path))
    assert [told.entry.revision for told in journaled] == list(range(1, 10))
    assert {told.store_id for told in journaled} == {store.book.store_id}


def test_a_journal_that_came_later_has_all_that_is_in_the_store(tmp_path: Path) -> None:
    with FileStore(tmp_path / "leases.db") as store:
        store.commit([note("old")], at=T0)
        store.commit([note(str(number)) for number in range(2200)], at=T0 + 1)
        store.compact(leases_before=0, entries_before=T0 + 1)
    with FileStore(tmp_path / "leases.db", journal=tmp_path / "audit.jsonl"):
        assert [line["revision"] for line in journal_lines(tmp_path / "audit.jsonl")] == list(range(2, 2202))


def test_a_store_that_lost_acknowledged_commits_is_refused(tmp_path: Path) -> None:
    path, journal = tmp_path / "leases.db", tmp_path / "audit.jsonl"
    with FileStore(path, journal=journal) as store:
        store.commit([made("1")], at=T0)
        store.backup(tmp_path / "copy.db")
        store.commit([made("2")], at=T0)
    (tmp_path / "copy.db").replace(path)
    with pytest.raises(StoreUnusable) as refusal:
        FileStore(path, journal=journal)
    assert str(refusal.value) == f"{path} is older than its journal: it ends at revision 1, and {journal} tells of 2"
    assert "fmctl store rebuild" in refusal.value.fix
    with FileStore(path) as store:
        assert store.book.revision == 1


def test_another_store_s_journal_is_gone_on_with(tmp_path: Path) -> None:
    journal = tmp_path / "audit.jsonl"
    wanted = []
    for name, count in (("one", 3), ("other", 2)):
        with FileStore(tmp_path / name, journal=journal) as store:
            store.commit([note(name)] * count, at=T0)
        wanted += [(store.book.store_id, revision, name) for revision in range(1, count + 1)]
    assert [(told.store_id, told.entry.revision, told.entry.what) for told in read_journal(journal)] == wanted
