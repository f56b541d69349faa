# SPDX-License-Identifier: Apache-2.0
"""The book of a host in memory: the port `Store`, whose commits can be made to fail, and whose process can die."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from fmctl.core import stored
from fmctl.core.book import Book, Entry, Mark, MarkKey
from fmctl.core.errors import StoreUnusable
from fmctl.core.lease import Lease
from fmctl.core.mapsource import MapRecord


@dataclass(frozen=True)
class _Content:
    """What survives the process. Leases stand in the order in which they were first committed."""

    store_id: str
    revision: int = 0
    compacted: int = 0
    leases: dict[str, Lease] = field(default_factory=dict)
    marks: dict[MarkKey, Mark] = field(default_factory=dict)
    gpu_map: MapRecord | None = None
    entries: tuple[Entry, ...] = ()

    def with_lease(self, lease: Lease, *, forget: bool) -> _Content:
        leases = dict(self.leases)
        if forget:
            leases.pop(lease.id, None)
            return replace(self, leases=leases)
        for other in leases.values():
            if (other.owner, other.request_id) == (lease.owner, lease.request_id) and other.id != lease.id:
                raise stored.taken(lease.owner, lease.request_id, other.id)
        leases[lease.id] = lease
        return replace(self, leases=leases)

    def book(self) -> Book:
        live = {lease.id: lease for lease in self.leases.values() if not lease.state.over}
        return Book(self.store_id, self.revision, live, self.marks, self.gpu_map)


class MemoryStore:
    """A store whose content is a value, so that a commit is there whole or not at all.

    While `full` is set no commit succeeds, as on a full disk.
    """

    def __init__(self, store_id: str = "") -> None:
        """An empty store, of that id or of one of its own."""
        self.full = False
        self._lock = threading.Lock()
        self._content = _Content(store_id or str(uuid.uuid4()))
        self._book = self._content.book()

    def reopened(self) -> MemoryStore:
        """What another process finds after this one died; this one's later commits are not in it."""
        store = MemoryStore(self._content.store_id)
        store._content = self._content
        store._book = self._content.book()
        return store

    @property
    def book(self) -> Book:
        """The book after the last commit."""
        return self._book

    def commit(self, entries: Sequence[Entry], *, at: float) -> tuple[Entry, ...]:
        """Make these entries durable together; raises RequestIdReused, and StoreUnusable while `full` is set."""
        with self._lock:
            content = self._content
            committed = tuple(entry.committed(content.revision + 1 + n, at) for n, entry in enumerate(entries))
            book = self._book.after(committed)
            for entry in committed:
                if entry.lease is not None:
                    content = content.with_lease(entry.lease, forget=entry.forget)
            self._write(
                replace(
                    content,
                    revision=book.revision,
                    marks=dict(book.marks),
                    gpu_map=book.gpu_map,
                    entries=(*content.entries, *committed),
                )
            )
            self._book = book
            return committed

    def lease(self, lease_id: str) -> Lease:
        """A lease, also one that is over; raises NoSuchLease."""
        found = self._content.leases.get(lease_id)
        if found is None:
            raise stored.unknown(lease_id)
        return found

    def by_request(self, owner: str, request_id: str) -> Lease | None:
        """The lease that stands for a request, also one that is over."""
        leases = self._content.leases.values()
        return next((x for x in leases if (x.owner, x.request_id) == (owner, request_id)), None)

    def leases(self, *, owner: str = "", over: bool = False, after: str = "", limit: int = 0) -> tuple[Lease, ...]:
        """Leases, first committed first, after the lease `after`; raises NoSuchLease where that is gone."""
        leases = list(self._content.leases.values())
        if after:
            leases = leases[leases.index(self.lease(after)) + 1 :]
        wanted = [x for x in leases if owner in ("", x.owner) and (over or not x.state.over)]
        return tuple(wanted[: limit or None])

    def entries(self, after: int, *, limit: int) -> tuple[Entry, ...]:
        """The entries with higher revisions, in their order, at most so many; raises Compacted."""
        content = self._content
        if not content.compacted <= after <= content.revision:
            raise stored.compacted(after, content.compacted, content.revision)
        return tuple(entry for entry in content.entries if entry.revision > after)[: max(limit, 0)]

    def compact(self, *, leases_before: float, entries_before: float) -> None:
        """Forget old leases and the first entries."""
        with self._lock:
            content = self._content
            leases = {
                key: lease
                for key, lease in content.leases.items()
                if not lease.state.over or lease.ended is None or lease.ended >= leases_before
            }
            kept = content.entries
            while len(kept) > 1 and kept[0].time < entries_before:
                kept = kept[1:]
            compacted = kept[0].revision - 1 if kept else 0
            self._write(replace(content, leases=leases, entries=kept, compacted=compacted))

    def _write(self, content: _Content) -> None:
        if self.full:
            raise StoreUnusable("the store cannot be written", why="database or disk is full", fix="free space")
        self._content = content
