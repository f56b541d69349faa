# SPDX-License-Identifier: Apache-2.0
"""The port `Store` where the store cannot be opened: it knows nothing, and refuses everything with the reason."""

from __future__ import annotations

from collections.abc import Sequence

from fmctl.core.book import Book, Entry, Kind, Mark, MarkKind
from fmctl.core.errors import StoreUnusable
from fmctl.core.lease import Lease


class ClosedStore:
    """A daemon with it lists partitions, and changes nothing: its host counts as only observed."""

    def __init__(self, error: StoreUnusable, at: float) -> None:
        """`at` is when the store could not be opened, in seconds since the epoch."""
        self._error = error
        self._book = Book(
            marks={(Kind.HOST, "", kind): Mark(kind, str(error), at) for kind in (MarkKind.OBSERVED, MarkKind.MET)}
        )

    @property
    def book(self) -> Book:
        """A book without leases, of a host that is only observed."""
        return self._book

    def commit(self, entries: Sequence[Entry], *, at: float) -> tuple[Entry, ...]:
        """Refuse."""
        raise self._error

    def lease(self, lease_id: str) -> Lease:
        """Refuse."""
        raise self._error

    def by_request(self, owner: str, request_id: str) -> Lease | None:
        """Refuse."""
        raise self._error

    def leases(self, *, owner: str = "", over: bool = False, after: str = "", limit: int = 0) -> tuple[Lease, ...]:
        """Refuse."""
        raise self._error

    def entries(self, after: int, *, limit: int) -> tuple[Entry, ...]:
        """Refuse."""
        raise self._error

    def compact(self, *, leases_before: float, entries_before: float) -> None:
        """Refuse."""
        raise self._error

    def close(self) -> None:
        """Nothing is open."""
