# SPDX-License-Identifier: Apache-2.0
"""The book's values as rows of a store's tables, and back.

SQLite finds damage to its own structure, not to what stands in a row. So each row carries a checksum, and decisions
are never made on anything but what was written.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from fmctl.core import bookdoc
from fmctl.core.book import Book, Entry, Kind, Mark, MarkKey, MarkKind
from fmctl.core.lease import Lease
from fmctl.core.mapsource import MapRecord

STORE_ID = "store_id"
COMPACTED = "compacted"
"""The highest revision that was compacted away; 0 before the first time."""
WRITER = "writer"
"""The version of the fmctl that gave the file its schema."""

Row = tuple[Any, ...]

_META = "SELECT key, value, sum FROM meta WHERE key = ?"
_PUT_META = "INSERT OR REPLACE INTO meta (key, value, sum) VALUES (?, ?, ?)"
_LEASES = "SELECT id, owner, request_id, over, ended, document, sum FROM leases "
_PUT_LEASE = """
    INSERT INTO leases (id, owner, request_id, over, ended, document, sum) VALUES (?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (id) DO UPDATE SET
        owner = excluded.owner, request_id = excluded.request_id, over = excluded.over, ended = excluded.ended,
        document = excluded.document, sum = excluded.sum
"""
_FORGET_LEASE = "DELETE FROM leases WHERE id = ?"
_MARKS = "SELECT kind, subject, mark, document, sum FROM marks"
_PUT_MARK = "INSERT OR REPLACE INTO marks (kind, subject, mark, document, sum) VALUES (?, ?, ?, ?, ?)"
_DROP_MARK = "DELETE FROM marks WHERE kind = ? AND subject = ? AND mark = ?"
_ENTRIES = """
    SELECT revision, time, kind, subject, what, actor, detail, lease, forget, mark, unmark, sum FROM entries
    WHERE revision > ? ORDER BY revision LIMIT ?
"""
_PUT_ENTRY = """
    INSERT INTO entries (revision, time, kind, subject, what, actor, detail, lease, forget, mark, unmark, sum)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_MAPS = "SELECT revision, document, sum FROM gpu_maps WHERE revision > ? AND revision <= ? ORDER BY revision"
_PUT_MAP = "INSERT INTO gpu_maps (revision, document, sum) VALUES (?, ?, ?)"
_DROP_MAPS = "DELETE FROM gpu_maps WHERE revision <= ? AND revision < (SELECT max(revision) FROM gpu_maps)"


class BadRow(ValueError):
    """A row is not what was written."""


def put_meta(connection: sqlite3.Connection, key: str, value: str) -> None:
    """Set one of the store's own values."""
    connection.execute(_PUT_META, _summed(key, value))


def meta(connection: sqlite3.Connection, key: str) -> str:
    """One of the store's own values; raises BadRow."""
    rows = connection.execute(_META, (key,)).fetchall()
    if not rows:
        raise BadRow(f"meta: {key} is missing")
    return str(_checked("meta", rows[0])[1])


def put_entry(connection: sqlite3.Connection, entry: Entry) -> None:
    """Write an entry, and what it changes; raises sqlite3.IntegrityError where another lease stands for a request."""
    about = (entry.kind.value, entry.subject)
    lease = None if entry.lease is None else bookdoc.text(bookdoc.lease_document(entry.lease))
    mark = None if entry.mark is None else bookdoc.text(bookdoc.mark_document(entry.mark))
    unmark = None if entry.unmark is None else entry.unmark.value
    told = (_utf8(text) for text in (entry.what, entry.actor, entry.detail))
    row = _summed(entry.revision, _real(entry.time), *about, *told, lease, int(entry.forget), mark, unmark)
    connection.execute(_PUT_ENTRY, row)
    if entry.lease is not None and entry.forget:
        connection.execute(_FORGET_LEASE, (entry.lease.id,))
    elif entry.lease is not None:
        connection.execute(_PUT_LEASE, _lease_row(entry.lease, lease))
    if entry.mark is not None:
        connection.execute(_PUT_MARK, _summed(*about, entry.mark.kind.value, mark))
    if unmark is not None:
        connection.execute(_DROP_MARK, (*about, unmark))
    if entry.gpu_map is not None:
        document = bookdoc.text(bookdoc.map_document(entry.gpu_map))
        connection.execute(_PUT_MAP, _summed(entry.revision, document))


def leases(connection: sqlite3.Connection, rest: str, values: Sequence[object] = ()) -> tuple[Lease, ...]:
    """The leases that `rest` of the statement leaves; raises BadRow."""
    return tuple(_lease(row) for row in connection.execute(_LEASES + rest, values))


def page(connection: sqlite3.Connection, *, owner: str, over: bool, number: int, limit: int) -> tuple[Lease, ...]:
    """Leases with higher numbers, in their order, as the port has it; raises BadRow."""
    wanted = ["number > ?", *(["owner = ?"] if owner else []), *([] if over else ["NOT over"])]
    values = (number, *([owner] if owner else []), limit or -1)
    return leases(connection, f"WHERE {' AND '.join(wanted)} ORDER BY number LIMIT ?", values)


def number(connection: sqlite3.Connection, lease_id: str) -> int | None:
    """What a lease is sorted by; None where there is none."""
    rows = connection.execute("SELECT number FROM leases WHERE id = ?", (lease_id,)).fetchall()
    return int(rows[0][0]) if rows else None


def entries(connection: sqlite3.Connection, after: int, limit: int) -> tuple[Entry, ...]:
    """The entries with higher revisions, in their order, at most so many; raises BadRow."""
    found = tuple(_entry(row) for row in connection.execute(_ENTRIES, (after, max(limit, 0))))
    maps = _maps(connection, after, found[-1].revision) if found else {}
    return tuple(replace(entry, gpu_map=maps[entry.revision]) if entry.revision in maps else entry for entry in found)


def book(connection: sqlite3.Connection) -> Book:
    """The book, after a look at every lease's row, since one that is live must not pass for one that is over.

    Raises BadRow.
    """
    rows = [row for row in connection.execute(_LEASES + "ORDER BY number") if not _checked("leases", row)[3]]
    live = {lease.id: lease for lease in map(_lease, rows)}
    marks = dict(_mark(row) for row in connection.execute(_MARKS))
    revision = _revision(connection)
    maps = _maps(connection, -1, revision)
    return Book(meta(connection, STORE_ID), revision, live, marks, maps[max(maps)] if maps else None)


def compact(connection: sqlite3.Connection, leases_before: float, entries_before: float, last: int) -> int:
    """Delete as the port has it, but no entry after `last`; the highest revision that went, 0 where none did."""
    connection.execute("DELETE FROM leases WHERE over AND ended < ?", (leases_before,))
    kept = connection.execute("SELECT min(revision) FROM entries WHERE time >= ?", (entries_before,)).fetchall()[0][0]
    end = last if kept is None else min(last, kept - 1)
    if not connection.execute("DELETE FROM entries WHERE revision <= ?", (end,)).rowcount:
        return 0
    put_meta(connection, COMPACTED, str(end))
    connection.execute(_DROP_MAPS, (end,))
    return end


def _revision(connection: sqlite3.Connection) -> int:
    """That of the last entry, which is never compacted away, so that the counter can be held against it."""
    last = connection.execute("SELECT max(revision) FROM entries").fetchall()[0][0] or 0
    rows = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'entries'").fetchall()
    counter = rows[0][0] if rows else 0
    if last != counter:
        raise BadRow(f"entries: the last revision is {last}, and the counter is at {counter}")
    return int(last)


def _lease_row(lease: Lease, document: str | None) -> Row:
    ended = None if lease.ended is None else _real(lease.ended)
    return _summed(lease.id, lease.owner, lease.request_id, int(lease.state.over), ended, document)


def _lease(row: Row) -> Lease:
    document = _checked("leases", row)[-2]
    with _reading("leases"):
        return bookdoc.read_lease(bookdoc.parsed(document))


def _mark(row: Row) -> tuple[MarkKey, Mark]:
    kind, subject, mark, document, _ = _checked("marks", row)
    with _reading("marks"):
        return (Kind(kind), subject, MarkKind(mark)), bookdoc.read_mark(bookdoc.parsed(document))


def _entry(row: Row) -> Entry:
    revision, time, kind, subject, what, actor, detail, lease, forget, mark, unmark, _ = _checked("entries", row)
    with _reading("entries"):
        return Entry(
            kind=Kind(kind),
            subject=subject,
            what=what,
            actor=actor,
            detail=detail,
            lease=None if lease is None else bookdoc.read_lease(bookdoc.parsed(lease)),
            forget=bool(forget),
            mark=None if mark is None else bookdoc.read_mark(bookdoc.parsed(mark)),
            unmark=None if unmark is None else MarkKind(unmark),
            revision=revision,
            time=time,
        )


def _maps(connection: sqlite3.Connection, after: int, end: int) -> dict[int, MapRecord]:
    """What was kept of the GPU map from each of these revisions on."""
    found = {}
    for row in connection.execute(_MAPS, (after, end)):
        revision, document, _ = _checked("gpu_maps", row)
        with _reading("gpu_maps"):
            found[revision] = bookdoc.read_map(bookdoc.parsed(document))
    return found


@contextlib.contextmanager
def _reading(table: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise BadRow(f"{table}: a row cannot be read: {error}") from error


def _summed(*values: object) -> Row:
    return (*values, _sum(values))


def _checked(table: str, row: Row) -> Row:
    if _sum(row[:-1]) != row[-1]:
        raise BadRow(f"{table}: the row of {row[0]!r} is not what was written")
    return row


def _sum(values: Row) -> int:
    return zlib.crc32(json.dumps(values, default=repr).encode())


def _real(value: float) -> float:
    """The number as SQLite gives it back, which knows no -0.0."""
    return float(value) + 0.0


def _utf8(text: str) -> str:
    """The text without what stands for bytes that were none, as in a file's name or another program's message."""
    return text.encode("utf-8", "replace").decode()
