# SPDX-License-Identifier: Apache-2.0
"""An agent that is replaced while Fabric Manager goes on, under a service manager and a starter played by this test."""

from __future__ import annotations

import compileall
import contextlib
import hashlib
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmctl import platforms
from fmctl.core import schema
from fmctl.core.address import Address
from fmctl.core.answers import AgentStatus, FabricState, StartMode
from fmctl.core.errors import AgentUnreachable, BadRequest
from fmctl.guest.package import Package
from fmctl.rpc.agent_client import AgentClient
from fmctl.sim import guestfiles, power, shim
from tests.support import eventually

ROOT = Path(__file__).parents[2]
T = 20.0


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This code as an image has it: compiled, without its sources."""
    folder = tmp_path_factory.mktemp("compiled")
    shutil.copytree(ROOT / "fmctl", folder / "fmctl", ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(folder / "fmctl", quiet=1, legacy=True)
    for path in (folder / "fmctl").rglob("*.py"):
        path.unlink()
    return folder


def packed(code: Path, extra: str) -> bytes:
    """An archive of that code; `extra` makes another one of it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(code / "fmctl", "fmctl")
        tar.add(ROOT / "service-vm" / "fabricmanager.cfg.j2", "fmctl/service-vm/fabricmanager.cfg.j2")
        member = tarfile.TarInfo("fmctl/extra.txt")
        member.size = len(extra)
        tar.addfile(member, io.BytesIO(extra.encode()))
    return buffer.getvalue()


def digest(archive: bytes) -> str:
    return hashlib.sha256(archive).hexdigest()


