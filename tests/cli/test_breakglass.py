# SPDX-License-Identifier: Apache-2.0
"""`fmctl --agent`: the command as a process of its own, over an agent with its own server, and then a whole daemon."""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmctl import local, platforms
from fmctl.cli import breakglass
from fmctl.control.agent import LocalAgent
from fmctl.control.breakglass import BreakGlass
from fmctl.control.logbuffer import LogBuffer
from fmctl.core.address import Address
from fmctl.core.errors import AgentUnreachable, HypervisorUnreachable, VmRunning
from fmctl.core.settings import DaemonSettings
from fmctl.guest.audit import AuditFile
from fmctl.rpc import vsock
from fmctl.rpc.endpoints import dial_unix
from fmctl.rpc.fmctl.v1.fabric_manager_pb2_grpc import add_FabricManagerServiceServicer_to_server
from fmctl.rpc.manager import FabricManagerServicer
from fmctl.rpc.server import MANAGER_SERVICE, Listening, Server
from fmctl.sim.fabric import Fabric
from fmctl.sim.fmservice import Unmanaged
from fmctl.sim.nvfm import MemoryNvfm
from tests.cli.test_render import H100_TABLE
from tests.support import Program, eventually, run

GLASS = ("--break-glass", "--reason", "fmctld is gone")


