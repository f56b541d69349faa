# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gc
import threading
import time
import weakref

import pytest

from fmctl.host.calls import Attempt, Calls, NoAnswer
from tests.support import eventually

T = 10.0
SOON = 0.05


class Hung:
    """A call that does not come back before it is let go; it may begin before that, or only then."""

    def __init__(self, *, begins: bool = True) -> None:
        self.over = threading.Event()
        self.done = threading.Event()
        self.effect = False
        self._begins = begins

    def __call__(self, attempt: Attempt) -> None:
        try:
            if self._begins:
                attempt.begin()
            assert self.over.wait(T)
            if not self._begins:
                attempt.begin()
            self.effect = True
        finally:
            self.done.set()


def test_a_call_returns_or_raises_what_its_work_does() -> None:
    calls = Calls()
    assert calls.run(lambda attempt: 7, timeout=T) == 7

    def fail(attempt: Attempt) -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        calls.run(fail, timeout=T)


def test_the_caller_leaves_at_the_deadline_and_the_call_goes_on() -> None:
    hung = Hung()
    before = time.monotonic()
    with pytest.raises(NoAnswer, match=r"no answer within 0\.05 s") as silence:
        Calls().run(hung, timeout=SOON)
    assert SOON <= time.monotonic() - before < 2.0
    assert silence.value.begun
    hung.over.set()
    assert hung.done.wait(T)
    assert hung.effect


def test_a_call_that_has_not_begun_by_its_deadline_never_does() -> None:
    hung = Hung(begins=False)
    with pytest.raises(NoAnswer) as silence:
        Calls().run(hung, timeout=SOON)
    assert not silence.value.begun
    hung.over.set()
    assert hung.done.wait(T)
    assert not hung.effect


def test_calls_that_hang_delay_no_other_until_there_are_too_many() -> None:
    calls = Calls(limit=3)
    stuck = [Hung() for _ in range(3)]
    for hung in stuck:
        assert calls.run(lambda attempt: 7, timeout=T) == 7
        with pytest.raises(NoAnswer, match="no answer"):
            calls.run(hung, timeout=SOON)
    with pytest.raises(NoAnswer, match="3 calls have not come back") as refused:
        calls.run(lambda attempt: 7, timeout=T)
    assert not refused.value.begun
    for hung in stuck:
        hung.over.set()
    eventually(lambda: answers(calls))


def answers(calls: Calls) -> bool:
    try:
        return calls.run(lambda attempt: True, timeout=T)
    except NoAnswer:
        return False


def test_calls_that_came_back_or_failed_leave_room_for_others() -> None:
    calls = Calls(limit=1)

    def fail(attempt: Attempt) -> None:
        raise OSError("oops")

    for _ in range(3):
        assert calls.run(lambda attempt: 7, timeout=T) == 7
        with pytest.raises(OSError, match="oops"):
            calls.run(fail, timeout=T)


def test_the_end_of_the_process_waits_for_no_call() -> None:
    threads: list[threading.Thread] = []
    Calls().run(lambda attempt: threads.append(threading.current_thread()), timeout=T)
    assert threads[0].daemon


class Handle:
    """Something that must be let go of in the thread of the call."""


def test_an_error_and_those_behind_it_keep_nothing_of_the_call() -> None:
    handles: list[weakref.ref[Handle]] = []

    def fail() -> None:
        handle = Handle()
        handles.append(weakref.ref(handle))
        raise OSError("the cause")

    def work(attempt: Attempt) -> None:
        handle = Handle()
        handles.append(weakref.ref(handle))
        try:
            fail()
        except OSError as error:
            raise NoAnswer("the error") from error

    gc.disable()
    try:
        with pytest.raises(NoAnswer, match="the error") as kept:
            Calls().run(work, timeout=T)
        assert [handle() for handle in handles] == [None, None]
    finally:
        gc.enable()
    assert str(kept.value.__cause__) == "the cause"
