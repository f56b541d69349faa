# SPDX-License-Identifier: Apache-2.0
"""Keeps the newest lines of the agent's logs, bounded in lines and bytes, for any number of readers.

Who writes never waits for a reader. A reader that comes too late for a line is told how many it lost.
"""

from __future__ import annotations

import bisect
import math
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter

from fmctl.core.errors import FabricNotReady
from fmctl.core.loglines import LogLine, LogPosition, LogSource

MAX_LINES = 2_000
MAX_BYTES = 1024 * 1024
MAX_TEXT = 4096
"""Characters of a line that are kept."""
MAX_READERS = 4
"""Streams at once: each takes a thread of the server, of which the other calls need some."""
FIRST_READER = 35.0
"""Seconds after the agent's start within which a daemon that lives reads the logs: it tries every 30 s at least."""
NEXT_READER = 10.0
"""Seconds after a reader's end within which one that lives is back."""


class LogBuffer:
    """The lines. As a context manager it ends its streams on leaving."""

    def __init__(
        self,
        *,
        max_lines: int = MAX_LINES,
        max_bytes: int = MAX_BYTES,
        instance: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`instance` names this run of the agent; a random name by default."""
        self.instance = instance or uuid.uuid4().hex
        self._clock = clock
        self._awaited_until = clock() + FIRST_READER
        self._max_lines = max_lines
        self._max_bytes = max_bytes
        self._changed = threading.Condition()
        self._lines: deque[LogLine] = deque()
        self._bytes = 0
        self._next = 1
        self._streams: set[_Stream] = set()
        self._closed = False

    @property
    def awaited(self) -> float:
        """Seconds for which a daemon that lives may begin to read yet; infinitely many while one reads."""
        with self._changed:
            return math.inf if self._streams else max(0.0, self._awaited_until - self._clock())

    def add(self, source: LogSource, when: float, text: str) -> None:
        """Take a line of that time, in seconds since the epoch; the oldest go where there is no room for it."""
        with self._changed:
            line = LogLine(source, when, text[:MAX_TEXT], self._next, self.instance)
            self._next += 1
            self._lines.append(line)
            self._bytes += _size(line)
            while len(self._lines) > self._max_lines or self._bytes > self._max_bytes:
                self._forget_one()
            self._changed.notify_all()

    def _forget_one(self) -> None:
        """Let the oldest line go; what a person changed past the daemon goes last, since the daemon must hear of it."""
        lines = enumerate(self._lines)
        index = next((index for index, line in lines if line.source is not LogSource.BREAK_GLASS), 0)
        self._bytes -= _size(self._lines[index])
        del self._lines[index]

    def last(self, source: LogSource, count: int) -> tuple[str, ...]:
        """The texts of that source's newest lines, at most `count`."""
        with self._changed:
            texts = [line.text for line in self._lines if line.source is source]
        return tuple(texts[-count:])

    def read(self, after: LogPosition) -> _Stream:
        """A stream of what came after that position, or of all that is kept where it is of another instance.

        Raises FabricNotReady where there are too many streams already.
        """
        stream = _Stream(self, after.sequence if after.instance == self.instance else 0)
        with self._changed:
            if len(self._streams) >= MAX_READERS:
                why = f"{MAX_READERS} callers are told them already"
                raise FabricNotReady("the logs are not told", why=why, fix="end one of those calls")
            self._streams.add(stream)
        return stream

    def next_line(self, stream: _Stream, sequence: int) -> LogLine | None:
        """The first line after that number, as soon as there is one; None where the stream ends instead."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended(stream) or self._has(sequence))
            if self._ended(stream):
                return None
            index = bisect.bisect_right(self._lines, sequence, key=attrgetter("sequence"))
            line = self._lines[index]
        return replace(line, dropped=line.sequence - sequence - 1)

    def end(self, stream: _Stream) -> None:
        """End a stream."""
        with self._changed:
            if stream in self._streams:
                self._awaited_until = self._clock() + NEXT_READER
            self._streams.discard(stream)
            self._changed.notify_all()

    def _ended(self, stream: _Stream) -> bool:
        return self._closed or stream not in self._streams

    def _has(self, sequence: int) -> bool:
        return bool(self._lines) and self._lines[-1].sequence > sequence

    def __enter__(self) -> LogBuffer:
        return self

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class _Stream:
    """The port `LogStream` for one reader."""

    def __init__(self, buffer: LogBuffer, sequence: int) -> None:
        self._buffer = buffer
        self._sequence = sequence

    def __iter__(self) -> _Stream:
        return self

    def __next__(self) -> LogLine:
        """The next line, as soon as there is one."""
        line = self._buffer.next_line(self, self._sequence)
        if line is None:
            raise StopIteration
        self._sequence = line.sequence
        return line

    def close(self) -> None:
        """End it."""
        self._buffer.end(self)


def _size(line: LogLine) -> int:
    """Bytes that a line may take, as far as that hangs on its text."""
    return len(line.text.encode(errors="replace")) + 200
