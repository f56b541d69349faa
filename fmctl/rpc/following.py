# SPDX-License-Identifier: Apache-2.0
"""A watch that outlives lost connections, restarts of the daemon, and entries that are no longer there."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fmctl.core.errors import AgentUnreachable, Compacted, FmctlError, Retryable
from fmctl.core.leased import Event, LeaseList
from fmctl.rpc.lease_client import LeaseClient

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0
"""Seconds between two attempts to reach the daemon, doubled from one to the next."""


@dataclass(frozen=True)
class Position:
    """From where a watch goes on: after that revision of that store."""

    revision: int
    store_id: str


class Following:
    """The leases of a host, and then every change, as an iterator without end.

    A list comes first, unless there is a position to go on from, and again wherever changes were missed. Then come
    events, and revisions where nothing happened.
    """

    def __init__(
        self,
        client: LeaseClient,
        *,
        timeout: float,
        position: Position | None = None,
        until: float | None = None,
        tell: Callable[[FmctlError], object] = lambda error: None,
    ) -> None:
        """`timeout` is how many seconds a list, and an outage, may take; `until`, of `time.monotonic`, ends all.

        `tell` hears why a list comes again, and of each outage once.
        """
        self.position = position
        self._client = client
        self._timeout = timeout
        self._until = until
        self._tell = tell
        self._pause = FIRST_PAUSE
        self._has_answered = False
        self._failing_since: float | None = None

    def __iter__(self) -> Iterator[LeaseList | Event | int]:
        """All that comes; raises FmctlError where the daemon cannot be reached at first, or for too long."""
        while self._left() > 0:
            try:
                yield from self._listed() if self.position is None else self._watched(self.position)
            except Compacted as error:
                self._tell(error)
                self.position = None
            except Retryable as error:
                self._wait(error)

    def _listed(self) -> Iterator[LeaseList]:
        found = self._client.leases(timeout=min(self._timeout, self._left()))
        self._note(found.revision, found.store_id)
        yield found

    def _watched(self, position: Position) -> Iterator[Event | int]:
        left = self._left()
        call = self._client.watch(position.revision, position.store_id, timeout=None if left == float("inf") else left)
        with contextlib.closing(call):
            for each in call:
                self._note(each if isinstance(each, int) else each.entry.revision, position.store_id)
                yield each
        raise AgentUnreachable("the daemon told no more", fix="see its log")

    def _note(self, revision: int, store_id: str) -> None:
        self.position = Position(revision, store_id)
        self._has_answered, self._failing_since, self._pause = True, None, FIRST_PAUSE

    def _wait(self, error: Retryable) -> None:
        """Wait before the next attempt; raises the error where there is none."""
        if self._left() <= 0:
            return
        if not self._has_answered:
            raise error
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
            self._tell(error)
        if now - self._failing_since > self._timeout:
            raise error
        time.sleep(max(0.0, min(self._pause, self._left())))
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _left(self) -> float:
        return float("inf") if self._until is None else self._until - time.monotonic()
