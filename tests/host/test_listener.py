# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from fmctl.host.calls import Calls, NoAnswer
from fmctl.host.listener import Listener
from tests.support import eventually

T = 10.0


class Ear:
    """An ear to nowhere."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self.tell = changed
        self.closed = 0
        self.looks = 0
        self._broken = False

    @property
    def broken(self) -> bool:
        self.looks += 1
        return self._broken

    def close(self) -> None:
        self.closed += 1

    def snap(self) -> None:
        """Break, and tell."""
        self._broken = True
        self.tell()


class World:
    """Makes ears, unless it is silent or takes its time."""

    def __init__(self) -> None:
        self.ears: list[Ear] = []
        self.attempts: list[float] = []
        self.silent = False
        self.awake = threading.Event()
        self.awake.set()

    def listen(self, changed: Callable[[], None]) -> Ear:
        self.attempts.append(time.monotonic())
        assert self.awake.wait(T)
        if self.silent:
            raise NoAnswer("it is silent")
        self.ears.append(Ear(changed))
        return self.ears[-1]

    @property
    def closed(self) -> list[int]:
        return [ear.closed for ear in self.ears]


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def listening(world: World) -> Iterator[Listener]:
    with contextlib.closing(Listener(world.listen, Calls(), pauses=(0.01, 0.04))) as listening:
        yield listening
        world.awake.set()


def settled(told: threading.Event) -> bool:
    """Whether nothing is told for a while."""
    told.clear()
    return not told.wait(0.1)


def test_nobody_listens_before_somebody_watches(listening: Listener, world: World) -> None:
    assert not world.attempts
    listening.watch(lambda: None)
    eventually(lambda: world.ears)


def test_who_watches_is_told_at_first_and_of_all_news(listening: Listener, world: World) -> None:
    told = threading.Event()
    listening.watch(told.set)
    assert told.wait(T)
    eventually(lambda: world.ears)
    for _ in range(3):
        eventually(lambda: settled(told))
        world.ears[0].tell()
        assert told.wait(T)
    assert len(world.ears) == 1


def test_a_sound_ear_is_left_alone_while_there_is_no_news(listening: Listener, world: World) -> None:
    told = threading.Event()
    listening.watch(told.set)
    eventually(lambda: settled(told))
    before = world.ears[0].looks
    assert settled(told)
    assert world.ears[0].looks == before
    assert len(world.attempts) == 1


def test_everybody_who_watches_is_told_even_if_one_fails(listening: Listener, world: World) -> None:
    def fail() -> None:
        raise RuntimeError("a defect")

    first, last = threading.Event(), threading.Event()
    for changed in (first.set, fail, last.set):
        listening.watch(changed)
    eventually(lambda: world.ears)
    eventually(lambda: settled(first) and settled(last))
    world.ears[0].tell()
    assert first.wait(T)
    assert last.wait(T)
    assert len([thread for thread in threading.enumerate() if thread.name == "listener"]) == 1


def test_a_broken_ear_is_told_of_and_replaced_as_soon_as_can_be(listening: Listener, world: World) -> None:
    told = threading.Event()
    listening.watch(told.set)
    for count in (1, 2, 3):
        eventually(lambda expected=count: len(world.ears) == expected)  # type: ignore[misc]
        eventually(lambda: settled(told))
        world.silent = True
        before = len(world.attempts)
        world.ears[-1].snap()
        assert told.wait(T)
        eventually(lambda earlier=before: len(world.attempts) > earlier + 3)  # type: ignore[misc]
        assert settled(told)
        world.silent = False
        assert told.wait(T)
    eventually(lambda: world.closed == [1, 1, 1, 0])


def test_the_pauses_between_attempts_grow_up_to_a_limit(world: World) -> None:
    world.silent = True
    with contextlib.closing(Listener(world.listen, Calls(), pauses=(0.02, 0.08))) as listening:
        listening.watch(lambda: None)
        eventually(lambda: len(world.attempts) >= 12, within=5.0)
    gaps = [later - earlier for earlier, later in itertools.pairwise(world.attempts[1:])]
    assert all(gap >= pause for gap, pause in zip(gaps, (0.04, *[0.08] * 9), strict=False))


def test_after_an_ear_the_pauses_start_anew(world: World) -> None:
    world.silent = True
    with contextlib.closing(Listener(world.listen, Calls(), pauses=(0.05, 3600.0))) as listening:
        listening.watch(lambda: None)
        eventually(lambda: len(world.attempts) >= 4)
        world.silent = False
        eventually(lambda: world.ears)
        world.silent = True
        world.ears[0].snap()
        eventually(lambda: len(world.attempts) >= 6)
    assert world.attempts[5] - world.attempts[4] < 0.4


def test_an_ear_that_comes_late_is_taken_and_what_it_tells_is_heard(world: World) -> None:
    world.awake.clear()
    told = threading.Event()
    late = Listener(world.listen, Calls(), open_timeout=0.02, pauses=(3600.0, 3600.0))
    with contextlib.closing(late) as listening:
        listening.watch(told.set)
        eventually(lambda: world.attempts)
        eventually(lambda: settled(told))
        world.awake.set()
        assert told.wait(T)
        eventually(lambda: settled(told))
        world.ears[world.closed.index(0)].tell()
        assert told.wait(T)
        assert world.closed.count(0) == 1
    eventually(lambda: all(world.closed))


def test_of_several_late_ears_one_is_kept(world: World) -> None:
    world.awake.clear()
    late = Listener(world.listen, Calls(), open_timeout=0.02, pauses=(0.01, 0.01))
    with contextlib.closing(late) as listening:
        listening.watch(lambda: None)
        eventually(lambda: len(world.attempts) >= 3)
        world.awake.set()
        eventually(lambda: len(world.ears) >= 3 and sum(world.closed) == len(world.ears) - 1)
    eventually(lambda: all(world.closed))


@pytest.mark.parametrize("closer", ["another thread", "who watches"])
def test_closing_ends_the_ear_and_the_thread_whoever_closes(listening: Listener, world: World, closer: str) -> None:
    told = threading.Event()
    listening.watch(told.set)
    eventually(lambda: settled(told))
    closed = threading.Event()

    def close() -> None:
        listening.close()
        closed.set()

    if closer == "who watches":
        listening.watch(close)
    else:
        close()
    assert closed.wait(T)
    eventually(lambda: not [thread for thread in threading.enumerate() if thread.name == "listener"])
    told.clear()
    world.ears[0].tell()
    assert settled(told)
    eventually(lambda: world.closed == [1])


def test_an_ear_that_comes_after_closing_is_closed(listening: Listener, world: World) -> None:
    world.awake.clear()
    listening.watch(lambda: None)
    eventually(lambda: world.attempts)
    closing = threading.Thread(target=listening.close)
    closing.start()
    world.awake.set()
    closing.join(T)
    eventually(lambda: world.closed == [1])
