# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any

import pytest

from fmctl.rpc.exchange import exchange, within


class Side:
    """A socket that is always ready: it has so many bytes to give, and takes all."""

    def __init__(self, content: int, *, shutdown: OSError | None = None) -> None:
        self.left = content
        self.taken = 0
        self.ended = False
        self._shutdown = shutdown

    def recv_into(self, buffer: memoryview) -> int:
        count = min(self.left, len(buffer))
        self.left -= count
        return count

    def send(self, block: memoryview) -> int:
        self.taken += len(block)
        return len(block)

    def shutdown(self, how: int) -> None:
        self.ended = how == socket.SHUT_WR
        if self._shutdown:
            raise self._shutdown


async def between(near: Any, far: Any) -> int:
    """Exchange; how often the far side was heard."""
    heard: list[None] = []
    await exchange(near, far, lambda: heard.append(None), half_closed_timeout=5)
    return len(heard)


def test_each_side_gets_what_the_other_has_and_its_end() -> None:
    near, far = Side(3_000_000), Side(5)
    assert asyncio.run(between(near, far)) == 1
    assert (near.taken, near.ended, far.taken, far.ended) == (5, True, 3_000_000, True)


def test_sides_that_are_always_ready_leave_others_their_turn() -> None:
    async def turns() -> int:
        busy = asyncio.ensure_future(between(Side(1 << 30), Side(0)))
        turns = 0
        while not busy.done():
            turns += 1
            await asyncio.sleep(0)
        return turns

    assert asyncio.run(turns()) > 10_000


def test_a_side_that_cannot_be_told_of_the_end_is_still_read() -> None:
    near, far = Side(5), Side(1 << 20, shutdown=OSError(errno.ENOTCONN, "not connected"))
    asyncio.run(between(near, far))
    assert near.taken == 1 << 20


def test_a_failed_exchange_leaves_nothing_behind() -> None:
    class Reset(Side):
        def recv_into(self, buffer: memoryview) -> int:
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    async def attempt() -> None:
        idle, other = socket.socketpair()
        idle.setblocking(False)
        with idle, other:
            with pytest.raises(ConnectionResetError):
                await between(Reset(0), idle)
            assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(attempt())


def test_what_takes_too_long_has_ended_when_that_is_told() -> None:
    ended: list[str] = []

    async def slow() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0)
            ended.append("slow")

    async def attempt() -> None:
        with pytest.raises(TimeoutError, match=r"no answer within 0\.1 s"):
            await within(0.1, slow())
        assert ended == ["slow"]

    asyncio.run(attempt())


def test_what_ends_in_time_gives_its_outcome() -> None:
    async def outcome() -> int:
        return 3

    async def failure() -> int:
        raise ValueError("no")

    assert asyncio.run(within(5, outcome())) == 3
    with pytest.raises(ValueError, match="no"):
        asyncio.run(within(5, failure()))


def test_a_cancelled_wait_cancels_what_it_waits_for() -> None:
    async def attempt() -> None:
        action = asyncio.ensure_future(asyncio.sleep(30))
        waiting = asyncio.ensure_future(within(30, action))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert action.cancelled()

    asyncio.run(attempt())
