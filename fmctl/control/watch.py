# SPDX-License-Identifier: Apache-2.0
"""Follows the book: a store that tells of its commits, and the stream of entries that a watcher gets."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

from fmctl.core import stored
from fmctl.core.book import Book, Entry
from fmctl.core.lease import Lease
from fmctl.core.ports import Store

BOOKMARK_INTERVAL = 10.0
"""Seconds without an entry after which a watcher is told the revision alone."""
BATCH = 100
"""Entries that are read at a time."""


class WatchedStore:
    """The port `Store` over another one; whoever waits hears of every commit."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._committed = threading.Condition()

    @property
    def book(self) -> Book:
        """The book after the last commit."""
        return self._store.book

    def commit(self, entries: Sequence[Entry], *, at: float) -> tuple[Entry, ...]:
        """Make these entries durable together, and tell whoever waits."""
        done = self._store.commit(entries, at=at)
        with self._committed:
            self._committed.notify_all()
        return done

    def wait_after(self, revision: int, timeout: float) -> bool:
        """Wait until there is a later revision than that, or so many seconds; whether there is."""
        with self._committed:
            return self._committed.wait_for(lambda: self._store.book.revision > revision, timeout)

    def lease(self, lease_id: str) -> Lease:
        """A lease, also one that is over."""
        return self._store.lease(lease_id)

    def by_request(self, owner: str, request_id: str) -> Lease | None:
        """The lease that stands for a request."""
        return self._store.by_request(owner, request_id)

    def leases(self, *, owner: str = "", over: bool = False, after: str = "", limit: int = 0) -> tuple[Lease, ...]:
        """Leases, in their order."""
        return self._store.leases(owner=owner, over=over, after=after, limit=limit)

    def entries(self, after: int, *, limit: int) -> tuple[Entry, ...]:
        """The entries with higher revisions."""
        return self._store.entries(after, limit=limit)

    def compact(self, *, leases_before: float, entries_before: float) -> None:
        """Forget what is old."""
        self._store.compact(leases_before=leases_before, entries_before=entries_before)


def follow(
    store: WatchedStore,
    after: int,
    store_id: str,
    *,
    alive: Callable[[], bool],
    bookmark_interval: float = BOOKMARK_INTERVAL,
) -> Iterator[Entry | int]:
    """Every entry after that revision of that store, and now and then the revision alone, while the reader is `alive`.

    Raises Compacted where some are gone, or the store is another one.
    """
    if store_id != store.book.store_id:
        raise stored.compacted(after, store.book.revision, store.book.revision)
    quiet_since = time.monotonic()
    while alive():
        found = store.entries(after, limit=BATCH)
        for entry in found:
            yield entry
            after, quiet_since = entry.revision, time.monotonic()
        left = quiet_since + bookmark_interval - time.monotonic()
        if left <= 0:
            yield after
            quiet_since = time.monotonic()
        elif not found:
            store.wait_after(after, min(left, 1.0))
