# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading

from fmctl.control.rounds import Rounds
from tests.support import eventually


def test_a_turn_is_done_at_once_over_and_over_and_when_woken() -> None:
    turns: list[int] = []
    with Rounds("test", lambda: turns.append(1), interval=0.01):
        eventually(lambda: len(turns) >= 3)
    ended = len(turns)
    with Rounds("test", lambda: turns.append(1), interval=1000.0) as rounds:
        eventually(lambda: len(turns) == ended + 1)
        rounds.wake()
        eventually(lambda: len(turns) == ended + 2)


def test_a_turn_that_fails_is_followed_by_another_and_each_beats_first() -> None:
    beats: list[int] = []
    failed = threading.Event()

    def turn() -> None:
        if len(beats) == 1:
            raise ValueError("no")
        failed.set()

    with Rounds("test", turn, interval=0.01, beat=lambda: beats.append(1)):
        assert failed.wait(10)