class Guest:
    """Unpacked agents, a starter that obeys `current` and `trial`, and the socket of a service manager."""

    def __init__(self, folder: Path, cleanup: contextlib.ExitStack) -> None:
        self.agents = folder / "agents"
        self._folder = folder
        self._manager = cleanup.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        self._manager.bind(str(folder / "notify"))
        self._manager.settimeout(0.05)
        self.messages: list[str] = []
        cleanup.enter_context(power.supply(folder / "power"))
        self._configure()
        self.client = cleanup.enter_context(contextlib.closing(AgentClient(Address.parse(f"unix:{folder}/agent.sock"))))
        self.process: subprocess.Popen[bytes] | None = None
        cleanup.callback(self.kill)

    def _configure(self) -> None:
        folder = self._folder
        guestfiles.make(folder / "root", platforms.load("hgx-h100-8"))
        command = [sys.executable, "-m", "fmctl", "sim", "nv-fabricmanager", "--platform", "hgx-h100-8"]
        settings = {
            "listen": f"unix:{folder}/agent.sock",
            "run_dir": f"{folder}/run",
            "fm_address": f"unix:{folder}/fm.sock",
            "fm_command": [*command, "--power", f"{folder}/power"],
            "fm_config": f"{folder}/fm.cfg",
            "fm_log": f"{folder}/fm.log",
            "system_root": f"{folder}/root",
            "agent_dir": str(self.agents),
            "library": f"{shim.build()}/libnvfm.so.1",
        }
        (folder / "agent.yaml").write_text(schema.dump(settings))

    def install(self, archive: bytes) -> None:
        """As at the guest's boot."""
        Package(self.agents, "").put(archive, digest(archive))
        (self.agents / "trial").rename(self.agents / "current")

    def start(self) -> str:
        """Start the agent as the starter would, and tell which."""
        chosen = (self.agents / "current").read_text().strip()
        trial = self.agents / "trial"
        if trial.exists():
            tried = trial.read_text().strip()
            mark = self.agents / tried / ".started"
            if mark.exists():
                trial.unlink()
            else:
                mark.touch()
                chosen = tried
        env = {
            **os.environ,
            "FMCTL_AGENT_DIGEST": chosen,
            "PYTHONPATH": str(self.agents / chosen),
            "NOTIFY_SOCKET": str(self._folder / "notify"),
            "WATCHDOG_USEC": "1000000",
        }
        argv = [sys.executable, "-m", "fmctl", "agent", "--config", str(self._folder / "agent.yaml")]
        log = (self._folder / "log").open("ab")
        self.messages.clear()
        self.process = subprocess.Popen(argv, env=env, cwd=self._folder, stderr=log, start_new_session=True)
        log.close()
        return chosen

    def hears(self, message: str) -> bool:
        """Whether the service manager was told that since the agent's start."""
        with contextlib.suppress(TimeoutError):
            while True:
                self.messages += self._manager.recv(4096).decode().splitlines()
        return message in self.messages

    def status(self) -> AgentStatus:
        """The agent's status, as soon as it answers."""

        def answered() -> tuple[AgentStatus, ...]:
            with contextlib.suppress(AgentUnreachable):
                return (self.client.status(timeout=T),)
            return ()

        return eventually(answered)[0]

    def ended(self) -> int:
        assert self.process
        return self.process.wait(T)

    def kill(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def log(self) -> str:
        return (self._folder / "log").read_text()


@pytest.fixture
def guest(folder: Path) -> Iterator[Guest]:
    with contextlib.ExitStack() as cleanup:
        yield Guest(folder, cleanup)


def test_a_replacement_that_is_reached_stays_and_fabric_manager_goes_on(guest: Guest, compiled: Path) -> None:
    old, new = packed(compiled, "old"), packed(compiled, "new")
    guest.install(old)
    assert guest.start() == digest(old)
    eventually(lambda: guest.hears("READY=1"))
    guest.client.start_fabric_manager(StartMode.FRESH, (), timeout=T)
    eventually(lambda: guest.status().state is FabricState.READY)
    guest.client.activate(3, timeout=T)

    guest.client.replace(new, digest(new), timeout=T)
    assert guest.ended() == 0
    assert guest.start() == digest(new)
    eventually(lambda: "this agent is on trial" in guest.log())
    assert not guest.hears("READY=1")
    status = guest.status()
    assert status.digest == digest(new)
    eventually(lambda: guest.hears("READY=1"))
    assert (guest.agents / "current").read_text().strip() == digest(new)
    assert not (guest.agents / "trial").exists()
    assert [p.id for p in guest.client.list_partitions(timeout=T).partitions if p.active] == [3]

    guest.client.restart(timeout=T)
    assert guest.ended() == 0
    assert guest.start() == digest(new)
    eventually(lambda: guest.hears("READY=1"))


def test_a_replacement_that_nobody_reaches_gives_way(guest: Guest, compiled: Path) -> None:
    old, new = packed(compiled, "old"), packed(compiled, "new")
    guest.install(old)
    guest.start()
    eventually(lambda: guest.hears("READY=1"))
    guest.client.replace(new, digest(new), timeout=T)
    guest.ended()
    assert guest.start() == digest(new)
    eventually(lambda: "this agent is on trial" in guest.log())
    assert not guest.hears("READY=1")
    guest.kill()
    assert guest.start() == digest(old)
    eventually(lambda: guest.hears("READY=1"))
    assert guest.status().digest == digest(old)


def test_what_is_no_agent_is_refused_and_the_agent_goes_on(guest: Guest, compiled: Path) -> None:
    old = packed(compiled, "old")
    guest.install(old)
    guest.start()
    eventually(lambda: guest.hears("READY=1"))
    with pytest.raises(BadRequest, match="it is no tar"):
        guest.client.replace(b"rubbish", digest(b"rubbish"), timeout=T)
    assert guest.status().digest == digest(old)


def test_the_watchdog_is_quiet_while_the_agent_lives(guest: Guest, compiled: Path) -> None:
    guest.install(packed(compiled, "old"))
    guest.start()
    eventually(lambda: guest.hears("WATCHDOG=1"))
    assert guest.process
    os.kill(guest.process.pid, signal.SIGSTOP)
    guest.hears("")
    guest.messages.clear()
    eventually(lambda: not guest.hears("WATCHDOG=1"))
    os.kill(guest.process.pid, signal.SIGCONT)
    eventually(lambda: guest.hears("WATCHDOG=1"))
    os.kill(guest.process.pid, signal.SIGTERM)
    assert guest.ended() == 0
    assert guest.hears("STOPPING=1")
