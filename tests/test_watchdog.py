# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import threading

import pytest

from fmctl.notify import Notifier
from fmctl.watchdog import Turn, Watchdog, overdue
from tests.support import eventually


class Recorder(Notifier):
    """A manager that notes what it is told."""

    def __init__(self, watchdog_s: float | None = 30.0) -> None:
        super().__init__("/nowhere", watchdog_s)
        self.heard: list[str] = []

    def _send(self, *assignments: str, descriptor: int | None = None) -> None:
        self.heard.extend(assignments)

    @property
    def pings(self) -> int:
        return self.heard.count("WATCHDOG=1")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_loop_is_overdue_once_its_time_has_passed() -> None:
    turns = [Turn("monitor", 10.0), Turn("relay", 20.0)]
    assert overdue(turns, 10.0) == ()
    assert overdue(turns, 10.1) == ("monitor",)
    assert overdue(turns, 20.1) == ("monitor", "relay")


def test_it_pings_while_every_loop_beats(clock: Clock) -> None:
    manager = Recorder()
    dog = Watchdog(manager, clock=clock)
    beats = [dog.loop("service VM", longest=300.0), dog.loop("relay", longest=10.0)]
    for _ in range(5):
        clock.now += 9.0
        for beat in beats:
            beat()
        dog.look()
    assert manager.heard == ["WATCHDOG=1"] * 5


def test_one_stuck_loop_stops_the_pings_and_is_told_once(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    manager = Recorder()
    dog = Watchdog(manager, clock=clock)
    dog.loop("service VM", longest=300.0)
    relay = dog.loop("relay", longest=10.0)
    clock.now += 10.5
    dog.look()
    dog.look()
    assert manager.heard == ["STATUS=stuck: relay"]
    assert [record.message for record in caplog.records] == ["the loop of relay is stuck"]
    relay()
    dog.look()
    assert manager.pings == 1
    assert caplog.records[-1].message == "the loop of relay turns again"


def test_a_loop_that_never_beats_is_overdue_too(clock: Clock) -> None:
    dog = Watchdog(Recorder(), clock=clock)
    dog.loop("monitor", longest=10.0)
    clock.now += 10.5
    assert dog.overdue() == ("monitor",)


def test_a_turn_can_be_granted_more_once(clock: Clock) -> None:
    dog = Watchdog(Recorder(), clock=clock)
    beat = dog.loop("service VM", longest=10.0)
    beat(within=300.0)
    clock.now += 299.0
    assert dog.overdue() == ()
    beat()
    clock.now += 11.0
    assert dog.overdue() == ("service VM",)


def test_a_loop_that_has_ended_is_no_longer_missed(clock: Clock) -> None:
    dog = Watchdog(Recorder(), clock=clock)
    first, second = dog.loop("log", longest=1.0), dog.loop("log", longest=1.0)
    first.end()
    clock.now += 2.0
    assert dog.overdue() == ("log",)
    second.end()
    assert dog.overdue() == ()


def test_without_a_watchdog_it_tells_and_does_not_ping(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    manager = Recorder(watchdog_s=None)
    dog = Watchdog(manager, clock=clock)
    dog.loop("relay", longest=10.0)
    dog.look()
    clock.now += 10.5
    dog.look()
    assert manager.pings == 0
    assert dog.overdue() == ("relay",)
    assert "the loop of relay is stuck" in caplog.text


def test_its_thread_pings_twice_a_period_until_a_loop_is_stuck() -> None:
    manager = Recorder(watchdog_s=0.02)
    with Watchdog(manager) as dog:
        eventually(lambda: manager.pings >= 3)
        dog.loop("relay", longest=-1.0)
        eventually(lambda: "STATUS=stuck: relay" in manager.heard)
        before = manager.pings
        threading.Event().wait(0.1)
        assert manager.pings == before


def test_a_probe_beats_while_it_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    asked, hangs = threading.Semaphore(0), threading.Event()

    def ask() -> None:
        asked.release()
        if hangs.is_set():
            threading.Event().wait(60)

    with Watchdog(Recorder(watchdog_s=0.02)) as dog:
        dog.probe("API", ask, every=0.01, longest=0.5)
        for _ in range(60):
            assert asked.acquire(timeout=5)
        assert dog.overdue() == ()
        hangs.set()
        eventually(lambda: dog.overdue() == ("API",))


def test_a_probe_that_is_refused_does_not_beat(caplog: pytest.LogCaptureFixture) -> None:
    def ask() -> None:
        raise ConnectionRefusedError("nobody listens")

    with Watchdog(Recorder(watchdog_s=0.02)) as dog:
        dog.probe("API", ask, every=0.01, longest=0.05)
        eventually(lambda: dog.overdue() == ("API",))
    assert caplog.text.count("API does not answer its own probe: nobody listens") == 1
