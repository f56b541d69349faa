# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
from pathlib import Path

import pytest

from fmctl.cli.hook import MANAGED, managed
from fmctl.core.answers import HookLoad
from fmctl.core.asking import HostDevice
from fmctl.core.pci import Bdf
from fmctl.host.hookfiles import HOOK, HostHookFiles


class Machine:
    """A root with processes, a hook, and the daemon's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.run_dir = root / "run" / "fmctl"
        self.run_dir.mkdir(parents=True)
        (root / HOOK).parent.mkdir(parents=True)
        (root / HOOK).touch(0o755)

    def runs(self, pid: int, command: str, started: int) -> None:
        """Let a process of that name run."""
        folder = self.root / "proc" / str(pid)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "stat").write_text(f"{pid} ({command}) S 1 {' '.join(['0'] * 17)} {started} 0 0\n")

    @property
    def files(self) -> HostHookFiles:
        return HostHookFiles(self.root, self.run_dir)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize("command", ["libvirtd", "virtqemud"])
def test_a_call_of_the_libvirt_that_runs_loads_it(machine: Machine, command: str) -> None:
    assert machine.files.load() is HookLoad.NOT_LOADED
    machine.runs(7, command, 1000)
    machine.files.called(7)
    assert machine.files.load() is HookLoad.LOADED, "also for the next daemon"
    machine.runs(7, command, 2000)
    assert machine.files.load() is HookLoad.NOT_LOADED, "another process has that number now"


def test_a_call_of_anybody_else_counts_for_nothing(machine: Machine) -> None:
    machine.runs(7, "bash", 1000)
    for pid in (7, 8):
        machine.files.called(pid)
        assert machine.files.load() is HookLoad.NOT_LOADED


def test_a_hook_that_is_not_there_is_not_installed(machine: Machine) -> None:
    (machine.root / HOOK).unlink()
    assert machine.files.load() is HookLoad.NOT_INSTALLED


def test_the_hook_reads_what_the_daemon_told(machine: Machine) -> None:
    mine, other = Bdf(0, 0x17, 0, 0), Bdf(0, 0x18, 0, 0)
    machine.files.keep([mine])
    assert (machine.root / MANAGED).parent == machine.run_dir
    assert managed([HostDevice(mine), HostDevice(other)], machine.root) == [str(mine)]


def test_what_cannot_be_written_is_logged_alone(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    machine.run_dir.rmdir()
    with caplog.at_level(logging.WARNING):
        machine.files.keep([Bdf(0, 0x17, 0, 0)])
    assert "is not written" in caplog.text
