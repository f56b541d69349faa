# SPDX-License-Identifier: Apache-2.0
"""Fabric Manager's process, played by a shell that notes how it was started, in a pretended guest."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fmctl import platforms, templates
from fmctl.core import fmconfig
from fmctl.core.address import Address
from fmctl.core.answers import ProcessState
from fmctl.core.errors import FmctlError, VersionMismatch
from fmctl.core.fmconfig import ConfigValues
from fmctl.guest.fmservice import Configuration, FmService
from fmctl.sim import guestfiles
from fmctl.sim.nvfabricmanager import VERSION
from tests.support import eventually

Make = Callable[..., FmService]

SCRIPT = """
case "$*" in
    *-v*) echo "Fabric Manager version is : ${FMCTL_TEST_VERSION-580.95.05}"; exit ;;
esac
echo "$$ $*" >> NOTES
exec sleep 1000
"""


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return tmp_path / "notes"


@pytest.fixture
def command(notes: Path) -> list[str]:
    """Tells its version, or appends its process id and its arguments to `notes` and runs until it is ended."""
    return ["/bin/sh", "-c", SCRIPT.replace("NOTES", str(notes)), "fabric-manager"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A guest with a driver, and the NVSwitches of an HGX H100."""
    guestfiles.make(tmp_path / "root", platforms.load("hgx-h100-8"))
    return tmp_path / "root"


@pytest.fixture
def make(command: list[str], notes: Path, tmp_path: Path, root: Path) -> Iterator[Make]:
    """Makes services whose processes end with the test."""
    services = []

    def made(run_dir: Path = tmp_path / "run", command: Any = command, **more: Any) -> FmService:
        values = ConfigValues(Address.parse("unix:/run/fm.sock"), "/run/fm.state", "/var/log/fm.log", 16)
        stock = more.pop("stock", guestfiles.stock_config(root))
        configuration = Configuration(tmp_path / "run" / "fm.cfg", stock, templates.fabric_manager_config, values)
        services.append(FmService(command, configuration, run_dir, root=root, **more))
        return services[-1]

    yield made
    for pid in pids(notes):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for service in services:
        eventually(lambda service=service: service.state() is not ProcessState.RUNNING)  # type: ignore[misc]


def started(notes: Path) -> list[str]:
    return notes.read_text().splitlines() if notes.exists() else []


def pids(notes: Path) -> list[int]:
    return [int(line.split()[0]) for line in started(notes)]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def test_it_runs_when_it_is_told_to_and_not_before(make: Make, notes: Path, tmp_path: Path) -> None:
    service = make()
    assert service.state() is ProcessState.NOT_STARTED
    assert not started(notes)
    service.start(restart=False)
    assert service.state() is ProcessState.RUNNING
    (line,) = eventually(lambda: started(notes))
    assert line.split()[1:] == ["-c", str(tmp_path / "run" / "fm.cfg")]


def test_a_restart_says_so_and_takes_the_place_of_what_runs(make: Make, notes: Path, tmp_path: Path) -> None:
    service = make()
    service.start(restart=False)
    (first,) = eventually(lambda: pids(notes))
    service.start(restart=True)
    eventually(lambda: len(pids(notes)) == 2)
    assert started(notes)[1].split()[1:] == ["-c", str(tmp_path / "run" / "fm.cfg"), "--restart"]
    assert gone(first)
    assert not gone(pids(notes)[1])


def test_one_that_died_has_ended(make: Make, notes: Path) -> None:
    service = make()
    service.start(restart=False)
    (pid,) = eventually(lambda: pids(notes))
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: service.state() is ProcessState.ENDED)
    assert make().state() is ProcessState.ENDED


def test_it_outlives_the_agent_and_the_next_one_finds_and_ends_it(
    make: Make, command: list[str], notes: Path, tmp_path: Path
) -> None:
    code = "import sys; from pathlib import Path; from fmctl.guest.kept import KeptProcess;"
    code += "KeptProcess('Fabric Manager', Path(sys.argv[1])).start(sys.argv[2:])"
    record = tmp_path / "run" / "fabric-manager.json"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(record), *command], check=True, timeout=20)
    (pid,) = eventually(lambda: pids(notes))
    service = make()
    assert service.state() is ProcessState.RUNNING
    service.start(restart=True)
    eventually(lambda: len(pids(notes)) == 2)
    assert gone(pid)


def test_a_process_that_got_the_same_number_is_not_taken_for_it(make: Make, notes: Path, tmp_path: Path) -> None:
    record = tmp_path / "run" / "fabric-manager.json"
    record.parent.mkdir()
    record.write_text(f'{{"pid": {os.getpid()}, "started": "1"}}')
    service = make()
    assert service.state() is ProcessState.ENDED
    service.start(restart=False)
    assert service.state() is ProcessState.RUNNING
    assert len(eventually(lambda: pids(notes))) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', '{"pid": 1}', '{"pid": 999999999, "started": null}'])
def test_a_damaged_record_is_of_one_that_ended(make: Make, tmp_path: Path, text: str) -> None:
    record = tmp_path / "run" / "fabric-manager.json"
    record.parent.mkdir()
    record.write_text(text)
    assert make().state() is ProcessState.ENDED


def test_one_that_ignores_the_request_is_ended_without_mercy(make: Make, notes: Path) -> None:
    script = f'case "$*" in *-v*) exit;; esac; trap "" TERM; echo $$ >> {notes}; while :; do sleep 1; done'
    service = make(command=["/bin/sh", "-c", script, "fabric-manager"], stop_grace=0.2)
    service.start(restart=False)
    (pid,) = eventually(lambda: pids(notes))
    service.start(restart=False)
    assert gone(pid)
    eventually(lambda: len(pids(notes)) == 2)


