# SPDX-License-Identifier: Apache-2.0
"""Listens for as long as somebody watches: what it listens with may break, and is replaced.

`host.hypervisor` listens to libvirt this way.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Protocol

from fmctl.host.calls import Attempt, Calls, NoAnswer

log = logging.getLogger(__name__)

OPEN_TIMEOUT = 10.0
"""Seconds that one attempt to listen again may take."""
PAUSES = (0.25, 5.0)
"""Seconds between the first two such attempts, doubled from one to the next, and at most."""
CLOSE_TIMEOUT = 5.0
"""Seconds that closing waits for the thread that listens."""


class Ear(Protocol):
    """A connection that tells of news until it breaks, which is news, too."""

    @property
    def broken(self) -> bool:
        """Whether it tells of nothing any more."""

    def close(self) -> None:
        """Let go of it; may hang."""


class Listener:
    """Tells everybody who watches, in a thread of its own."""

    def __init__(
        self,
        listen: Callable[[Callable[[], None]], Ear],
        calls: Calls,
        *,
        open_timeout: float = OPEN_TIMEOUT,
        pauses: tuple[float, float] = PAUSES,
    ) -> None:
        """`listen` makes an ear that calls what it is given, or raises NoAnswer; it may hang, so it is one of `calls`.

        An ear must not be asked anything while it calls: libvirt holds locks meanwhile that its answer needs.
        """
        self._listen = listen
        self._calls = calls
        self._open_timeout = open_timeout
        self._first_pause, self._longest_pause = pauses
        self._state = threading.Condition()
        self._ear: Ear | None = None
        self._ears = 0
        self._news = False
        self._closed = False
        self._watchers: tuple[Callable[[], None], ...] = ()
        self._thread = threading.Thread(target=self._run, name="listener", daemon=True)

    def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed` soon, and then on all news, and whenever there is a new ear or none."""
        with self._state:
            first = not self._watchers
            self._watchers = (*self._watchers, changed)
            self._tell()
        if first:
            self._thread.start()

    @property
    def hearing(self) -> int:
        """The number of the ear that listens; 0 while none does."""
        ear, number = self._ear, self._ears
        return 0 if ear is None or ear.broken else number

    def close(self) -> None:
        """Tell nobody any more."""
        with self._state:
            self._closed = True
            self._state.notify_all()
        self._drop()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(CLOSE_TIMEOUT)

    def _run(self) -> None:
        pause = 0.0
        while not self._closed:
            pause = 0.0 if self._listens() else min(max(2 * pause, self._first_pause), self._longest_pause)
            if self._has_news(pause):
                for changed in self._watchers:
                    _call(changed)

    def _has_news(self, pause: float) -> bool:
        """Wait for news, a late ear among them, but no longer than a pause before the next attempt to have one."""
        with self._state:
            self._state.wait_for(lambda: self._closed or self._news, pause or None)
            news, self._news = self._news, False
            return news

    def _listens(self) -> bool:
        """Whether there is an ear, after an attempt to have one."""
        ear = self._ear
        if ear is not None and not ear.broken:
            return True
        self._drop()
        with contextlib.suppress(NoAnswer):
            self._calls.run(self._open, timeout=self._open_timeout)
        return self._ear is not None

    def _open(self, attempt: Attempt) -> None:
        """Take a new ear, however late, unless there is another."""
        ear = self._listen(self._noted)
        with self._state:
            wanted = self._ear is None and not self._closed
            if wanted:
                self._ear = ear
                self._ears += 1
                self._tell()
        if not wanted:
            ear.close()

    def _drop(self) -> None:
        with self._state:
            ear, self._ear = self._ear, None
        if ear is not None:
            threading.Thread(target=ear.close, name="listener close", daemon=True).start()

    def _noted(self) -> None:
        with self._state:
            self._tell()

    def _tell(self) -> None:
        """Wake the thread; with the lock."""
        self._news = True
        self._state.notify_all()


def _call(changed: Callable[[], None]) -> None:
    try:
        changed()
    except Exception:
        log.exception("who heard of a change failed")
