# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from fmctl.core.address import VsockAddress
from fmctl.core.errors import FmctlError
from fmctl.rpc.endpoints import (
    SOURCE_PORTS,
    bind_reserved,
    dial_unix,
    listen_privately,
    listen_vsock,
    unreachable,
)
from tests.rpc.relaying import VSOCK_PORT

AGENT = VsockAddress(1000, 6767)


@pytest.fixture
def cleanup() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as cleanup:
        yield cleanup


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_private_socket_is_this_user_s_alone(folder: Path, cleanup: contextlib.ExitStack) -> None:
    before = os.umask(0)
    try:
        listen_privately(folder / "relay" / "x.sock", cleanup)
    finally:
        os.umask(before)
    assert (mode(folder / "relay"), mode(folder / "relay" / "x.sock")) == (0o700, 0o600)
    with socket.socket(socket.AF_UNIX) as near:
        near.connect(str(folder / "relay" / "x.sock"))


def test_a_private_socket_is_gone_once_it_is_left(folder: Path) -> None:
    for _ in range(2):
        with contextlib.ExitStack() as cleanup:
            listen_privately(folder / "relay" / "x.sock", cleanup)
        assert not (folder / "relay" / "x.sock").exists()


def test_what_a_killed_relay_left_is_no_obstacle(folder: Path, cleanup: contextlib.ExitStack) -> None:
    (folder / "relay").mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(folder / "relay" / "x.sock"))
    listen_privately(folder / "relay" / "x.sock", cleanup)


def test_a_second_relay_at_a_path_is_refused_and_the_first_goes_on(folder: Path, cleanup: contextlib.ExitStack) -> None:
    listener = listen_privately(folder / "relay" / "x.sock", cleanup)
    with contextlib.ExitStack() as second, pytest.raises(FmctlError, match="another process serves there"):
        listen_privately(folder / "relay" / "x.sock", second)
    with socket.socket(socket.AF_UNIX) as near:
        near.connect(str(folder / "relay" / "x.sock"))
        listener.accept()[0].close()


@pytest.mark.parametrize("bits", [0o710, 0o701, 0o1770, 0o755])
def test_a_folder_that_others_can_enter_is_refused(folder: Path, cleanup: contextlib.ExitStack, bits: int) -> None:
    folder.chmod(bits)
    with pytest.raises(FmctlError, match="is not private") as refusal:
        listen_privately(folder / "x.sock", cleanup)
    assert "mode 700" in refusal.value.fix
    assert mode(folder) == bits


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder away")
def test_another_user_s_folder_is_refused(folder: Path, cleanup: contextlib.ExitStack) -> None:
    (folder / "relay").mkdir(mode=0o700)
    os.chown(folder / "relay", 65534, -1)
    with pytest.raises(FmctlError, match="is not private"):
        listen_privately(folder / "relay" / "x.sock", cleanup)


def test_a_folder_that_cannot_be_made_is_told(folder: Path, cleanup: contextlib.ExitStack) -> None:
    (folder / "file").write_text("")
    with pytest.raises(FmctlError, match=r"file/relay cannot be served at: Not a directory"):
        listen_privately(folder / "file" / "relay" / "x.sock", cleanup)


def test_a_path_too_long_for_a_socket_is_told(folder: Path, cleanup: contextlib.ExitStack) -> None:
    with pytest.raises(FmctlError, match="AF_UNIX path too long") as refusal:
        listen_privately(folder / "relay" / ("x" * 100), cleanup)
    assert refusal.value.fix == "name another path"


class Ports:
    """A socket that knows which ports are taken, and by how many it was asked."""

    def __init__(self, *taken: int, error: int = errno.EADDRINUSE) -> None:
        self._taken = taken
        self._error = error
        self.bound: tuple[int, int] | None = None

    def bind(self, address: tuple[int, int]) -> None:
        if address[1] in self._taken:
            raise OSError(self._error, os.strerror(self._error))
        self.bound = address


def bind(ports: Ports) -> None:
    bind_reserved(cast(socket.socket, ports), SOURCE_PORTS)


def test_the_first_free_port_is_called_from() -> None:
    ports = Ports(512, 513, 515)
    bind(ports)
    assert ports.bound == (socket.VMADDR_CID_ANY, 514)


def test_ports_that_are_all_taken_are_told() -> None:
    with pytest.raises(OSError, match="every port below 1024 is in use"):
        bind(Ports(*SOURCE_PORTS))


def test_a_port_that_may_not_be_bound_ends_the_search() -> None:
    with pytest.raises(PermissionError):
        bind(Ports(512, error=errno.EACCES))


def test_every_source_port_is_one_that_takes_a_privilege() -> None:
    assert set(SOURCE_PORTS) <= set(range(1, 1024))


@pytest.mark.parametrize(
    ("number", "why", "fix"),
    [
        (errno.EACCES, "CAP_NET_BIND_SERVICE", "run the daemon as root"),
        (errno.ECONNRESET, "nothing listens at that port", "wait for the agent to start"),
        (errno.ENODEV, "no running VM has that CID", "start the Service VM"),
        (errno.ETIMEDOUT, "its VM does not answer", "wait for it to boot"),
        (errno.EAFNOSUPPORT, "this kernel has no vsock", "load vhost_vsock"),
        (errno.ENOBUFS, "No buffer space available", "see `ss --vsock --all`"),
    ],
)
def test_what_the_kernel_says_is_told_in_words(number: int, why: str, fix: str) -> None:
    error = unreachable(AGENT, OSError(number, os.strerror(number)))
    assert error.what == "the agent at vsock:1000:6767 cannot be reached"
    assert (why in error.why, fix in error.fix) == (True, True)


def test_dialling_a_unix_socket_that_is_not_there_fails(folder: Path, cleanup: contextlib.ExitStack) -> None:
    with pytest.raises(FileNotFoundError):
        asyncio.run(dial_unix(folder / "x.sock")(cleanup))


def has_vsock() -> bool:
    try:
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
    except OSError:
        return False
    return True


needs_vsock = pytest.mark.skipif(not has_vsock(), reason="this kernel has no vsock")


@needs_vsock
def test_a_vsock_port_is_listened_at_by_one_alone(cleanup: contextlib.ExitStack) -> None:
    listen_vsock(VSOCK_PORT, cleanup)
    with contextlib.ExitStack() as second, pytest.raises(FmctlError) as refusal:
        listen_vsock(VSOCK_PORT, second)
    assert str(refusal.value) == f"vsock port {VSOCK_PORT} cannot be served at: Address already in use"
