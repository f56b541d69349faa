# SPDX-License-Identifier: Apache-2.0
"""Stands between gRPC and a transport that gRPC cannot dial: `rpc.vsock` says which, `rpc.exchange` carries the bytes.

A relay accepts a connection, dials the far side for it, and knows nothing of what then passes. Where the far side
cannot be reached the connection is closed, so that gRPC tries again with its own back-off.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from fmctl.core.errors import AgentUnreachable, FmctlError
from fmctl.rpc.exchange import exchange, within

log = logging.getLogger(__name__)

STOP_TIMEOUT = 5.0
"""Seconds to close everything in."""
ACCEPT_PAUSE = 1.0
"""Seconds without accepting once that has failed, as it does where descriptors run out."""


@dataclass(frozen=True)
class Limits:
    """What a relay allows, times in seconds."""

    connections: int = 64
    """Connections at once; a daemon needs one."""
    dial: float = 10.0
    """The time in which the far side must be reached."""
    half_closed: float = 60.0
    """How long a connection lives without a byte once one side has ended its stream. Others may idle for ever."""
    quiet: float = 60.0
    """How long a line is not logged again."""


Listen = Callable[[contextlib.ExitStack], socket.socket]
"""Opens a listening socket, and leaves its end to the stack; raises FmctlError."""
Dial = Callable[[contextlib.ExitStack], Coroutine[Any, Any, socket.socket]]
"""Connects a socket, and leaves its end to the stack; raises FmctlError or OSError, and is cancelled when too slow."""


class Relay:
    """A listening socket, and what is dialled for each connection to it, served by a thread of its own.

    As a context manager it runs for as long as the block.
    """

    def __init__(
        self,
        far: str,
        listen: Listen,
        dial: Dial,
        *,
        refusal: Callable[[Any], str] = lambda peer: "",
        limits: Limits = Limits(),
    ) -> None:
        """`far` names the far side; `refusal` tells why the peer of that address may not call, or nothing."""
        self.last_failure: FmctlError | None = None
        """Why the far side did not answer when it was last dialled; None where it did, or was never dialled."""
        self._far = far
        self._listen = listen
        self._dial = dial
        self._refusal = refusal
        self._limits = limits
        self._connections: set[asyncio.Task[None]] = set()
        self._said: dict[str, float] = {}
        self._cleanup = contextlib.ExitStack()
        self._loop: asyncio.AbstractEventLoop | None = None

    def probe(self, timeout: float = 5.0) -> None:
        """Raise TimeoutError unless its thread's loop turns within `timeout` seconds."""
        turned = threading.Event()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(turned.set)
        if not turned.wait(timeout):
            raise TimeoutError(errno.ETIMEDOUT, "the relay's loop does not turn")

    def __enter__(self) -> Relay:
        with contextlib.ExitStack() as cleanup:
            listener = self._listen(cleanup)
            listener.settimeout(0)
            started: Future[Callable[[], object]] = Future()
            serve = functools.partial(asyncio.run, self._serve(listener, started))
            thread = threading.Thread(target=serve, name="relay", daemon=True)
            thread.start()
            cleanup.callback(thread.join, STOP_TIMEOUT)
            cleanup.callback(started.result(STOP_TIMEOUT))
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._cleanup.close()

    async def _serve(self, listener: socket.socket, started: Future[Callable[[], object]]) -> None:
        """Accept until the function that `started` hands out is called; asyncio.run then ends all connections."""
        self._loop = loop = asyncio.get_running_loop()
        stopping = asyncio.Event()
        loop.add_reader(listener, self._accept, listener)
        started.set_result(functools.partial(loop.call_soon_threadsafe, stopping.set))
        await stopping.wait()
        loop.remove_reader(listener)

    def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            near, peer = listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            self._warn(f"connections to {self._far} cannot be accepted: {error.strerror}")
            loop.remove_reader(listener)
            loop.call_later(ACCEPT_PAUSE, loop.add_reader, listener, self._accept, listener)
            return
        refusal = self._refusal(peer) or self._overload()
        if refusal:
            near.close()
            self._warn(f"a connection to {self._far} was refused: {refusal}")
            return
        near.settimeout(0)
        connection = loop.create_task(self._connect(near))
        connection.add_done_callback(lambda _: near.close())
        connection.add_done_callback(self._connections.discard)
        self._connections.add(connection)

    def _overload(self) -> str:
        limit = self._limits.connections
        return f"there are {limit} connections already" if len(self._connections) >= limit else ""

    async def _connect(self, near: socket.socket) -> None:
        answered = False

        def heard() -> None:
            nonlocal answered
            answered, self.last_failure = True, None

        with contextlib.ExitStack() as cleanup:
            try:
                far = await within(self._limits.dial, self._dial(cleanup))
            except FmctlError as error:
                self._fail(error)
                return
            except OSError as error:
                self._fail(self._unreachable(error.strerror or str(error)))
                return
            with contextlib.suppress(OSError):
                await exchange(near, far, heard, half_closed_timeout=self._limits.half_closed)
        if not answered:
            self._fail(self._unreachable("it took the connection and did not answer"))

    def _unreachable(self, why: str) -> AgentUnreachable:
        return AgentUnreachable(f"{self._far} cannot be reached", why=why, fix="look at its log")

    def _fail(self, failure: FmctlError) -> None:
        self.last_failure = failure
        self._warn(str(failure))

    def _warn(self, line: str) -> None:
        """Log a line, unless it was logged just now: peers try again at once, and may be hostile."""
        now = time.monotonic()
        self._said = {said: at for said, at in self._said.items() if now - at < self._limits.quiet}
        if line not in self._said:
            self._said[line] = now
            log.warning("%s", line)