class Guest:
    """An agent that has waited long enough for a daemon; `time` is its clock."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self.address = f"unix:{folder}/agent.sock"
        self.time = 0.0
        logs = LogBuffer(clock=lambda: self.time)
        nvfm = MemoryNvfm(Fabric.started(platforms.load("hgx-h100-8"), now=-1e6))
        agent = LocalAgent(nvfm, Unmanaged(), lambda: None, library="memory", call_timeout=5, logs=logs)
        self.trail = AuditFile(folder / "break-glass.jsonl")
        glass = BreakGlass(agent, self.trail, logs, call_timeout=5)
        server = Server(
            Listening(Address.parse(self.address)),
            (MANAGER_SERVICE,),
            lambda grpc: add_FabricManagerServiceServicer_to_server(FabricManagerServicer(agent, lambda: glass), grpc),
        )
        stack.enter_context(server)
        stack.enter_context(logs)
        self.time = 1e6

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run("--agent", self.address, *arguments, env={"FMCTL_ADDRESS": "unix:/no/daemon.sock"})

    def done(self, *arguments: str) -> str:
        done = self(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def daemon(self, stack: contextlib.ExitStack) -> Program:
        settings = self.folder / "fmctld.yaml"
        settings.write_text(
            f"listen: unix:{self.folder}/fmctld.sock\nagent: {self.address}\nstate_dir: {self.folder}\n"
            "service_vm: {managed: false}\nmode: manage\npoll_interval_s: 0.2\n"
        )
        program = Program("daemon", "--config", str(settings), log=self.folder / "daemon.log")
        stack.enter_context(program).says("serving at")
        return program

    def journal(self) -> list[str]:
        path = self.folder / "audit.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [entry["what"] for line in lines if "past fmctld" in (entry := json.loads(line))["what"]]


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def guest(folder: Path, stack: contextlib.ExitStack) -> Guest:
    return Guest(folder, stack)


def test_list_has_every_format_with_no_daemon(guest: Guest) -> None:
    inactive = H100_TABLE.replace("7             Active  ", "7             Inactive")
    assert guest.done("list") == inactive
    assert guest.done("list", "-o", "csv", "--no-headers").startswith("0,inactive,8,144,")
    assert len(json.loads(guest.done("list", "-o", "fmpm"))["partitionInfo"]) == 15


def test_status_tells_of_the_agent_and_of_the_daemon_at_it(guest: Guest, stack: contextlib.ExitStack) -> None:
    shown = guest.done("status")
    assert f"at {guest.address} (simulated)" in shown
    assert "not connected to this agent" in shown
    guest.daemon(stack)
    eventually(lambda: json.loads(guest.done("status", "-o", "json"))["agent"]["has_daemon"])
    assert json.loads(guest.done("status", "-o", "json"))["fabric"]["state"] == "ready"


@pytest.mark.parametrize(
    "arguments", [("activate", "3"), ("deactivate", "3", "--break-glass", "--reason", " ")], ids=" ".join
)
def test_a_change_without_both_words_is_refused_with_why(guest: Guest, arguments: tuple[str, ...]) -> None:
    refused = guest(*arguments)
    assert refused.returncode == 2
    assert "knows no leases" in " ".join(refused.stderr.split())
    assert guest.trail.lines() == ()


def test_the_words_and_other_commands_are_refused_where_they_do_not_belong(guest: Guest) -> None:
    assert run("activate", "3", *GLASS).returncode == 2
    refused = guest("allocate", "2")
    assert (refused.returncode, "--agent goes with list" in refused.stderr) == (2, True)


def test_an_agent_that_does_not_answer_is_told(folder: Path) -> None:
    done = run("--agent", f"unix:{folder}/no.sock", "list")
    assert (done.returncode, "does not answer" in done.stderr) == (5, True)


def test_a_daemon_that_comes_back_reports_what_was_done_without_it(guest: Guest, stack: contextlib.ExitStack) -> None:
    assert "partition 3 is now active" in guest.done("activate", "--gpu-ids", "1,3", *GLASS)
    held = guest("activate", "3", *GLASS)
    assert (held.returncode, "only fmctld knows" in held.stderr) == (4, True)

    daemon = guest.daemon(stack)
    at = {"FMCTL_ADDRESS": f"unix:{guest.folder}/fmctld.sock"}
    expected = ["activate, past fmctld: asked for", "activate, past fmctld: done, code 0"]
    eventually(lambda: guest.journal() == expected)
    eventually(lambda: "no lease holds it" in run("reconcile", "--dry-run", env=at).stdout)
    (active,) = [
        p for p in json.loads(run("list", "-o", "json", env=at).stdout)["partitions"] if p["status"] == "active"
    ]
    assert (active["id"], active["owner"]) == (3, "")

    refused = guest("deactivate", "3", *GLASS)
    assert (refused.returncode, "connected to this agent" in refused.stderr) == (4, True)
    daemon.end()
    eventually(lambda: not json.loads(guest.done("status", "-o", "json"))["agent"]["has_daemon"])
    guest.time += 60
    assert "partition 3 is now inactive" in guest.done("deactivate", "3", *GLASS)

    guest.daemon(stack)
    expected += ["deactivate, past fmctld: asked for", "deactivate, past fmctld: done, code 0"]
    eventually(lambda: guest.journal() == expected)
    users = {json.loads(line)["user"] for line in guest.trail.lines()}
    assert len(users) == 1
    assert " at " in users.pop()


def test_a_host_without_the_board_does_not_know_who_has_its_gpus() -> None:
    with pytest.raises(VmRunning, match="cannot be told from here"):
        local.refuse_open(DaemonSettings(), (1, 3))


class Libvirt:
    """A libvirt that lists no VM, or does not answer."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def domains(self, *, timeout: float) -> tuple[()]:
        if self.uri == "mute":
            raise HypervisorUnreachable("libvirt does not answer")
        return ()

    def close(self) -> None:
        pass


@pytest.fixture
def vsock_to(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> Address:
    """A vsock address that leads to the agent, in the place of vsock."""
    hypervisor = pytest.importorskip("fmctl.host.hypervisor")
    monkeypatch.setattr(hypervisor, "Libvirt", Libvirt)
    dial = dial_unix(Path(guest.address.removeprefix("unix:")))
    monkeypatch.setattr(vsock, "to_agent", functools.partial(vsock.to_agent, dial=dial))
    return Address.parse("vsock:1000:6767")


def test_a_vm_that_is_not_the_service_vm_is_not_called(vsock_to: Address) -> None:
    with pytest.raises(AgentUnreachable, match="the Service VM does not run"):
        breakglass.listed(vsock_to, 10)


def test_without_libvirt_it_is_told_that_the_vm_was_not_verified(
    vsock_to: Address, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(breakglass, "read", lambda cls, path: DaemonSettings(libvirt_uri="mute"))
    assert len(breakglass.listed(vsock_to, 10).list.partitions) == 15
    assert capsys.readouterr().err.count("is not verified: libvirt does not answer") == 1
