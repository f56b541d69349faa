# SPDX-License-Identifier: Apache-2.0
"""The other ends that tests let the library meet: simulated Fabric Managers, and servers that misbehave."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support import Program

Behaviour = Callable[[socket.socket], None]


@contextlib.contextmanager
def fabric_manager(folder: Path, *arguments: str, platform: str = "hgx-h100-8") -> Iterator[str]:
    """A simulated Fabric Manager that takes connections at the address."""
    address = f"unix:{folder / 'fm.sock'}"
    with started(folder, "--platform", platform, "--listen", address, *arguments) as program:
        program.says(f"listens at {address}")
        yield address


def started(folder: Path, *arguments: str) -> Program:
    """`fmctl sim fm` with these arguments, not waited for."""
    return Program("sim", "fm", *arguments, log=folder / "fm.log")


@contextlib.contextmanager
def fake_server(listener: socket.socket, behaviour: Behaviour) -> Iterator[str]:
    """A server that treats each connection, one after the other, by `behaviour` and then closes it."""
    listener.listen()
    current: list[socket.socket] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                current.append(connection)
                with connection, contextlib.suppress(OSError):
                    behaviour(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    name = listener.getsockname()
    try:
        yield f"unix:{name}" if isinstance(name, str) else f"{name[0]}:{name[1]}"
    finally:
        for sock in (listener, *current):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


def unix_listener(folder: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "fake.sock"))
    return listener


def tcp_listener(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


def until_closed(connection: socket.socket) -> bytes:
    """Read until the client closes, and tell what it sent; a behaviour that never answers."""
    received = b""
    while chunk := connection.recv(65536):
        received += chunk
    return received
