# SPDX-License-Identifier: Apache-2.0
"""Proves to the service manager that this program's own loops turn; one that is stuck gets the program killed.

Each loop says how long one of its turns may take at most, and beats once a turn. What is outside the program, such as
Fabric Manager or libvirt, is no matter of the watchdog: a loop that waits for those has a deadline, and beats past it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fmctl.notify import Notifier

log = logging.getLogger(__name__)

IDLE_INTERVAL = 10.0
"""Seconds between two looks where no manager wants pings."""
PINGS_PER_PERIOD = 2


@dataclass(frozen=True)
class Turn:
    """A loop's turn: which loop, and until when it must have beaten again."""

    name: str
    due: float


def overdue(turns: Iterable[Turn], now: float) -> tuple[str, ...]:
    """The loops that should have beaten by now; decides, and does nothing else."""
    return tuple(turn.name for turn in turns if turn.due < now)


class Beat:
    """What a loop calls once a turn. `end` takes the loop off the watchdog's list."""

    def __init__(self, name: str, longest: float, clock: Callable[[], float], end: Callable[[Beat], None]) -> None:
        self._longest = longest
        self._clock = clock
        self._end = end
        self.name = name
        self.turn = Turn(name, clock() + longest)

    def __call__(self, *, within: float | None = None) -> None:
        """The loop lives. `within` seconds are granted this once, instead of the longest that a turn usually takes."""
        self.turn = Turn(self.name, self._clock() + (self._longest if within is None else within))

    def end(self) -> None:
        """The loop has ended as it should."""
        self._end(self)


class Watchdog:
    """Pings while no loop is overdue. As a context manager it does so for as long as the block.

    The block is to end with `Notifier.stopping`: from then on the manager has another deadline, and asks for no pings.
    """

    def __init__(self, notifier: Notifier, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` tells seconds, and never goes back."""
        self._notifier = notifier
        self._clock = clock
        self._beats: list[Beat] = []
        self._lock = threading.Lock()
        self._stuck: tuple[str, ...] = ()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def loop(self, name: str, *, longest: float) -> Beat:
        """Watch a loop whose turns take at most `longest` seconds, from now on; it calls what is returned."""
        beat = Beat(name, longest, self._clock, self._forget)
        with self._lock:
            self._beats.append(beat)
        return beat

    def probe(self, name: str, ask: Callable[[], object], *, every: float, longest: float) -> None:
        """Watch what has no loop to beat in: `ask` it now and then, in a thread of its own.

        It lives while `ask` returns, and raises no exception, at least once in `longest` seconds.
        """
        beat = self.loop(name, longest=longest)
        self._start(f"probe of {name}", lambda: self._probe(ask, beat, every))

    def overdue(self) -> tuple[str, ...]:
        """The loops that are overdue now."""
        with self._lock:
            return overdue([beat.turn for beat in self._beats], self._clock())

    def look(self) -> None:
        """Ping, or tell which loop is stuck; the thread's one turn."""
        stuck = self.overdue()
        self._tell(stuck)
        if not stuck and self._notifier.watchdog_s is not None:
            self._notifier.ping()

    def _tell(self, stuck: tuple[str, ...]) -> None:
        """Log what changed, and let `systemctl status` show what is stuck, which the manager will kill for it."""
        for name in set(self._stuck) - set(stuck):
            log.warning("the loop of %s turns again", name)
        for name in set(stuck) - set(self._stuck):
            log.error("the loop of %s is stuck", name)
            self._notifier.status(f"stuck: {name}")
        self._stuck = stuck

    def _forget(self, beat: Beat) -> None:
        with self._lock:
            self._beats = [other for other in self._beats if other is not beat]

    def _probe(self, ask: Callable[[], object], beat: Beat, every: float) -> None:
        told = False
        while not self._stopping.wait(every):
            try:
                ask()
            except Exception as error:
                if not told:
                    log.warning("%s does not answer its own probe: %s", beat.name, error)
                told = True
            else:
                told = False
                beat()

    @property
    def _interval(self) -> float:
        period = self._notifier.watchdog_s
        return IDLE_INTERVAL if period is None else period / PINGS_PER_PERIOD

    def _run(self) -> None:
        while True:
            self.look()
            if self._stopping.wait(self._interval):
                return

    def _start(self, name: str, run: Callable[[], None]) -> None:
        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def __enter__(self) -> Watchdog:
        self._start("watchdog", self._run)
        return self

    def __exit__(self, *error: object) -> None:
        """Stop looking; nothing waits for a probe, which may hang."""
        self._stopping.set()
        self._threads[0].join(timeout=1.0)
