# SPDX-License-Identifier: Apache-2.0
"""An agent that starts Fabric Manager itself: real processes, any of which dies."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from fmctl import platforms
from fmctl.agent import TRAIL
from fmctl.core import schema
from fmctl.core.address import Address
from fmctl.core.answers import FabricState, StartMode
from fmctl.core.breakglass import ASKED, Record
from fmctl.core.errors import FmctlError, PartitionHeld, VersionMismatch
from fmctl.core.fmcode import Operation
from fmctl.core.loglines import LogPosition, LogSource
from fmctl.guest.audit import AuditFile
from fmctl.rpc.agent_client import AgentClient
from fmctl.sim import guestfiles, shim
from tests.support import Program, eventually

T = 30.0


class Guest:
    """The Service VM's inside; `prefix` comes before Fabric Manager's command line."""

    def __init__(self, folder: Path, cleanup: contextlib.ExitStack, prefix: Sequence[str] = ()) -> None:
        self._folder = folder
        self.root = folder / "root"
        self.trail = folder / "run" / TRAIL
        self._cleanup = cleanup
        at = f"unix:{folder}"
        guestfiles.make(folder / "root", platforms.load("hgx-h100-8"))
        command = [sys.executable, "-m", "fmctl", "sim", "nv-fabricmanager", "--platform", "hgx-h100-8"]
        settings = {
            "listen": f"{at}/agent.sock",
            "run_dir": f"{folder}/run",
            "fm_address": f"{at}/fm.sock",
            "fm_command": [*prefix, *command],
            "fm_config": f"{folder}/fm.cfg",
            "fm_stock_config": str(guestfiles.stock_config(folder / "root")),
            "fm_log": f"{folder}/fm.log",
            "system_root": f"{folder}/root",
            "agent_dir": f"{folder}/agents",
            "library": f"{shim.build()}/libnvfm.so.1",
        }
        (folder / "agent.yaml").write_text(schema.dump(settings))
        self.client = cleanup.enter_context(contextlib.closing(AgentClient(Address.parse(f"{at}/agent.sock"))))
        self.agent = self.boot_agent()

    def boot_agent(self) -> Program:
        argv = ("agent", "--config", str(self._folder / "agent.yaml"))
        self.agent = self._cleanup.enter_context(Program(*argv, log=self._folder / "agent.log"))
        self.agent.says("serving at")
        return self.agent

    @property
    def state(self) -> FabricState:
        return self.client.status(timeout=T).state

    def active(self) -> list[int]:
        return [p.id for p in self.client.list_partitions(timeout=T).partitions if p.active]

    def fabric_manager(self) -> int:
        """The process of Fabric Manager, whoever its parent is now; 0 for none."""
        wanted = str(self._folder / "fm.cfg").encode()
        for command in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if wanted in command.read_bytes().split(b"\0"):
                    return int(command.parent.name)
        return 0


@pytest.fixture
def guest(folder: Path) -> Iterator[Guest]:
    with contextlib.ExitStack() as cleanup:
        guest = Guest(folder, cleanup)
        yield guest
        if pid := guest.fabric_manager():
            os.kill(pid, signal.SIGKILL)


def test_fabric_manager_dies_and_takes_up_what_was_active(guest: Guest) -> None:
    assert guest.state is FabricState.NOT_STARTED
    guest.client.start_fabric_manager(StartMode.FRESH, (), timeout=T)
    eventually(lambda: guest.state is FabricState.READY)
    guest.client.activate(3, timeout=T)
    os.kill(guest.fabric_manager(), signal.SIGKILL)
    eventually(lambda: guest.state is FabricState.ENDED)
    guest.client.start_fabric_manager(StartMode.RESTART, (3, 6), timeout=T)
    assert guest.active() == [3, 6]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_agent_ends_and_fabric_manager_goes_on(guest: Guest, number: int) -> None:
    guest.client.start_fabric_manager(StartMode.FRESH, (), timeout=T)
    eventually(lambda: guest.state is FabricState.READY)
    guest.client.activate(3, timeout=T)
    before = guest.fabric_manager()
    guest.agent.end(number)
    guest.boot_agent()
    assert eventually(lambda: _active(guest)) == [3]
    assert guest.fabric_manager() == before


def test_a_restart_of_the_agent_is_answered_and_then_done(guest: Guest) -> None:
    guest.client.restart(timeout=T)
    assert guest.agent.process.wait(15) == 0


def test_a_start_that_cannot_work_says_why(guest: Guest) -> None:
    with pytest.raises(FmctlError, match="ended before it took the active partitions"):
        guest.client.start_fabric_manager(StartMode.RESTART, (), timeout=T)
    assert guest.state is FabricState.ENDED


def test_its_status_tells_what_it_started_and_so_does_the_next_agent_s(guest: Guest) -> None:
    guest.client.start_fabric_manager(StartMode.FRESH, (), timeout=T)
    eventually(lambda: guest.state is FabricState.READY)
    starts = set()

    def is_told() -> bool:
        status = guest.client.status(timeout=T)
        known = (status.fm_version, status.driver_version, status.versions_differ, status.nvlsm)
        starts.add(status.fabric_start)
        return (
            known == ("580.95.05", "580.95.05", "", "")
            and status.fm_config.get("FABRIC_MODE") == "1"
            and any("every NVSwitch is set up" in line for line in status.fm_log)
        )

    eventually(is_told)
    guest.agent.end(signal.SIGKILL)
    guest.boot_agent()
    eventually(is_told)
    assert len(starts - {""}) == 1


def test_another_driver_refuses_the_start_and_names_both(guest: Guest) -> None:
    (guest.root / "sys" / "module" / "nvidia" / "version").write_text("570.86.15\n")
    with pytest.raises(VersionMismatch) as refusal:
        guest.client.start_fabric_manager(StartMode.FRESH, (), timeout=T)
    assert refusal.value.why == "Fabric Manager is 580.95.05, and the driver 570.86.15"
    status = guest.client.status(timeout=T)
    assert status.state is FabricState.NOT_STARTED
    assert status.versions_differ == "Fabric Manager is 580.95.05, and the driver 570.86.15"


def test_both_logs_are_streamed(guest: Guest) -> None:
    guest.client.start_fabric_manager(StartMode.FRESH, (), timeout=T)
    with (guest.root / "dev" / "kmsg").open("a") as kernel:
        kernel.write("4,1,1000000,-;nvidia-nvswitch0: SXid (PCI:0000:04:00.0): 28006, Non-fatal, Link 46\n")
    stream = guest.client.logs(LogPosition())
    seen = {}
    for line in stream:
        seen[line.source] = line.text
        if len(seen) == 2:
            break
    stream.close()
    assert "28006" in seen[LogSource.KERNEL]
    assert "[INFO]" in seen[LogSource.FABRIC_MANAGER]


def test_what_was_changed_past_the_daemon_is_told_by_the_next_agent_too(guest: Guest) -> None:
    guest.client.start_fabric_manager(StartMode.FRESH, (), timeout=T)
    eventually(lambda: guest.state is FabricState.READY)
    with pytest.raises(PartitionHeld, match="not certain yet"):
        guest.client.break_glass(Operation.ACTIVATE, 3, user="alice", reason="no daemon", timeout=T)
    guest.agent.end()
    record = Record("boot", 1, 1.0, Operation.ACTIVATE, 3, "alice", "no daemon", ASKED)
    AuditFile(guest.trail).append(record.text())
    guest.boot_agent()
    stream = guest.client.logs(LogPosition())
    assert next(line.text for line in stream if line.source is LogSource.BREAK_GLASS) == record.text()
    assert guest.client.status(timeout=T).has_daemon
    with pytest.raises(PartitionHeld, match="connected to this agent"):
        guest.client.break_glass(Operation.ACTIVATE, 3, user="alice", reason="no daemon", timeout=T)
    stream.close()
    assert guest.active() == []


def test_an_agent_ends_at_once_while_its_logs_are_told(guest: Guest) -> None:
    guest.client.start_fabric_manager(StartMode.FRESH, (), timeout=T)
    stream = guest.client.logs(LogPosition())
    assert next(stream).text
    began = time.monotonic()
    assert guest.agent.end() == 0
    assert time.monotonic() - began < 3
    stream.close()


def _active(guest: Guest) -> list[int]:
    try:
        return guest.active()
    except FmctlError:
        return []
