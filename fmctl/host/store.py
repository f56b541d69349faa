# SPDX-License-Identifier: Apache-2.0
"""The book of a host in an SQLite file: the port `Store`.

`host.storefile` opens the file, `host.storerows` writes and reads its rows, and `host.journal` keeps the audit journal
that goes with it. A commit is one transaction, which is on the disk when it returns.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from fmctl.core import stored
from fmctl.core.book import Book, Entry
from fmctl.core.lease import Lease
from fmctl.host import storefaults, storefile, storerows
from fmctl.host.journal import LIMIT, Journal
from fmctl.host.storerows import BadRow
from fmctl.host.storeschema import MIGRATIONS, Migration

log = logging.getLogger(__name__)

_BATCH = 1000
"""Entries that are caught up in the journal at once."""


class FileStore:
    """The store in one file, for many threads. As a context manager it is closed on leaving."""

    def __init__(
        self,
        path: Path,
        *,
        journal: Path | None = None,
        journal_limit: int = LIMIT,
        migrations: Sequence[Migration] = MIGRATIONS,
    ) -> None:
        """Open the store in `path`, which is made if it is missing, and add to the journal what a crash left out.

        `journal_limit` is in bytes, for each of the journal's two files. Raises StoreUnusable where another process
        has the store, or it is damaged, of a later fmctl, or older than its journal.
        """
        self._path = path
        self._lock = threading.Lock()
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, storefile.lock(path))
            self._sql = undo.enter_context(contextlib.closing(storefile.opened(path, migrations)))
            with storefile.failing(path, "read"):
                self._book = storerows.book(self._sql)
                self._compacted = int(storerows.meta(self._sql, storerows.COMPACTED))
            self._journal = None if journal is None else Journal(journal, self._book.store_id, limit=journal_limit)
            self._behind, self._warned = True, False
            self._refuse_older_than_journal()
            self._tell(b"")
            self._closing = undo.pop_all()

    @property
    def book(self) -> Book:
        """The book after the last commit; never waits."""
        return self._book

    def close(self) -> None:
        """Let go of the file, for others to open; every method raises StoreUnusable from now on."""
        with self._lock:
            self._closing.close()

    def __enter__(self) -> FileStore:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def commit(self, entries: Sequence[Entry], *, at: float) -> tuple[Entry, ...]:
        """Make these entries durable together, and tell the journal; raises RequestIdReused."""
        with self._lock:
            first = self._book.revision + 1
            committed = tuple(entry.committed(revision, at) for revision, entry in enumerate(entries, first))
            lines = b"" if self._journal is None else self._journal.lines(committed)
            with self._transaction():
                for entry in committed:
                    self._put(entry)
            try:
                self._tell(lines)
            finally:
                self._book = self._book.after(committed)
            return committed

    def lease(self, lease_id: str) -> Lease:
        """A lease, also one that is over; raises NoSuchLease."""
        with self._reading():
            found = storerows.leases(self._sql, "WHERE id = ?", (lease_id,))
        if not found:
            raise stored.unknown(lease_id)
        return found[0]

    def by_request(self, owner: str, request_id: str) -> Lease | None:
        """The lease that stands for a request, also one that is over."""
        with self._reading():
            found = storerows.leases(self._sql, "WHERE owner = ? AND request_id = ?", (owner, request_id))
        return found[0] if found else None

    def leases(self, *, owner: str = "", over: bool = False, after: str = "", limit: int = 0) -> tuple[Lease, ...]:
        """Leases, first committed first, after the lease `after`; raises NoSuchLease where that is gone."""
        with self._reading():
            number = storerows.number(self._sql, after) if after else 0
            if number is None:
                raise stored.unknown(after)
            return storerows.page(self._sql, owner=owner, over=over, number=number, limit=limit)

    def entries(self, after: int, *, limit: int) -> tuple[Entry, ...]:
        """The entries with higher revisions, in their order, at most so many; raises Compacted."""
        with self._reading():
            if not self._compacted <= after <= self._book.revision:
                raise stored.compacted(after, self._compacted, self._book.revision)
            return storerows.entries(self._sql, after, limit)

    def compact(self, *, leases_before: float, entries_before: float) -> None:
        """Forget old leases and the first entries; those that the journal has not are kept."""
        with self._lock:
            last = 0 if self._behind else self._book.revision - 1
            with self._transaction():
                compacted = storerows.compact(self._sql, leases_before, entries_before, last)
            self._compacted = max(self._compacted, compacted)

    def backup(self, path: Path) -> None:
        """Copy the store, while commits go on, into a new file, which opens as this store; overwrites nothing."""
        storefile.backup(self._path, path)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        with self._lock, storefile.failing(self._path, "read"):
            yield

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """Make all of the block's changes durable, or none; with the lock."""
        with storefile.failing(self._path, "written"):
            self._sql.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._roll_back()
                raise
            try:
                self._sql.execute("COMMIT")
            except BaseException:
                self._roll_back()
                self._write_over()
                raise

    def _roll_back(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            if self._sql.in_transaction:
                self._sql.execute("ROLLBACK")

    def _write_over(self) -> None:
        """Put another transaction, which changes nothing, in the place of one that failed; it may fail as well.

        A commit whose fsync failed stands whole in the write-ahead log, and the next start would take it for one that
        succeeded.
        """
        with contextlib.suppress(sqlite3.Error):
            self._sql.execute("BEGIN IMMEDIATE")
            storerows.put_meta(self._sql, storerows.COMPACTED, str(self._compacted))
            self._sql.execute("COMMIT")
        self._roll_back()

    def _put(self, entry: Entry) -> None:
        try:
            storerows.put_entry(self._sql, entry)
        except sqlite3.IntegrityError as error:
            lease = entry.lease
            if lease is None or "leases.request_id" not in str(error):
                raise
            found = storerows.leases(self._sql, "WHERE owner = ? AND request_id = ?", (lease.owner, lease.request_id))
            raise stored.taken(lease.owner, lease.request_id, found[0].id) from None

    def _refuse_older_than_journal(self) -> None:
        """Raise StoreUnusable where commits that were acknowledged are gone."""
        if self._journal is None:
            return
        with contextlib.suppress(OSError):
            told = self._journal.last()
            if told > self._book.revision:
                raise storefaults.older(self._path, self._book.revision, self._journal.path, told)

    def _tell(self, lines: bytes) -> None:
        """Append lines to the journal, or all that it lacks; the store goes on without it. With the lock."""
        if self._journal is None:
            self._behind = False
            return
        try:
            if self._behind:
                self._catch_up(self._journal)
            elif lines:
                self._journal.append(lines)
        except (OSError, sqlite3.Error, BadRow, UnicodeDecodeError) as error:
            self._behind = True
            if not self._warned:
                log.error("entries are in the store alone, since %s cannot be written: %s", self._journal.path, error)
            self._warned = True
            return
        if self._warned:
            log.info("%s has every entry again", self._journal.path)
        self._behind, self._warned = False, False

    def _catch_up(self, journal: Journal) -> None:
        after = journal.last()
        while entries := storerows.entries(self._sql, after, _BATCH):
            journal.append(journal.lines(entries))
            after = entries[-1].revision
