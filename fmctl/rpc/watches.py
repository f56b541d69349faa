# SPDX-License-Identifier: Apache-2.0
"""Streams without an end of their own: so many at once, none that nobody reads, and none after the server's end.

Each takes a thread of the server's, which waits in gRPC for as long as the reader takes nothing off it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import grpc

from fmctl.core.errors import FabricNotReady
from fmctl.rpc.server import STREAMS

T = TypeVar("T")

log = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds within which a reader must take a message off the server, beyond what lies in gRPC's own buffers."""
FAREWELL = 2.0
"""Seconds that streams have to end by themselves, which look once a second whether they should."""


@dataclass(eq=False)
class _Watch:
    context: grpc.ServicerContext
    sending_since: float | None = None

    def is_stuck(self, latest: float) -> bool:
        """Whether a message waits for its reader since before `latest`."""
        since = self.sending_since
        return since is not None and since < latest


class Watches:
    """The streams under way, with one thread that looks at all of them."""

    def __init__(
        self, most: int = STREAMS, patience: float = PATIENCE, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`patience` is in seconds."""
        self._most = most
        self._patience = patience
        self._clock = clock
        self._changed = threading.Condition()
        self._watches: set[_Watch] = set()
        self._closing = threading.Event()
        self._guard: threading.Thread | None = None

    @property
    def under_way(self) -> int:
        """How many are under way."""
        return len(self._watches)

    def serve(self, context: grpc.ServicerContext, follow: Callable[[Callable[[], bool]], Iterator[T]]) -> Iterator[T]:
        """What `follow` yields, for as long as it is told that the reader is there.

        Raises FabricNotReady where there are too many streams already, and where the server ends: either way the caller
        may come again, and to this host alone, which NO_CAPACITY would deny.
        """
        watch = self._enter(context)
        try:
            for message in follow(lambda: context.is_active() and not self._closing.is_set()):
                watch.sending_since = self._clock()
                yield message
                watch.sending_since = None
        finally:
            with self._changed:
                self._watches.discard(watch)
                self._changed.notify_all()
        if self._closing.is_set():
            raise _ending()

    def close(self) -> None:
        """Let every stream end, cut off those that do not within two seconds, and take no more."""
        self._closing.set()
        with self._changed:
            self._changed.wait_for(lambda: not self._watches, FAREWELL)
            late = tuple(self._watches)
        for watch in late:
            watch.context.cancel()
        if self._guard is not None:
            self._guard.join()

    def _enter(self, context: grpc.ServicerContext) -> _Watch:
        watch = _Watch(context)
        with self._changed:
            if self._closing.is_set():
                raise _ending()
            if len(self._watches) >= self._most:
                why = f"{self._most} are served already"
                raise FabricNotReady("this watch is not served", why=why, fix="end another one, or come again later")
            self._watches.add(watch)
            if self._guard is None:
                self._guard = threading.Thread(target=self._look, name="watches", daemon=True)
                self._guard.start()
        return watch

    def _look(self) -> None:
        """Cut off whoever reads too slowly, until the end."""
        while not self._closing.wait(self._patience / 4):
            latest = self._clock() - self._patience
            with self._changed:
                late = [watch for watch in self._watches if watch.is_stuck(latest)]
            for watch in late:
                log.warning("a watch was cut off: its reader took nothing for %g s", self._patience)
                watch.context.cancel()


def _ending() -> FabricNotReady:
    return FabricNotReady("this watch ends", why="the daemon stops", fix="watch again once it is back")
