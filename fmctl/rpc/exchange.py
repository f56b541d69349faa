# SPDX-License-Identifier: Apache-2.0
"""Carries bytes both ways between two connected sockets; `rpc.relay` says between which.

Each way holds one chunk at most, so a slow reader slows its writer. The end of one side's stream is passed on while
the other way goes on; an error on either side ends both.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

CHUNK = 64 * 1024
"""Bytes held for each way."""


async def exchange(
    near: socket.socket, far: socket.socket, heard: Callable[[], None], *, half_closed_timeout: float
) -> None:
    """Carry until both have ended their streams; raises OSError where either fails. Neither socket may block.

    `heard` is called whenever the far side says something. Once one side has ended its stream, `half_closed_timeout`
    seconds without a byte from the other fail the exchange: it may have hung, and nobody asks it any more.
    """
    ways = _Way(near, far), _Way(far, near, heard)
    left = {asyncio.ensure_future(way.carry()) for way in ways}
    tasks = tuple(left)
    try:
        timeout, carried = None, 0
        while left:
            done, left = await asyncio.wait(left, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if not done and carried == sum(way.carried for way in ways):
                raise TimeoutError(errno.ETIMEDOUT, "no answer")
            timeout, carried = half_closed_timeout, sum(way.carried for way in ways)
    finally:
        await _ended(*tasks)


class _Way:
    """One direction."""

    def __init__(self, source: socket.socket, sink: socket.socket, heard: Callable[[], None] = lambda: None) -> None:
        self._source = source
        self._sink = sink
        self._heard = heard
        self.carried = 0
        """Bytes taken over by the sink."""

    async def carry(self) -> None:
        """Carry until the source's end, and pass that on."""
        loop = asyncio.get_running_loop()
        buffer = memoryview(bytearray(CHUNK))
        while count := await loop.sock_recv_into(self._source, buffer):
            self._heard()
            await loop.sock_sendall(self._sink, buffer[:count])
            self.carried += count
            await asyncio.sleep(0)  # a socket that is always ready would keep the loop from all others
        with contextlib.suppress(OSError):  # where the sink is gone, the way back tells
            self._sink.shutdown(socket.SHUT_WR)


async def within(seconds: float, action: Awaitable[T]) -> T:
    """The outcome of `action`, or TimeoutError; it has ended either way.

    asyncio.wait_for loses the cancellation of its caller, before Python 3.12, when `action` ends at that moment.
    """
    task = asyncio.ensure_future(action)
    try:
        if not (await asyncio.wait({task}, timeout=seconds))[0]:
            raise TimeoutError(errno.ETIMEDOUT, f"no answer within {seconds:g} s")
        return task.result()
    finally:
        await _ended(task)


async def _ended(*tasks: asyncio.Future[T]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
