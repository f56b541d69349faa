# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading
import time

import pytest

from fmctl.control.logbuffer import MAX_READERS, MAX_TEXT, LogBuffer
from fmctl.core.errors import FabricNotReady
from fmctl.core.loglines import LogLine, LogPosition, LogSource
from tests.support import eventually

FM, KERNEL = LogSource.FABRIC_MANAGER, LogSource.KERNEL
START = LogPosition()


def filled(*texts: str, max_lines: int = 100, max_bytes: int = 1 << 20) -> LogBuffer:
    buffer = LogBuffer(max_lines=max_lines, max_bytes=max_bytes, instance="one")
    for text in texts:
        buffer.add(FM, 1.0, text)
    return buffer


def take(buffer: LogBuffer, count: int, after: LogPosition = START) -> list[LogLine]:
    stream = buffer.read(after)
    lines = [next(stream) for _ in range(count)]
    stream.close()
    return lines


def test_a_reader_gets_what_is_kept_in_order() -> None:
    lines = take(filled("a", "b", "c"), 3)
    assert [(line.text, line.sequence, line.dropped, line.instance) for line in lines] == [
        ("a", 1, 0, "one"),
        ("b", 2, 0, "one"),
        ("c", 3, 0, "one"),
    ]
    assert (lines[0].source, lines[0].time) == (FM, 1.0)


def test_a_reader_goes_on_where_it_stopped() -> None:
    (line,) = take(filled("a", "b", "c"), 1, LogPosition("one", 2))
    assert line.text == "c"


def test_a_position_of_another_run_counts_for_nothing() -> None:
    (line,) = take(filled("a", "b"), 1, LogPosition("other", 2))
    assert (line.text, line.dropped) == ("a", 0)


@pytest.mark.parametrize(("lines", "size"), [(2, 1 << 20), (100, 500)])
def test_the_oldest_go_first_and_are_counted(lines: int, size: int) -> None:
    buffer = filled("a", "b", "c", "d", max_lines=lines, max_bytes=size)
    assert [(line.text, line.dropped) for line in take(buffer, 2)] == [("c", 2), ("d", 0)]
    (line,) = take(buffer, 1, LogPosition("one", 1))
    assert (line.text, line.dropped) == ("c", 1)
    (line,) = take(buffer, 1, LogPosition("one", 2))
    assert (line.text, line.dropped) == ("c", 0)


def test_a_long_line_is_cut_and_memory_stays_bounded() -> None:
    buffer = filled(max_bytes=100_000)
    for _ in range(1000):
        buffer.add(FM, 1.0, "\N{EURO SIGN}" * MAX_TEXT * 2)
    kept = buffer.last(FM, 1000)
    assert len(kept) == 8
    assert set(map(len, kept)) == {MAX_TEXT}


def test_a_slow_reader_holds_nobody_up_and_is_told_what_it_lost() -> None:
    buffer = filled("first", max_lines=10)
    slow = buffer.read(START)
    assert next(slow).text == "first"
    began = time.monotonic()
    for number in range(10_000):
        buffer.add(FM, 1.0, str(number))
    assert time.monotonic() - began < 5
    line = next(slow)
    assert (line.text, line.dropped) == ("9990", 9990)
    assert [next(slow).dropped for _ in range(9)] == [0] * 9


def test_a_reader_waits_for_the_next_line() -> None:
    buffer = filled()
    heard: list[str] = []
    thread = threading.Thread(target=lambda: heard.append(next(buffer.read(START)).text))
    thread.start()
    time.sleep(0.05)
    assert not heard
    buffer.add(FM, 1.0, "now")
    thread.join(5)
    assert heard == ["now"]


def test_a_stream_ends_when_it_is_closed_from_elsewhere() -> None:
    buffer = filled("a")
    stream = buffer.read(START)
    heard: list[LogLine] = []
    thread = threading.Thread(target=lambda: heard.extend(stream))
    thread.start()
    eventually(lambda: heard)
    stream.close()
    thread.join(5)
    assert not thread.is_alive()
    stream.close()


def test_all_streams_end_with_the_agent() -> None:
    with filled("a") as buffer:
        stream = buffer.read(START)
        thread = threading.Thread(target=list, args=(stream,))
        thread.start()
    thread.join(5)
    assert not thread.is_alive()


def test_too_many_readers_are_refused_and_a_closed_one_makes_room() -> None:
    buffer = filled("a")
    streams = [buffer.read(START) for _ in range(MAX_READERS)]
    with pytest.raises(FabricNotReady, match="4 callers are told them already"):
        buffer.read(START)
    streams[0].close()
    assert next(buffer.read(START)).text == "a"


def test_the_last_lines_are_of_one_source() -> None:
    buffer = filled("a", "b", "c")
    buffer.add(KERNEL, 1.0, "k")
    assert buffer.last(FM, 2) == ("b", "c")
    assert buffer.last(KERNEL, 2) == ("k",)
    assert filled().last(FM, 2) == ()


def test_each_run_has_a_name_of_its_own() -> None:
    assert LogBuffer().instance != LogBuffer().instance
