# SPDX-License-Identifier: Apache-2.0
"""The daemon's ear in the Service VM: reads the agent's logs, keeps the newest lines, and tells of errors.

`control.logbuffer` is the agent's side. What the agent still has is read after a lost connection, and what it repeats
after its own restart is recognised.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace

from fmctl.core import fmlog, sxid
from fmctl.core.errors import FmctlError, VersionMismatch
from fmctl.core.loglines import LogLine, LogPosition, LogSource, LogStream
from fmctl.core.ports import KeptAgent
from fmctl.core.sxid import Severity

log = logging.getLogger(__name__)

MAX_LINES = 2_000
MAX_BYTES = 1024 * 1024
MAX_TEXT = 4096
"""Characters of a line that are kept."""
FIRST_PAUSE = 1.0
LAST_PAUSE = 30.0
"""Seconds between two attempts to reach the agent: doubled from the first to the last."""
TOO_OLD_PAUSE = 60.0
"""Seconds until an agent that tells no logs is asked again: it may have been replaced."""


class GuestLogs:
    """The lines of the Service VM's logs. As a context manager it reads for as long as the block."""

    def __init__(
        self,
        agent: KeptAgent,
        *,
        max_lines: int = MAX_LINES,
        max_bytes: int = MAX_BYTES,
        first_pause: float = FIRST_PAUSE,
        too_old_pause: float = TOO_OLD_PAUSE,
        record: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`record` takes what the agent recorded of changes past the daemon, and does not raise."""
        self._agent = agent
        self._record = record
        self._max_lines = max_lines
        self._max_bytes = max_bytes
        self._first_pause = first_pause
        self._too_old_pause = too_old_pause
        self._lock = threading.Lock()
        self._lines: deque[LogLine] = deque()
        self._bytes = 0
        self._dropped = 0
        self._position = LogPosition()
        self._known: Counter[str] = Counter()
        self._stream: LogStream | None = None
        self._said_too_old = False
        self._heard = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="Service VM's logs", daemon=True)

    def recent(self, lines: int) -> tuple[LogLine, ...]:
        """The newest lines, at most as many, the newest last."""
        with self._lock:
            kept = tuple(self._lines)
        return kept[max(0, len(kept) - lines) :]

    @property
    def dropped(self) -> int:
        """How many lines were lost on the way here."""
        return self._dropped

    def _run(self) -> None:
        pause = self._first_pause
        while not self._stopping.is_set():
            self._heard, too_old = False, False
            try:
                self._read()
            except VersionMismatch as error:
                too_old = True
                self._say_too_old(error)
            except FmctlError as error:
                log.debug("the Service VM's logs are not read: %s", error)
            except Exception:
                log.exception("reading the Service VM's logs failed")
            pause = self._first_pause if self._heard else min(2 * pause, LAST_PAUSE)
            self._stopping.wait(self._too_old_pause if too_old else pause)

    def _read(self) -> None:
        """Take what the agent tells until it ends, or is lost."""
        stream = self._agent.logs(self._position)
        with self._lock:
            self._stream = stream
        try:
            if self._stopping.is_set():
                return
            for line in stream:
                self._heard = True
                self._said_too_old = False
                self._take(line)
        finally:
            stream.close()

    def _say_too_old(self, error: VersionMismatch) -> None:
        if not self._said_too_old:
            log.info("the logs in the Service VM are not told: the agent is older (%s)", error)
        self._said_too_old = True

    def _take(self, line: LogLine) -> None:
        line = replace(line, text=_clean(line.text[:MAX_TEXT]))
        if line.instance == self._position.instance:
            line = replace(line, instance=self._position.instance)  # one text for all of them
        else:
            self._known = Counter(kept.text for kept in self._lines)
        self._position = LogPosition(line.instance, line.sequence)
        if line.dropped:
            self._dropped += line.dropped
            log.warning("%d lines of the Service VM's logs were lost", line.dropped)
        if self._known[line.text]:
            self._known[line.text] -= 1  # an agent that was started again tells it once more
            return
        self._keep(line)
        if line.source is LogSource.BREAK_GLASS:
            self._record(line.text)
        level = _level(line)
        if level is not None:
            log.log(level, "in the Service VM: %s", line.text)

    def _keep(self, line: LogLine) -> None:
        with self._lock:
            self._lines.append(line)
            self._bytes += _size(line)
            while len(self._lines) > self._max_lines or self._bytes > self._max_bytes:
                self._bytes -= _size(self._lines.popleft())

    def __enter__(self) -> GuestLogs:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        with self._lock:
            stream = self._stream
        if stream is not None:
            stream.close()
        self._thread.join(timeout=5.0)


def _level(line: LogLine) -> int | None:
    """How loudly the daemon's own log repeats a line; None for not at all."""
    if line.source is LogSource.BREAK_GLASS:
        return logging.WARNING
    if line.source is LogSource.KERNEL:
        report = sxid.parse(line.text)
        return logging.ERROR if report and report.severity is Severity.FATAL else logging.WARNING
    entry = fmlog.parse(line.text)
    return logging.ERROR if entry and entry.level in fmlog.SEVERE else None


def _clean(text: str) -> str:
    """The text with nothing in it that a terminal or a log would take for something else."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _size(line: LogLine) -> int:
    """Bytes that a line may take, as far as that hangs on its text."""
    return len(line.text.encode(errors="replace")) + 200
