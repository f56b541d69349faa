# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from datetime import datetime

import pytest

from fmctl.core import fmlog
from fmctl.core.fmlog import Entry


def test_a_line_is_read() -> None:
    line = "[Nov 20 2026 15:07:37] [INFO] [tid 4711] Connected to 1 node."
    assert fmlog.parse(line) == Entry(datetime(2026, 11, 20, 15, 7, 37), "INFO", "Connected to 1 node.")


def test_a_day_of_one_digit_and_no_thread() -> None:
    parsed = fmlog.parse("[Dec  1 2026 00:00:00] [CRITICAL] text [x]")
    assert parsed == Entry(datetime(2026, 12, 1), "CRITICAL", "text [x]")


@pytest.mark.parametrize(
    "line",
    [
        "",
        "    more of the line above",
        "[Nov 31 2026 15:07:37] [INFO] [tid 1] no such day",
        "[Foo 20 2026 15:07:37] [INFO] [tid 1] no such month",
        "[Nov 20 2026 15:07] [INFO] text",
    ],
)
def test_a_line_without_a_head_is_none(line: str) -> None:
    assert fmlog.parse(line) is None


def test_what_is_made_reads_back() -> None:
    when = datetime(2026, 1, 5, 3, 4, 5)
    assert fmlog.line(when, "ERROR", 12, "it broke") == "[Jan 05 2026 03:04:05] [ERROR] [tid 12] it broke"
    assert fmlog.parse(fmlog.line(when, "ERROR", 12, "it broke")) == Entry(when, "ERROR", "it broke")
