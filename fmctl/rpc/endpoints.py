# SPDX-License-Identifier: Apache-2.0
"""Where relays listen and what they dial: unix sockets, and vsock on either side; `rpc.vsock` puts them together."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import socket
import stat
from collections.abc import Iterable
from pathlib import Path

from fmctl.core.address import VsockAddress
from fmctl.core.errors import AgentUnreachable, FmctlError
from fmctl.rpc.relay import Dial
from fmctl.rpc.unixsocket import SocketPlace

LAST_RESERVED_PORT = 1023
"""The last vsock port that takes CAP_NET_BIND_SERVICE to bind (net/vmw_vsock/af_vsock.c)."""
SOURCE_PORTS = range(512, LAST_RESERVED_PORT + 1)
"""Where the host calls from. A port stays taken for up to 8 s where the VM does not confirm a close."""
BACKLOG = 64
"""Connections that may wait to be accepted."""
FOLDER_MODE = 0o700
SOCKET_MODE = 0o600


def listen_privately(path: Path, cleanup: contextlib.ExitStack) -> socket.socket:
    """Listen at a unix socket that this user alone can dial, in a folder that is this user's alone."""
    _make_private(path.parent)
    place = SocketPlace(path)
    place.take()
    cleanup.callback(place.release)
    listener = cleanup.enter_context(socket.socket(socket.AF_UNIX))
    try:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(SOCKET_MODE)
        listener.listen(BACKLOG)
    except OSError as error:
        raise _unservable(str(path), error, "name another path") from error
    return listener


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise _unservable(str(folder), error, "run as the user that owns the folder above") from error
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & ~FOLDER_MODE:
        raise FmctlError(
            f"{folder} is not private",
            why="whoever can dial the socket in it speaks to the agent as the daemon does",
            fix=f"remove it, or make it this user's own with mode {FOLDER_MODE:o}",
        )


def listen_vsock(port: int, cleanup: contextlib.ExitStack) -> socket.socket:
    """Listen at a vsock port of this machine."""
    try:
        listener = cleanup.enter_context(socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM))
        listener.bind((socket.VMADDR_CID_ANY, port))
        listener.listen(BACKLOG)
    except OSError as error:
        fix = "see that this VM has a vsock device, and that nothing else serves at that port"
        raise _unservable(f"vsock port {port}", error, fix) from error
    return listener


def _unservable(place: str, error: OSError, fix: str) -> FmctlError:
    return FmctlError(f"{place} cannot be served at", why=error.strerror or str(error), fix=fix)


def dial_unix(path: Path) -> Dial:
    """Dials a unix socket."""

    async def dial(cleanup: contextlib.ExitStack) -> socket.socket:
        far = _opened(socket.AF_UNIX, cleanup)
        await asyncio.get_running_loop().sock_connect(far, str(path))
        return far

    return dial


def dial_vsock(agent: VsockAddress) -> Dial:
    """Dials an agent from a port below 1024."""
    ports = itertools.cycle(SOURCE_PORTS)

    async def dial(cleanup: contextlib.ExitStack) -> socket.socket:
        try:
            far = _opened(socket.AF_VSOCK, cleanup)
            bind_reserved(far, itertools.islice(ports, len(SOURCE_PORTS)))
            await asyncio.get_running_loop().sock_connect(far, (agent.cid, agent.port))
        except OSError as error:
            raise unreachable(agent, error) from error
        return far

    return dial


def bind_reserved(far: socket.socket, ports: Iterable[int]) -> None:
    """Bind the first port that is free; raises OSError."""
    for port in ports:
        try:
            return far.bind((socket.VMADDR_CID_ANY, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, "every port below 1024 is in use")


def unreachable(agent: VsockAddress, error: OSError) -> AgentUnreachable:
    """What an error of connecting over vsock means."""
    plain = error.strerror or str(error), "see `ss --vsock --all`"
    why, fix = _MEANINGS.get(error.errno or 0, plain)
    return AgentUnreachable(f"the agent at {agent} cannot be reached", why=why, fix=fix)


_MEANINGS = {
    errno.EACCES: (
        "calling from a port below 1024 takes CAP_NET_BIND_SERVICE",
        "run the daemon as root, or give its unit that capability",
    ),
    errno.ECONNRESET: ("its VM runs, and nothing listens at that port", "wait for the agent to start, or see its log"),
    errno.ENODEV: ("no running VM has that CID", "start the Service VM; where it runs, load vhost_vsock"),
    errno.ETIMEDOUT: ("its VM does not answer", "wait for it to boot, or see its console"),
    errno.EAFNOSUPPORT: ("this kernel has no vsock", "load vhost_vsock"),
}


def _opened(family: int, cleanup: contextlib.ExitStack) -> socket.socket:
    return cleanup.enter_context(socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
