# SPDX-License-Identifier: Apache-2.0
"""libnvfm in a process that can be killed: the port `FabricManager` with a deadline that holds.

Run as a module this file is that process, one call after the other over `guest.nvfm`; imported, it is the agent's side,
which starts the process, kills it when a call overruns, and starts another for the next call.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from fmctl import process
from fmctl.core import errors
from fmctl.core.address import Address
from fmctl.core.errors import FabricBusy, FmctlError
from fmctl.core.fmcode import Operation, call_overran
from fmctl.core.partition import Gpu, Partition, PartitionList

_LENGTH = struct.Struct("!I")


class Worker:
    """The agent's side. Calls from several threads take turns.

    A call waits for its turn half its timeout at most, so that it is not begun with too little time to end.
    """

    def __init__(self, address: Address, library: str = "", connect_timeout: float = 1.0) -> None:
        self._arguments = (str(address), library, str(connect_timeout))
        self._turn = threading.Lock()
        self._child: process.Child | None = None
        self._socket: socket.socket | None = None

    def list_partitions(self, *, timeout: float) -> PartitionList:
        """The partitions, over a fresh connection."""
        return _partition_list(self._ask(Operation.LIST, None, timeout))

    def activate(self, partition_id: int, *, timeout: float) -> None:
        """Activate a partition."""
        self._ask(Operation.ACTIVATE, partition_id, timeout)

    def deactivate(self, partition_id: int, *, timeout: float) -> None:
        """Deactivate a partition."""
        self._ask(Operation.DEACTIVATE, partition_id, timeout)

    def set_activated(self, partition_ids: Sequence[int], *, timeout: float) -> None:
        """Tell a restarted Fabric Manager which partitions are active."""
        self._ask(Operation.SET_ACTIVATED, list(partition_ids), timeout)

    def close(self) -> None:
        """End the worker process; a call under way fails."""
        child = self._child
        if child is not None:
            child.kill()
        with self._turn:
            self._discard()

    def _ask(self, operation: Operation, argument: Any, timeout: float) -> Any:
        deadline = time.monotonic() + timeout
        if not self._turn.acquire(timeout=max(0.0, timeout / 2)):
            raise FabricBusy(
                "Fabric Manager is busy", why=f"another call held it for {timeout / 2:.1f} s", fix="try again shortly"
            )
        try:
            reply = self._exchange(operation, argument, deadline)
        except OSError as error:
            self._discard()
            partition_id = argument if isinstance(argument, int) else None
            raise call_overran(operation, timeout, partition_id) from error
        finally:
            self._turn.release()
        if "reason" in reply:
            raise errors.restore(reply["reason"], reply["metadata"])
        return reply["result"]

    def _exchange(self, operation: Operation, argument: Any, deadline: float) -> Any:
        try:
            return self._converse(operation, argument, deadline)
        except (BrokenPipeError, ConnectionResetError):
            # Linux says so of a unix socket whose other side closed with the request unread: nothing was asked yet.
            self._discard()
            return self._converse(operation, argument, deadline)

    def _converse(self, operation: Operation, argument: Any, deadline: float) -> Any:
        channel = self._start()
        remaining = max(0.001, deadline - time.monotonic())
        channel.settimeout(remaining)
        _send(channel, [operation.value, argument, remaining])
        return _receive(channel, deadline)

    def _start(self) -> socket.socket:
        if self._socket is not None and self._child is not None and self._child.poll() is None:
            return self._socket
        self._discard()
        ours, theirs = socket.socketpair()
        with theirs:
            argv = process.python(__name__, str(theirs.fileno()), *self._arguments)
            self._child = process.Child(argv, pass_fds=[theirs.fileno()])
        self._socket = ours
        return ours

    def _discard(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._child is not None:
            self._child.kill()
            self._child = None


def _send(channel: socket.socket, message: Any) -> None:
    payload = json.dumps(message, separators=(",", ":")).encode()
    channel.sendall(_LENGTH.pack(len(payload)) + payload)


def _receive(channel: socket.socket, deadline: float | None = None) -> Any:
    (length,) = _LENGTH.unpack(_exactly(channel, _LENGTH.size, deadline))
    return json.loads(_exactly(channel, length, deadline))


def _exactly(channel: socket.socket, count: int, deadline: float | None) -> bytes:
    received = bytearray()
    while len(received) < count:
        if deadline is not None:
            channel.settimeout(max(0.001, deadline - time.monotonic()))
        chunk = channel.recv(count - len(received))
        if not chunk:
            raise ConnectionAbortedError("the other side is gone")
        received += chunk
    return bytes(received)


def _partition_list(plain: Any) -> PartitionList:
    return PartitionList(
        partitions=tuple(
            Partition(id=row_id, active=active, gpus=tuple(map(Gpu._make, gpus)))
            for row_id, active, gpus in plain["partitions"]
        ),
        max_partitions=plain["max_partitions"],
        simulated=plain["simulated"],
    )


def _plain(listed: PartitionList) -> dict[str, Any]:
    return {
        "max_partitions": listed.max_partitions,
        "simulated": listed.simulated,
        "partitions": [(p.id, p.active, p.gpus) for p in listed.partitions],
    }


class _Served:
    """The worker process's side: loads libnvfm at the first call, so that a missing library is an answer."""

    def __init__(self, address: Address, library: str, connect_timeout: float) -> None:
        self._arguments = (address, library, connect_timeout)
        self._nvfm: Any = None

    def answer(self, operation: Operation, argument: Any, timeout: float) -> dict[str, Any]:
        try:
            return {"result": self._call(operation, argument, timeout)}
        except FmctlError as error:
            reason = error.reason.value if error.reason else ""
            return {"reason": reason, "metadata": error.metadata()}

    def _call(self, operation: Operation, argument: Any, timeout: float) -> Any:
        if self._nvfm is None:
            from fmctl.guest.nvfm import Nvfm

            self._nvfm = Nvfm(*self._arguments)
        if operation is Operation.LIST:
            return _plain(self._nvfm.list_partitions(timeout=timeout))
        if operation is Operation.ACTIVATE:
            return self._nvfm.activate(argument, timeout=timeout)
        if operation is Operation.DEACTIVATE:
            return self._nvfm.deactivate(argument, timeout=timeout)
        return self._nvfm.set_activated(argument, timeout=timeout)


def main(arguments: Sequence[str]) -> None:
    """Serve calls from the socket of that descriptor number until the other side closes it."""
    descriptor, address, library, connect_timeout = arguments
    process.hold_lifeline()
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    served = _Served(Address.parse(address), library, float(connect_timeout))
    with socket.socket(fileno=int(descriptor)) as channel, contextlib.suppress(ConnectionError):
        while True:
            operation, argument, timeout = _receive(channel)
            _send(channel, served.answer(Operation(operation), argument, timeout))


if __name__ == "__main__":
    main(sys.argv[1:])
