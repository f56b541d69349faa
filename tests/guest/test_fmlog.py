# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from fmctl.core import fmlog
from fmctl.guest.fmlog import MAX_LINE, TAIL, FmLog
from tests.rpc.scenarios import descriptors
from tests.support import eventually

WHEN = datetime(2026, 11, 20, 15, 7, 37)
NOW = 5.0


class Log:
    """A log that is followed, one look at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.read: list[tuple[float, str]] = []
        self.follower = FmLog(path, lambda time, text: self.read.append((time, text)), wall=lambda: NOW)

    def write(self, text: str, mode: str = "a") -> None:
        with self.path.open(mode) as stream:
            stream.write(text)

    def look(self) -> list[str]:
        """The texts that a look brings."""
        before = len(self.read)
        self.follower.look()
        return [text for _, text in self.read[before:]]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = Log(tmp_path / "fm.log")
    yield log
    log.follower._close()


def test_each_line_comes_once_as_it_is_written(log: Log) -> None:
    assert log.look() == []
    log.write("a\nb\n")
    assert log.look() == ["a", "b"]
    assert log.look() == []
    log.write("c")
    assert log.look() == []
    log.write("d\n\ne\n")
    assert log.look() == ["cd", "e"]


def test_a_line_s_time_is_its_own_or_that_of_the_one_before(log: Log) -> None:
    log.write("no head yet\n" + fmlog.line(WHEN, "INFO", 1, "x") + "\n  more of it\n")
    log.look()
    assert [time for time, _ in log.read] == [NOW, WHEN.timestamp(), WHEN.timestamp()]


def test_a_rotated_log_is_read_to_its_end_and_then_the_new_one(log: Log) -> None:
    log.write("a\n")
    assert log.look() == ["a"]
    log.write("b\nlast words")
    log.path.rename(log.path.with_suffix(".1"))
    assert log.look() == ["b"]
    log.write("c\n", "w")
    assert log.look() == ["last words", "c"]
    log.write("d\n")
    assert log.look() == ["d"]


def test_a_rotation_between_two_looks_loses_nothing(log: Log) -> None:
    log.write("a\n")
    log.look()
    log.write("b\n")
    log.path.rename(log.path.with_suffix(".1"))
    log.write("c\n", "w")
    assert log.look() == ["b", "c"]


def test_a_truncated_log_is_read_from_its_start(log: Log) -> None:
    log.write("a long line\nanother\nhalf")
    assert log.look() == ["a long line", "another"]
    log.write("new\n", "w")
    assert log.look() == ["half", "new"]


def test_only_the_end_of_what_was_there_before_is_read(log: Log) -> None:
    line = "x" * 99
    log.write(f"{line}\n" * (2 * TAIL // 100))
    seen = log.look()
    assert TAIL // 100 - 1 <= len(seen) <= TAIL // 100
    assert set(seen) == {line}


def test_all_of_a_log_that_comes_later_is_read(log: Log) -> None:
    log.look()
    log.write("y\n" * TAIL)
    assert len(log.look()) == TAIL


def test_a_line_without_an_end_is_cut(log: Log) -> None:
    log.look()
    log.write("z" * (MAX_LINE + TAIL))
    assert sum(map(len, log.look())) >= MAX_LINE


def test_bytes_that_are_no_text_do_not_stop_it(log: Log) -> None:
    log.path.write_bytes(b"\xff\xfe\nok\n")
    assert log.look()[1] == "ok"


def test_one_that_cannot_be_read_is_told_once_and_followed_when_it_can(
    log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    log.path.mkdir()
    log.look()
    log.look()
    assert caplog.text.count("cannot be followed") == 1
    log.path.rmdir()
    log.write("a\n")
    assert log.look() == ["a"]


def test_it_follows_in_a_thread_of_its_own_and_leaves_nothing_open(tmp_path: Path) -> None:
    read: list[str] = []
    before = descriptors()
    with FmLog(tmp_path / "fm.log", lambda time, text: read.append(text), interval=0.01):
        (tmp_path / "fm.log").write_text("a\n")
        eventually(lambda: read == ["a"])
    assert descriptors() == before