def test_a_command_that_is_not_there_is_an_error_and_not_a_start(make: Make) -> None:
    service = make(command=["/nowhere/nv-fabricmanager"])
    with pytest.raises(FmctlError) as refusal:
        service.start(restart=False)
    assert "/nowhere/nv-fabricmanager cannot be started" in str(refusal.value)
    assert service.state() is ProcessState.NOT_STARTED


def test_without_a_command_something_else_starts_it(make: Make) -> None:
    service = make(command=())
    assert service.state() is ProcessState.UNMANAGED
    service.look()
    assert service.facts().driver_version == VERSION
    with pytest.raises(FmctlError) as refusal:
        service.start(restart=False)
    assert "fm_command" in refusal.value.fix


def test_its_configuration_is_written_before_it_starts(make: Make, tmp_path: Path) -> None:
    written = tmp_path / "run" / "fm.cfg"
    script = f'case "$*" in *-v*) exit;; esac; cp "$2" {tmp_path}/seen; exec sleep 1000'
    service = make(command=["/bin/sh", "-c", script, "fm"])
    before = os.umask(0o077)
    try:
        service.start(restart=False)
    finally:
        os.umask(before)
    seen = eventually(lambda: (tmp_path / "seen").exists() and (tmp_path / "seen").read_text())
    assert seen == written.read_text()
    config = fmconfig.parse(seen)
    assert (config["FABRIC_MODE"], config["FM_CMD_UNIX_SOCKET_PATH"]) == ("1", "/run/fm.sock")
    assert config["ACCESS_LINK_FAILURE_MODE"] == "0"
    assert service.facts().config == config
    assert written.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in written.parent.iterdir() if path.name.startswith(".")] == []
    service._process.stop()


def test_what_an_operator_changed_in_it_does_not_last(make: Make, notes: Path, tmp_path: Path) -> None:
    service = make()
    service.start(restart=False)
    (tmp_path / "run" / "fm.cfg").write_text("FABRIC_MODE=0\n")
    service.start(restart=True)
    assert "FABRIC_MODE=1\n" in (tmp_path / "run" / "fm.cfg").read_text()
    eventually(lambda: len(pids(notes)) == 2)


def test_nvidia_s_own_file_may_be_missing_but_not_unreadable(make: Make, tmp_path: Path, notes: Path) -> None:
    make(stock=tmp_path / "nowhere").start(restart=False)
    (pid,) = eventually(lambda: pids(notes))
    with pytest.raises(FmctlError) as refusal:
        make(stock=tmp_path).start(restart=False)
    assert str(tmp_path) in refusal.value.why
    assert not gone(pid), "a refused start ended the Fabric Manager that ran"


def test_versions_are_told_and_a_difference_refuses_the_start(
    make: Make, notes: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = make()
    service.start(restart=False)
    (pid,) = eventually(lambda: pids(notes))
    facts = service.facts()
    assert (facts.fm_version, facts.driver_version) == ("580.95.05", "580.95.05")
    monkeypatch.setenv("FMCTL_TEST_VERSION", "570.86.15")
    with pytest.raises(VersionMismatch) as refusal:
        service.start(restart=True)
    assert refusal.value.why == "Fabric Manager is 570.86.15, and the driver 580.95.05"
    assert (service.facts().fm_version, service.facts().driver_version) == ("570.86.15", "580.95.05")
    assert not gone(pid), "a refused start ended the Fabric Manager that ran"


@pytest.mark.parametrize("unknown", ["driver", "fabric manager"])
def test_an_unknown_version_refuses_nothing(
    make: Make, notes: Path, root: Path, monkeypatch: pytest.MonkeyPatch, unknown: str
) -> None:
    if unknown == "driver":
        (root / "sys" / "module" / "nvidia" / "version").unlink()
    else:
        monkeypatch.setenv("FMCTL_TEST_VERSION", "")
    service = make()
    service.start(restart=False)
    eventually(lambda: pids(notes))
    facts = service.facts()
    assert "" in (facts.fm_version, facts.driver_version)


def test_an_agent_that_was_started_again_knows_what_runs(make: Make, notes: Path) -> None:
    first = make()
    first.start(restart=False)
    eventually(lambda: pids(notes))
    again = make()
    assert again.facts().fm_version == ""
    again.look()
    assert again.facts() == dataclasses.replace(first.facts())
    assert again.facts().config["FABRIC_MODE"] == "1"


def test_a_fresh_start_gives_the_fabric_another_name_and_a_restart_leaves_it(make: Make, notes: Path) -> None:
    service = make()
    assert service.facts().fabric_start == ""
    names = []
    for restart in (False, True, False):
        service.start(restart=restart)
        names.append(service.facts().fabric_start)
    assert "" != names[0] == names[1] != names[2] != ""
    assert make().facts().fabric_start == names[2]


def test_a_program_that_has_not_run_is_not_asked(make: Make, tmp_path: Path) -> None:
    service = make(command=["/bin/sh", "-c", f"touch {tmp_path}/asked", "fm"])
    service.look()
    assert not (tmp_path / "asked").exists()
    assert service.facts().driver_version == VERSION


def test_facts_never_ask_the_program(make: Make, notes: Path, tmp_path: Path, command: list[str]) -> None:
    asked = tmp_path / "asked"
    script = command[2].replace("*-v*) ", f"*-v*) echo >> {asked}; ")
    service = make(command=["/bin/sh", "-c", script, "fm"])
    service.start(restart=False)
    eventually(lambda: pids(notes))
    for _ in range(5):
        service.facts()
        service.state()
    assert asked.read_text() == "\n"
