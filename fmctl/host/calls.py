# SPDX-License-Identifier: Apache-2.0
"""Calls that may hang, each in a thread of its own, which its caller leaves behind at the deadline.

`host.hypervisor` makes libvirt's calls this way.
"""

from __future__ import annotations

import concurrent.futures
import threading
import traceback
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

MAX_CALLS = 16
"""Calls that may be under way at once, those included that nobody waits for any more."""


class NoAnswer(Exception):
    """A call has no outcome; `begun` tells whether it may have had, or may still have, an effect."""

    def __init__(self, why: str, *, begun: bool = False) -> None:
        super().__init__(why)
        self.begun = begun


class Attempt:
    """A call that may begin only until its caller leaves it: one that never began never has an effect."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun = False
        self._abandoned = False

    def begin(self) -> None:
        """Have an effect from now on; raises NoAnswer where nobody waits for it any more."""
        with self._lock:
            if self._abandoned:
                raise NoAnswer("nobody waits for it any more")
            self._begun = True

    def abandon(self) -> bool:
        """Let it not begin any more; whether it has."""
        with self._lock:
            self._abandoned = True
            return self._begun


class Calls:
    """So many calls at once, each with a deadline."""

    def __init__(self, limit: int = MAX_CALLS) -> None:
        self._limit = limit
        self._slots = threading.BoundedSemaphore(limit)

    def run(self, work: Callable[[Attempt], T], *, timeout: float) -> T:
        """What `work` returns or raises within `timeout` seconds; else raises NoAnswer, and `work` goes on."""
        if not self._slots.acquire(blocking=False):
            raise NoAnswer(f"{self._limit} calls have not come back")
        attempt = Attempt()
        outcome: concurrent.futures.Future[T] = concurrent.futures.Future()

        def run() -> None:
            try:
                result = work(attempt)
            except Exception as error:
                _forget(error)
                self._slots.release()
                outcome.set_exception(error)
            else:
                self._slots.release()
                outcome.set_result(result)

        threading.Thread(target=run, name="call", daemon=True).start()
        if not concurrent.futures.wait([outcome], timeout).done:
            raise NoAnswer(f"no answer within {timeout:g} s", begun=attempt.abandon())
        return outcome.result()


def _forget(error: BaseException | None) -> None:
    """Let go of all that the frames of an error hold, here and now, and not in the thread where the error ends."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
