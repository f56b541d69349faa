# SPDX-License-Identifier: Apache-2.0
"""Listening at an address of any kind, never beside a server that lives there already."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from fmctl.core.address import Address, TcpAddress, UnixAddress, VsockAddress
from fmctl.core.errors import FmctlError

_BACKLOG = 128


@contextlib.asynccontextmanager
async def listen(address: Address, protocol: Callable[[], asyncio.Protocol]) -> AsyncIterator[None]:
    """Take connections at `address`, each served by a `protocol`; raises FmctlError where that cannot be.

    A unix socket that a dead server left is replaced, and ours is removed at the end, if it still is ours.
    """
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as cleanup:
        try:
            bound = _bind(address)
            cleanup.callback(bound.close)
            if isinstance(address.where, UnixAddress):
                path = Path(address.where.path)
                cleanup.callback(_remove_if_same, path, path.stat())
            server = await loop.create_server(protocol, sock=bound, backlog=_BACKLOG)
        except OSError as error:
            raise _refusal(address, error) from error
        try:
            yield
        finally:
            server.close()


def answers(address: Address) -> bool:
    """Whether something takes connections there."""
    match address.where:
        case UnixAddress(path):
            probe, target = socket.socket(socket.AF_UNIX), path
        case TcpAddress(host, port):
            probe, target = socket.socket(), (host, port)  # type: ignore[assignment]
        case VsockAddress(cid, port):
            probe, target = socket.socket(socket.AF_VSOCK), (cid, port)  # type: ignore[assignment]
    with probe:
        probe.settimeout(1)
        return probe.connect_ex(target) == 0


def _bind(address: Address) -> socket.socket:
    match address.where:
        case UnixAddress(path):
            return _bind_unix(Path(path))
        case TcpAddress(host, port):
            family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            return _bound(socket.socket(family, kind, protocol), target)
        case VsockAddress(cid, port):
            return _bound(socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM), (cid, port))


def _bound(sock: socket.socket, target: str | tuple[object, ...]) -> socket.socket:
    try:
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(target)
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _bind_unix(path: Path) -> socket.socket:
    try:
        return _bound(socket.socket(socket.AF_UNIX), str(path))
    except OSError as error:
        if error.errno != errno.EADDRINUSE or not path.is_socket() or _is_served(path):
            raise
    path.unlink(missing_ok=True)
    return _bound(socket.socket(socket.AF_UNIX), str(path))


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(0)
        return probe.connect_ex(str(path)) != errno.ECONNREFUSED


def _remove_if_same(path: Path, ours: os.stat_result) -> None:
    with contextlib.suppress(OSError):
        if os.path.samestat(path.stat(), ours):
            path.unlink()


def _refusal(address: Address, error: OSError) -> FmctlError:
    what = f"the simulated Fabric Manager cannot listen at {address}"
    if error.errno == errno.EADDRINUSE:
        return FmctlError(what, why="something else is there already", fix="stop it, or choose another address")
    return FmctlError(what, why=error.strerror or str(error), fix="choose another address")
