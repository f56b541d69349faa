# SPDX-License-Identifier: Apache-2.0
"""Which fresh start of Fabric Manager the fabric is of, over a folder of a guest's files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from fmctl.guest.fabricstart import FabricStart


class Guest:
    """A guest whose Fabric Manager something else starts."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.stock = root / "usr" / "fabricmanager.cfg"
        self.boot("boot-1")

    def boot(self, name: str) -> None:
        """Boot anew: nothing runs, and what lies in /run is gone."""
        self.end()
        (self.root / "run.json").unlink(missing_ok=True)
        file = self.root / "proc" / "sys" / "kernel" / "random" / "boot_id"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{name}\n")

    def start(self, pid: int, started: int, *arguments: str, program: str = "/usr/bin/nv-fabricmanager") -> None:
        folder = self.root / "proc" / str(pid)
        folder.mkdir(parents=True)
        (folder / "cmdline").write_bytes(b"".join(each.encode() + b"\0" for each in (program, *arguments)))
        (folder / "stat").write_text(f"{pid} (nv (x) fabric) S 1 {'0 ' * 17}{started} 0\n")

    def end(self) -> None:
        for folder in (self.root / "proc").glob("[0-9]*"):
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()

    def seen(self) -> str:
        """What a new agent tells."""
        return FabricStart(self.root / "run.json", self.root, self.stock).seen()


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    return Guest(tmp_path)


def test_it_is_not_known_before_one_was_seen(guest: Guest) -> None:
    guest.start(7, 100, program="/usr/sbin/sshd")
    assert guest.seen() == ""


def test_each_new_process_is_a_fresh_start_and_one_that_goes_on_or_is_gone_is_none(guest: Guest) -> None:
    guest.start(7, 100)
    first = guest.seen()
    assert first and guest.seen() == first
    guest.end()
    assert guest.seen() == first
    guest.start(7, 200)
    second = guest.seen()
    assert second not in ("", first)


@pytest.mark.parametrize("arguments", [["--restart"], ["-r"], ["-c", "/etc/fm.cfg", "--restart"]])
def test_a_restart_leaves_the_fabric_as_it_was(guest: Guest, arguments: Sequence[str]) -> None:
    guest.start(7, 100)
    first = guest.seen()
    guest.end()
    guest.start(8, 200, *arguments)
    assert guest.seen() == first


@pytest.mark.parametrize("named", [True, False])
def test_the_configuration_can_say_that_it_restarts(guest: Guest, *, named: bool) -> None:
    file = guest.root / "etc" / "fm.cfg" if named else guest.stock
    file.parent.mkdir(parents=True)
    file.write_text("FABRIC_MODE_RESTART=1\n")
    arguments = ["-c", "/etc/fm.cfg"] if named else []
    guest.start(7, 100, *arguments)
    first = guest.seen()
    guest.end()
    guest.start(8, 200, *arguments)
    assert guest.seen() == first
    file.write_text("FABRIC_MODE_RESTART=0\n")
    guest.end()
    guest.start(9, 300, *arguments)
    assert guest.seen() != first


def test_a_restart_before_which_none_was_seen_is_taken_for_a_fresh_start(guest: Guest) -> None:
    guest.start(7, 100, "--restart")
    assert guest.seen() != ""


def test_the_same_numbers_in_another_boot_are_another_start(guest: Guest) -> None:
    guest.start(7, 100)
    first = guest.seen()
    guest.boot("boot-2")
    assert guest.seen() == ""
    guest.start(7, 100)
    assert guest.seen() not in ("", first)


@pytest.mark.parametrize("arguments", [["-v"], ["--version"], ["-h"]])
def test_one_that_is_only_asked_something_counts_nothing(guest: Guest, arguments: Sequence[str]) -> None:
    guest.start(7, 100)
    first = guest.seen()
    guest.start(9, 50, *arguments)
    assert guest.seen() == first


def test_a_start_of_the_agent_s_own_is_noted_for_the_next_agent(guest: Guest) -> None:
    def agent() -> FabricStart:
        return FabricStart(guest.root / "run.json", guest.root, guest.stock)

    assert agent().noted() == ""
    agent().begin()
    first = agent().noted()
    assert first and agent().noted() == first
    agent().begin()
    assert agent().noted() not in ("", first)


def test_a_damaged_record_is_taken_for_none(guest: Guest) -> None:
    (guest.root / "run.json").write_text("{")
    assert FabricStart(guest.root / "run.json", guest.root, guest.stock).noted() == ""
    guest.start(7, 100)
    assert guest.seen() != ""
