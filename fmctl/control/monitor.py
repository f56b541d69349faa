# SPDX-License-Identifier: Apache-2.0
"""Keeps looking at Fabric Manager's state, and tells the log and the health service of every change."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from fmctl.core.answers import FabricState

log = logging.getLogger(__name__)

UNSETTLED_INTERVAL = 1.0
"""Seconds between two looks while Fabric Manager is not ready."""
REST = 3.0
"""So many times as long as a look took, the next one is left for; a slow host has a guest to boot meanwhile."""


class Monitor:
    """A thread of its own; as a context manager it runs for as long as the block."""

    def __init__(
        self, look: Callable[[], tuple[FabricState, str]], changed: Callable[[FabricState], None], *, interval: float
    ) -> None:
        """`look` tells the state and what explains it, and `changed` hears of each new state.

        It is asked every `interval` seconds, more often while not ready.
        """
        self._look = look
        self._changed = changed
        self._interval = interval
        self._news = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)
        self._state: FabricState | None = None

    def _run(self) -> None:
        while True:
            began = time.monotonic()
            try:
                self._note(*self._look())
            except Exception:
                log.exception("the look at Fabric Manager failed")
            soon = max(UNSETTLED_INTERVAL, REST * (time.monotonic() - began))
            settled = self._state is FabricState.READY
            self._news.wait(self._interval if settled else min(self._interval, soon))
            self._news.clear()
            if self._stopping:
                return

    def wake(self) -> None:
        """Let it look at once."""
        self._news.set()

    def _note(self, state: FabricState, message: str) -> None:
        if state is self._state:
            return
        self._state = state
        log.info("Fabric Manager is %s%s", state.value, f": {message}" if message else "")
        self._changed(state)

    def __enter__(self) -> Monitor:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping = True
        self._news.set()
        self._thread.join(timeout=10.0)
