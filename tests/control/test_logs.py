# SPDX-License-Identifier: Apache-2.0
"""The daemon's ear, over an agent in memory that is lost, restarted or too old."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator

import pytest

from fmctl.control.agent import LocalAgent
from fmctl.control.logbuffer import LogBuffer
from fmctl.control.logs import GuestLogs
from fmctl.core.errors import AgentUnreachable, FmctlError, VersionMismatch
from fmctl.core.loglines import LogLine, LogPosition, LogSource, LogStream
from fmctl.sim.fmservice import Unmanaged
from fmctl.sim.nvfm import MemoryNvfm
from tests.support import eventually

FM, KERNEL = LogSource.FABRIC_MANAGER, LogSource.KERNEL
SXID = "[   12.345678] nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): {}, {}, Link 46"


class Guest(LocalAgent):
    """An agent whose way to it may be cut, and which may be started again."""

    def __init__(self) -> None:
        self.buffer = LogBuffer()
        self.failure: FmctlError | None = None
        self.asked: list[LogPosition] = []
        self._streams: list[LogStream] = []
        super().__init__(MemoryNvfm(None), Unmanaged(), lambda: None, library="", call_timeout=30)

    def logs(self, after: LogPosition) -> LogStream:
        self.asked.append(after)
        if self.failure:
            raise self.failure
        self._streams.append(self.buffer.read(after))
        return self._streams[-1]

    def says(self, *texts: str, source: LogSource = FM) -> None:
        for text in texts:
            self.buffer.add(source, 1.0, text)

    def cut(self) -> None:
        for stream in self._streams:
            stream.close()

    def start_again(self, *repeated: str) -> None:
        self.buffer = LogBuffer()
        self.says(*repeated)
        self.cut()


@pytest.fixture
def guest() -> Guest:
    return Guest()


@contextlib.contextmanager
def listening(guest: Guest, max_lines: int = 2000, max_bytes: int = 1 << 20) -> Iterator[GuestLogs]:
    logs = GuestLogs(guest, max_lines=max_lines, max_bytes=max_bytes, first_pause=0.01, too_old_pause=0.02)
    with logs:
        yield logs


def texts(logs: GuestLogs, count: int = 1000) -> list[str]:
    return [line.text for line in logs.recent(count)]


def test_lines_come_as_they_are_written(guest: Guest) -> None:
    guest.says("before")
    with listening(guest) as logs:
        eventually(lambda: texts(logs) == ["before"])
        guest.says("a", "b")
        eventually(lambda: texts(logs) == ["before", "a", "b"])
        assert texts(logs, 1) == ["b"]
        assert texts(logs, 0) == []
        assert isinstance(logs.recent(1)[0], LogLine)


def test_a_lost_connection_loses_no_line(guest: Guest) -> None:
    with listening(guest) as logs:
        guest.says("a")
        eventually(lambda: texts(logs) == ["a"])
        guest.failure = AgentUnreachable("away")
        guest.cut()
        guest.says("b", "c")
        eventually(lambda: len(guest.asked) > 2)
        guest.failure = None
        eventually(lambda: texts(logs) == ["a", "b", "c"])
        assert logs.dropped == 0
    assert guest.asked[-1] == LogPosition(guest.buffer.instance, 1)


def test_an_agent_that_was_started_again_is_not_heard_twice(guest: Guest) -> None:
    with listening(guest) as logs:
        guest.says("a", "a", "b")
        eventually(lambda: len(texts(logs)) == 3)
        guest.start_again("a", "a", "a", "b", "c")
        eventually(lambda: texts(logs) == ["a", "a", "b", "a", "c"])


def test_what_was_dropped_is_counted_and_told(guest: Guest, caplog: pytest.LogCaptureFixture) -> None:
    guest.buffer = LogBuffer(max_lines=2)
    guest.says("a", "b", "c", "d", "e")
    with listening(guest) as logs:
        eventually(lambda: texts(logs) == ["d", "e"])
        assert logs.dropped == 3
    assert "3 lines of the Service VM's logs were lost" in caplog.text


def test_memory_is_bounded_in_lines_and_bytes(guest: Guest) -> None:
    with listening(guest, max_lines=3) as logs:
        guest.says(*"abcdef")
        eventually(lambda: texts(logs) == ["d", "e", "f"])
    guest = Guest()
    with listening(guest, max_bytes=1000) as logs:
        guest.says(*("x" * 300,) * 10, "end")
        eventually(lambda: texts(logs)[-1:] == ["end"])
        assert len(texts(logs)) == 2


@pytest.mark.parametrize(
    ("source", "text", "level"),
    [
        (KERNEL, SXID.format(28006, "Non-fatal"), logging.WARNING),
        (KERNEL, SXID.format(12020, "Fatal"), logging.ERROR),
        (KERNEL, "[    5.000000] 99 kernel messages were overwritten before they were read", logging.WARNING),
        (FM, "[Nov 20 2026 15:07:37] [ERROR] [tid 1] it broke", logging.ERROR),
        (FM, "[Nov 20 2026 15:07:37] [CRITICAL] [tid 1] it broke", logging.ERROR),
        (FM, "[Nov 20 2026 15:07:37] [INFO] [tid 1] ERROR is only a word here", None),
        (FM, "no head", None),
    ],
)
def test_errors_stand_in_the_daemon_s_own_log(
    guest: Guest, caplog: pytest.LogCaptureFixture, source: LogSource, text: str, level: int | None
) -> None:
    with listening(guest) as logs:
        guest.says(text, source=source)
        eventually(lambda: texts(logs) == [text])
        time.sleep(0.02)
    found = [record.levelno for record in caplog.records if text in record.getMessage()]
    assert found == ([] if level is None else [level])


def test_nothing_in_a_line_reaches_a_terminal(guest: Guest) -> None:
    with listening(guest) as logs:
        guest.says("a\x1b[2Jb\r\u2028c")
        eventually(lambda: texts(logs) == ["a\ufffd[2Jb\ufffd\ufffdc"])


def test_an_older_agent_is_told_once_and_asked_again(guest: Guest, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    guest.failure = VersionMismatch("the agent does not know this call")
    with listening(guest) as logs:
        eventually(lambda: len(guest.asked) > 3)
        guest.failure = None
        guest.says("at last")
        eventually(lambda: texts(logs) == ["at last"])
    assert caplog.text.count("the agent is older") == 1


def test_a_defect_does_not_end_the_reading(guest: Guest, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Guest):
        def logs(self, after: LogPosition) -> LogStream:
            if not self.asked:
                self.asked.append(after)
                raise RuntimeError("defect")
            return super().logs(after)

    broken = Broken()
    broken.says("a")
    with listening(broken) as logs:
        eventually(lambda: texts(logs) == ["a"])
    assert "reading the Service VM's logs failed" in caplog.text


def test_it_ends_at_once_also_while_it_waits(guest: Guest) -> None:
    began = time.monotonic()
    with listening(guest):
        eventually(lambda: guest.asked)
    assert time.monotonic() - began < 2
    assert "Service VM's logs" not in [thread.name for thread in threading.enumerate()]
