# SPDX-License-Identifier: Apache-2.0
"""Against a real socket, as systemd has one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmctl import notify
from fmctl.notify import Notifier


class Manager:
    """The listening side of sd_notify(3)."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.settimeout(5.0)

    def hear(self) -> list[str]:
        return self._socket.recv(65536).decode().split("\n")

    def hears_nothing(self) -> bool:
        self._socket.settimeout(0)
        try:
            self._socket.recv(1)
        except BlockingIOError:
            return True
        return False

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    abstract = f"@fmctl-test-{os.getpid()}-{id(tmp_path)}"
    manager = Manager(str(tmp_path / "notify") if request.param == "path" else abstract)
    yield manager
    manager.close()


def test_every_message_reaches_the_manager(manager: Manager) -> None:
    notifier = notify.take({"NOTIFY_SOCKET": manager.address})
    notifier.ready("Fabric Manager is starting")
    assert manager.hear() == ["READY=1", "STATUS=Fabric Manager is starting"]
    notifier.ready()
    assert manager.hear() == ["READY=1"]
    notifier.status("Fabric Manager is ready")
    assert manager.hear() == ["STATUS=Fabric Manager is ready"]
    notifier.ping()
    assert manager.hear() == ["WATCHDOG=1"]
    notifier.stopping()
    assert manager.hear() == ["STOPPING=1"]


def test_a_status_is_one_line_and_no_message_of_its_own(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    notifier.status("down:\nMAINPID=1\x00\r\nREADY=1 ")
    assert manager.hear() == ["STATUS=down: MAINPID=1 READY=1"]
    notifier.status("x" * 5000)
    assert manager.hear() == ["STATUS=" + "x" * notify.STATUS_LIMIT]
    notifier.status(" \n")
    assert manager.hears_nothing()


def test_without_a_manager_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    notifier = notify.take({})
    notifier.ready()
    notifier.ping()
    assert caplog.text == ""


@pytest.mark.parametrize("address", ["", "fmctl.sock", "vsock:2:1"])
def test_an_address_of_another_kind_is_none(address: str) -> None:
    assert notify.take({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"}) == Notifier()


def test_what_the_manager_said_is_taken_out_of_the_environment(manager: Manager) -> None:
    environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1", "LANG": "C"}
    notify.take(environment)
    assert environment == {"LANG": "C"}


@pytest.mark.parametrize(
    ("said", "period"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
    ids=["none", "any process", "this process", "another process", "zero", "nonsense"],
)
def test_the_watchdog_s_period_is_this_process_s_alone(said: dict[str, str], period: float | None) -> None:
    assert notify.take({"NOTIFY_SOCKET": "/run/systemd/notify", **said}).watchdog_s == period


def test_a_manager_that_went_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier(str(tmp_path / "nobody"))
    notifier.ping()
    notifier.ping()
    assert len(caplog.records) == 1
    assert "does not hear" in caplog.text


def test_no_child_can_speak_for_its_parent(manager: Manager) -> None:
    program = "from fmctl import notify, process\nnotify.take().ready()\nprint(process.run(['env'], timeout=10))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "30000000"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert manager.hear() == ["READY=1"]
    assert "NOTIFY_SOCKET" not in done.stdout
    assert "WATCHDOG" not in done.stdout
