# SPDX-License-Identifier: Apache-2.0
"""Against a real socket, as systemd has one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
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


class Store(Manager):
    """A manager that holds files, and closes what it has read of messages."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.heard: list[str] = []
        self.held: dict[str, int] = {}
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            content, descriptors, _, _ = socket.recv_fds(self._socket, 65536, 8)
            lines = content.decode().split("\n")
            if lines == ["END"]:
                return
            self.heard.append(lines[0])
            name = "".join(line.removeprefix("FDNAME=") for line in lines if line.startswith("FDNAME="))
            if lines[0] == "FDSTORE=1":
                self.held[name] = descriptors.pop()
            elif lines[0] == "FDSTOREREMOVE=1":
                os.close(self.held.pop(name))
            for descriptor in descriptors:
                os.close(descriptor)

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"END", self.address)
        self._thread.join()
        super().close()


def test_a_file_is_held_by_the_manager_until_it_is_discarded(tmp_path: Path) -> None:
    manager = Store(str(tmp_path / "notify"))
    notifier = notify.take({"NOTIFY_SOCKET": manager.address})
    reading, writing = os.pipe()
    notifier.store("some-file", writing)
    os.close(writing)
    notifier.store("another", reading)
    notifier.discard(["another"])
    os.write(manager.held["some-file"], b"x")
    assert os.read(reading, 1) == b"x"
    notifier.discard(["some-file"])
    assert manager.held == {}, "it is closed once this returns"
    assert os.read(reading, 1) == b""
    assert manager.heard[-2:] == ["FDSTOREREMOVE=1", "BARRIER=1"]
    os.close(reading)
    manager.close()


def test_without_a_manager_nothing_is_held_and_nothing_waits() -> None:
    began = time.monotonic()
    Notifier().store("name", 0)
    Notifier().discard(["name"])
    assert time.monotonic() - began < 0.5


PASSED = """
import os
from fmctl import notify
os.environ["LISTEN_PID"] = os.environ.get("LISTEN_PID") or str(os.getpid())
found = notify.stored()
print({name: os.read(descriptor, 9).decode() for name, descriptor in found.items()})
print([name for name in os.environ if name.startswith("LISTEN")], [os.get_inheritable(d) for d in found.values()])
"""


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({"LISTEN_FDS": "2", "LISTEN_FDNAMES": "one:two"}, "{'one': 'first', 'two': 'second'}"),
        ({"LISTEN_FDS": "2", "LISTEN_FDNAMES": "one:one"}, "{'one': 'first'}"),
        ({"LISTEN_FDS": "2", "LISTEN_FDNAMES": "one:two", "LISTEN_PID": "1"}, "{}"),
        ({"LISTEN_FDS": "many", "LISTEN_FDNAMES": "one"}, "{}"),
        ({}, "{}"),
    ],
)
def test_what_the_manager_held_is_taken_up(environment: dict[str, str], found: str) -> None:
    def pipes() -> None:
        for number, text in enumerate((b"first", b"second")):
            reading, writing = os.pipe()
            os.write(writing, text)
            os.dup2(reading, 3 + number)

    done = subprocess.run(
        [sys.executable, "-c", PASSED],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=pipes,
        pass_fds=(3, 4),
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[0] == found
    assert done.stdout.splitlines()[1].startswith("[] ")
    assert "True" not in done.stdout
