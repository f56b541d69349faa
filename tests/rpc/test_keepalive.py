# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import socket
from pathlib import Path

import grpc
import pytest

from fmctl.rpc import keepalive
from tests.rpc.relaying import Client, Echo


def test_a_server_takes_the_pings_of_a_long_call(folder: Path) -> None:
    """Without its options it would hang up after a few."""
    with Echo(folder / "x.sock") as echo, Client(folder / "x.sock", keepalive.client(0.25, 5.0)) as client:
        call = client.wait.future(b"x", timeout=30)
        assert echo.entered.acquire(timeout=15)
        with pytest.raises(grpc.FutureTimeoutError):
            call.result(timeout=6)
        echo.leave.set()
        assert call.result(timeout=15) == b"x"


def test_a_connection_may_take_longer_than_the_back_off(folder: Path) -> None:
    """As the relay's does, which takes it at once, and asks libvirt before it dials."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "x.sock"))
        listener.listen()
        listener.settimeout(15)
        with Client(folder / "x.sock") as client:
            call = client.say.future(b"x", timeout=30)
            near, _ = listener.accept()
            with near, pytest.raises(TimeoutError):
                listener.settimeout(2)
                listener.accept()
            call.cancel()
