# SPDX-License-Identifier: Apache-2.0
"""The library under the address and undefined behaviour sanitizers, in hostile company."""

from __future__ import annotations

import socket
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from fmctl.sim import shim, wire
from fmctl.sim.faults import Counted
from tests.sim.compiler import compile_c
from tests.sim.servers import fabric_manager, fake_server, unix_listener

HERE = Path(__file__).parent
SOURCES = Path(shim.__file__).parent
HONEST = wire.reply(0, struct.pack("<III", 15, 15, 0))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("hostile") / "hostile"
    units = [SOURCES / unit for unit in shim.UNITS]
    compile_c(program, "-fsanitize=address,undefined", "-fno-sanitize-recover=all", HERE / "hostile.c", *units)
    return program


def drive(hostile: Path, mode: str, address: str, call_timeout_ms: int = 5000) -> None:
    env = {"FMCTL_SIM_CALL_TIMEOUT_MS": str(call_timeout_ms)}
    argv = [str(hostile), mode, address.removeprefix("unix:")]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_threads_that_share_a_handle(hostile: Path, folder: Path) -> None:
    with fabric_manager(folder) as address:
        drive(hostile, "many", address)


def test_a_library_shut_down_under_its_callers(hostile: Path, folder: Path) -> None:
    with fabric_manager(folder) as address:
        drive(hostile, "stop", address)


@pytest.mark.parametrize(
    "fault",
    [
        *(f"lie={what.value}:4294967295@1+" for what in Counted),
        *("close@3", "hang@3+", "die-after@5", "code=-9@1+"),
    ],
)
@pytest.mark.parametrize("missing", [(), range(1, 17)], ids=["whole", "lost"])
def test_a_server_with_a_fault(hostile: Path, folder: Path, fault: str, missing: Sequence[int]) -> None:
    lost = [argument for gpu in missing for argument in ("--missing-gpu", str(gpu))]
    with fabric_manager(folder, *lost, "--fault", fault, platform="hgx-a100-16") as address:
        drive(hostile, "calls", address, call_timeout_ms=50)


@pytest.mark.parametrize(
    "reply",
    [
        HONEST[:1],
        HONEST[:9],
        HONEST[:-1],
        HONEST + b"x",
        wire.reply(0),
        wire.reply(0, b"\xff" * 12),
        wire.reply(0, b"\xff" * 200_000),
        wire.reply(0, struct.pack("<III", 64, 64, 64) + b"\xff" * 1000),
        wire.reply(0, struct.pack("<III", 64, 64, 64) + struct.pack("<IIII", 1, 1, 16, 16) * 64),
        wire.reply(0, struct.pack("<II", 1, 64) + b"\x01" * 4607),
        wire.reply(0, struct.pack("<II", 1, 200) + b"\x01" * (200 * 72)),
        wire.reply(0, struct.pack("<III", 16, 12, 16) + b"\xff" * (16 * 372 - 1)),
        wire.reply(0, struct.pack("<III", 16, 12, 16) + b"\xff" * (28 * 372)),
        wire.reply(0, struct.pack("<III", 64, 0, 64) + b"\xff" * (64 * 372)),
        b"\xff" * 4,
        b"\0" * 400,
    ],
)
def test_a_server_that_sends_rubbish(hostile: Path, folder: Path, reply: bytes) -> None:
    def behaviour(connection: socket.socket) -> None:
        connection.sendall(wire.GREETING)
        while connection.recv(4096):
            connection.sendall(reply)

    with fake_server(unix_listener(folder), behaviour) as address:
        drive(hostile, "calls", address, call_timeout_ms=50)
