# SPDX-License-Identifier: Apache-2.0
"""A simulated Fabric Manager as a process: the rules of `sim.fabric` on a socket, in one thread.

One thread makes every change atomic. `sim.listening` provides the socket, `sim.wire` the frames, and the shim's
library the other end.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from fmctl import process
from fmctl.core.address import Address
from fmctl.core.errors import BadRequest, FmctlError
from fmctl.core.fmcode import FmCode, Operation
from fmctl.core.partition import PartitionList
from fmctl.core.platform import Platform
from fmctl.sim import listening, wire
from fmctl.sim.fabric import RESTART_WINDOW, Fabric, Rejected
from fmctl.sim.faults import NO_FAULTS, Fault, FaultKind, FaultPlan, Faults, Lie
from fmctl.sim.saved import SavedState, StateUnusable
from fmctl.sim.wire import BadFrame, Request

_MAX_BACKLOG = 64 * wire.MAX_REQUEST
"""Bytes that a client may send ahead of the answers."""


@dataclass(frozen=True)
class Options:
    """How a simulated Fabric Manager is started."""

    platform: Platform
    listen: Address
    restart: bool = False
    state_file: Path | None = None
    latency: float = 0.0
    """Seconds that every call takes before it has an effect."""
    missing_gpus: Collection[int] = ()
    faults: Faults = NO_FAULTS
    serves_partitions: bool = True
    """Whether it runs in shared NVSwitch mode; else every call is NOT_SUPPORTED."""
    tell: Callable[[str, str], None] = lambda level, text: None
    """Takes a level and a text for its log."""


def run(options: Options) -> None:
    """Serve until SIGTERM or SIGINT; raises FmctlError if it cannot start, or was not told the active partitions."""
    process.hold_lifeline()
    asyncio.run(_until_signalled(options))


async def _until_signalled(options: Options) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await serve(options, stopped)


async def serve(options: Options, stopped: asyncio.Event) -> None:
    """Serve until `stopped`; raises FmctlError as `run` does."""
    loop = asyncio.get_running_loop()
    server = FmServer(_fabric(options, loop.time()), options)
    async with listening.listen(options.listen, lambda: Connection(server)):
        sys.stderr.write(f"simulated Fabric Manager of {options.platform.name} listens at {options.listen}\n")
        sys.stderr.flush()
        lifetime = asyncio.create_task(server.live())
        stop = asyncio.create_task(stopped.wait())
        try:
            await asyncio.wait({lifetime, stop}, return_when=asyncio.FIRST_COMPLETED)
            if lifetime.done():
                lifetime.result()
        finally:
            lifetime.cancel()
            stop.cancel()
            server.close()


class FmServer:
    """The rules with everything that happens to a call on its way: latency, and faults."""

    def __init__(self, fabric: Fabric, options: Options) -> None:
        self.latency = options.latency
        self.connections: set[Connection] = set()
        self._fabric = fabric
        self._serves_partitions = options.serves_partitions
        self._tell = options.tell
        self._state_file = None if options.restart else options.state_file
        self._plan = FaultPlan(options.faults)
        self._told = asyncio.Event()
        self._packed: tuple[PartitionList, bytes] | None = None

    def close(self) -> None:
        """Close every connection."""
        for connection in tuple(self.connections):
            connection.close()

    def fault_of(self, request: Request) -> Fault | None:
        """Count a call that came in, and tell its fault."""
        return self._plan.next(request.operation)

    def answer(self, request: Request, fault: Fault | None, now: float) -> bytes:
        """Serve a call, unless its fault keeps it from having an effect."""
        if fault is not None and fault.kind is FaultKind.CODE:
            return wire.reply(fault.code)
        try:
            return wire.reply(FmCode.SUCCESS, self._payload(request, fault.lie if fault else None, now))
        except Rejected as rejected:
            return wire.reply(rejected.code)

    async def live(self) -> None:
        """See the start through; raises FmctlError if it fails, and otherwise returns never."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._fabric.ready_at - loop.time())
        if self._state_file is not None:
            _save(self._fabric.state, self._state_file)
            self._tell("INFO", "every NVSwitch is set up to route NVLink traffic")
        if self._fabric.fails_at is not None:
            self._tell("INFO", f"waiting {RESTART_WINDOW:g} s to be told the active partitions")
            try:
                await asyncio.wait_for(self._told.wait(), self._fabric.fails_at - loop.time())
            except asyncio.TimeoutError:
                raise _not_told() from None
        await asyncio.Event().wait()

    def _payload(self, request: Request, lie: Lie | None, now: float) -> bytes:
        fabric = self._fabric
        if not self._serves_partitions:
            raise Rejected(FmCode.NOT_SUPPORTED)
        match request.operation:
            case Operation.LIST:
                return self._pack(fabric.partitions(now), lie)
            case Operation.ACTIVATE:
                fabric.activate(request.argument, now)
            case Operation.DEACTIVATE:
                fabric.deactivate(request.argument, now)
            case Operation.SET_ACTIVATED:
                fabric.set_activated(request.partition_ids, now)
                self._tell("INFO", f"taking up {len(request.partition_ids)} active partitions")
                self._told.set()
            case Operation.FAILED_DEVICES:
                return wire.failed_devices(fabric.failed_devices(now), lie)
            case Operation.UNSUPPORTED:
                return wire.unsupported(fabric.unsupported(now), lie)
            case Operation.ACTIVATE_WITH_VFS:
                fabric.activate_with_vfs(now)
        return b""

    def _pack(self, listed: PartitionList, lie: Lie | None) -> bytes:
        """The payload of a list; packed once for as long as nothing changes."""
        if lie is not None:
            return wire.partition_list(listed, lie)
        if self._packed is None or self._packed[0] is not listed:
            self._packed = (listed, wire.partition_list(listed))
        return self._packed[1]


