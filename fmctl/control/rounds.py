# SPDX-License-Identifier: Apache-2.0
"""A loop of its own for what is done over and over: every so many seconds, and at once when it is woken."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


class Rounds:
    """A thread; as a context manager it runs for as long as the block."""

    def __init__(
        self,
        name: str,
        turn: Callable[[], object],
        *,
        interval: float,
        beat: Callable[[], object] = lambda: None,
        patience: float = 10.0,
    ) -> None:
        """`turn` is done every `interval` seconds, and `beat` called before each.

        The block ends without a turn that is under way for more than `patience` seconds more.
        """
        self._turn = turn
        self._name = name
        self._interval = interval
        self._beat = beat
        self._patience = patience
        self._news = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def wake(self) -> None:
        """Let it do a turn at once."""
        self._news.set()

    def _run(self) -> None:
        while not self._stopping:
            self._beat()
            try:
                self._turn()
            except Exception:
                log.exception("a turn of the %s failed", self._name)
            self._news.wait(self._interval)
            self._news.clear()

    def __enter__(self) -> Rounds:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping = True
        self._news.set()
        self._thread.join(timeout=self._patience)
