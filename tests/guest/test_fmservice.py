# SPDX-License-Identifier: Apache-2.0
"""Fabric Manager's process, played by a shell that notes how it was started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from fmctl.core.answers import ProcessState
from fmctl.core.errors import FmctlError
from fmctl.guest.fmservice import FmService
from tests.support import eventually

Make = Callable[..., FmService]


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return tmp_path / "notes"


@pytest.fixture
def command(notes: Path) -> list[str]:
    """Appends its process id and its arguments to `notes`, and runs until it is ended."""
    return ["/bin/sh", "-c", f'echo "$$ $*" >> {notes}; exec sleep 1000', "fabric-manager"]


@pytest.fixture
def make(notes: Path, tmp_path: Path) -> Iterator[Make]:
    """Makes services whose processes end with the test."""
    services = []

    def made(command: Sequence[str], record: Path = tmp_path / "run" / "record.json", **more: float) -> FmService:
        services.append(FmService(command, record, **more))
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


def test_it_runs_when_it_is_told_to_and_not_before(make: Make, command: list[str], notes: Path) -> None:
    service = make(command)
    assert service.state() is ProcessState.NOT_STARTED
    assert not started(notes)
    service.start(restart=False)
    assert service.state() is ProcessState.RUNNING
    (line,) = eventually(lambda: started(notes))
    assert line.split()[1:] == []


def test_a_restart_says_so_and_takes_the_place_of_what_runs(make: Make, command: list[str], notes: Path) -> None:
    service = make(command)
    service.start(restart=False)
    (first,) = eventually(lambda: pids(notes))
    service.start(restart=True)
    eventually(lambda: len(pids(notes)) == 2)
    assert started(notes)[1].split()[1:] == ["--restart"]
    assert gone(first)
    assert not gone(pids(notes)[1])


def test_one_that_died_has_ended(make: Make, command: list[str], notes: Path) -> None:
    service = make(command)
    service.start(restart=False)
    (pid,) = eventually(lambda: pids(notes))
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: service.state() is ProcessState.ENDED)
    assert make(command).state() is ProcessState.ENDED


def test_it_outlives_the_agent_and_the_next_one_finds_and_ends_it(
    make: Make, command: list[str], notes: Path, tmp_path: Path
) -> None:
    record = tmp_path / "record.json"
    code = "import sys; from pathlib import Path; from fmctl.guest.fmservice import FmService;"
    code += "FmService(sys.argv[2:], Path(sys.argv[1])).start(restart=False)"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(record), *command], check=True, timeout=20)
    (pid,) = eventually(lambda: pids(notes))
    service = make(command, record)
    assert service.state() is ProcessState.RUNNING
    service.start(restart=True)
    eventually(lambda: len(pids(notes)) == 2)
    assert gone(pid)


def test_a_process_that_got_the_same_number_is_not_taken_for_it(
    make: Make, command: list[str], notes: Path, tmp_path: Path
) -> None:
    record = tmp_path / "record.json"
    record.write_text(f'{{"pid": {os.getpid()}, "started": "1"}}')
    service = make(command, record)
    assert service.state() is ProcessState.ENDED
    service.start(restart=False)
    assert service.state() is ProcessState.RUNNING
    assert len(eventually(lambda: pids(notes))) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', '{"pid": 1}', '{"pid": 999999999, "started": null}'])
def test_a_damaged_record_is_of_one_that_ended(make: Make, command: list[str], tmp_path: Path, text: str) -> None:
    record = tmp_path / "record.json"
    record.write_text(text)
    assert make(command, record).state() is ProcessState.ENDED


def test_one_that_ignores_the_request_is_ended_without_mercy(make: Make, notes: Path) -> None:
    stubborn = ["/bin/sh", "-c", f"trap '' TERM; echo $$ >> {notes}; while :; do sleep 1; done", "fabric-manager"]
    service = make(stubborn, stop_grace=0.2)
    service.start(restart=False)
    (pid,) = eventually(lambda: pids(notes))
    service.start(restart=False)
    assert gone(pid)
    eventually(lambda: len(pids(notes)) == 2)


def test_a_command_that_is_not_there_is_an_error_and_not_a_start(tmp_path: Path) -> None:
    service = FmService(["/nowhere/nv-fabricmanager"], tmp_path / "record.json")
    with pytest.raises(FmctlError) as refusal:
        service.start(restart=False)
    assert "/nowhere/nv-fabricmanager cannot be started" in str(refusal.value)
    assert service.state() is ProcessState.NOT_STARTED


def test_without_a_command_something_else_starts_it(tmp_path: Path) -> None:
    service = FmService((), tmp_path / "record.json")
    assert service.state() is ProcessState.UNMANAGED
    with pytest.raises(FmctlError) as refusal:
        service.start(restart=False)
    assert "fm_command" in refusal.value.fix