class Connection(asyncio.Protocol):
    """One client. Its calls are served one after the other; a call outlives the client that made it."""

    def __init__(self, server: FmServer) -> None:
        self._server = server
        self._received = bytearray()
        self._busy = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet the client."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(wire.GREETING)
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client."""
        self._server.connections.discard(self)
        self._transport = None

    def data_received(self, data: bytes) -> None:
        """Take what came, and serve what is complete; a client that sends rubbish is cut off."""
        self._received += data
        if len(self._received) > _MAX_BACKLOG:
            self.close()
        else:
            self._serve()

    def close(self) -> None:
        """Close the connection; a call under way still takes effect."""
        if self._transport is not None:
            self._transport.close()

    def _serve(self) -> None:
        while not self._busy:
            try:
                request = wire.take_request(self._received)
            except BadFrame:
                self.close()
                return
            if request is None:
                return
            self._busy = True
            fault = self._server.fault_of(request)
            delay = self._server.latency + (fault.seconds if fault else 0.0)
            if delay > 0:
                asyncio.get_running_loop().call_later(delay, self._finish_later, request, fault)
            else:
                self._finish(request, fault)

    def _finish_later(self, request: Request, fault: Fault | None) -> None:
        self._finish(request, fault)
        self._serve()

    def _finish(self, request: Request, fault: Fault | None) -> None:
        kind = fault.kind if fault else None
        if kind is FaultKind.HANG:
            return
        if kind is FaultKind.CLOSE:
            self.close()
            return
        if kind is FaultKind.DIE_BEFORE:
            _die()
        answer = self._server.answer(request, fault, asyncio.get_running_loop().time())
        if kind is FaultKind.DIE_AFTER:
            _die()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(answer)
        self._busy = False


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _fabric(options: Options, now: float) -> Fabric:
    slow = options.faults.slow_start
    if not options.restart:
        return Fabric.started(options.platform, now=now, missing_gpus=options.missing_gpus, start_seconds=slow)
    if options.state_file is None:
        raise BadRequest(
            "a restart needs a state file", why="--restart was given without --state-file", fix="add --state-file FILE"
        )
    source = str(options.state_file)
    return Fabric.restarted(
        options.platform,
        SavedState.from_json(_load(options.state_file), source),
        source,
        now=now,
        missing_gpus=options.missing_gpus,
        start_seconds=slow,
    )


def _load(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise StateUnusable(str(path), str(reason)) from error


def _save(state: SavedState, path: Path) -> None:
    """Write the file so that at any time it holds one whole state, the old one or the new."""
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as stream:
            stream.write(state.to_json())
            stream.flush()
            os.fsync(stream.fileno())
        Path(stream.name).replace(path)
    except OSError as error:
        raise FmctlError(
            f"the state cannot be saved in {path}",
            why=error.strerror or str(error),
            fix="name a file in a folder that can be written",
        ) from error


def _not_told() -> FmctlError:
    return FmctlError(
        "the simulated Fabric Manager gives up its restart",
        why=f"it was not told which partitions are active within {RESTART_WINDOW:g} s",
        fix="set the activated list in time, or start without --restart",
    )
