# SPDX-License-Identifier: Apache-2.0
"""The simulated Fabric Manager behind the real one's command line: options, configuration, state and log."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmctl import platforms
from fmctl.core import fmlog
from fmctl.core.address import Address
from fmctl.core.errors import FabricNotReady
from fmctl.guest.nvfm import Nvfm
from fmctl.sim import fmserver, shim
from fmctl.sim.nvfabricmanager import Start
from tests.support import Program, eventually, run

T = 10.0


class Fm:
    """A configuration, and the programs that were started with it."""

    def __init__(self, folder: Path, cleanup: contextlib.ExitStack) -> None:
        self.folder = folder
        self._cleanup = cleanup
        self.log_file = folder / "fm.log"
        self.state_file = folder / "fm.state"
        self.config = folder / "fm.cfg"
        self.keys = {
            "FABRIC_MODE": "1",
            "DAEMONIZE": "0",
            "LOG_FILE_NAME": str(self.log_file),
            "STATE_FILE_NAME": str(self.state_file),
            "FM_CMD_BIND_INTERFACE": "127.0.0.1 ",
            "FM_CMD_UNIX_SOCKET_PATH": f"{folder}/api.sock ",
        }

    def arguments(self, *more: str, board: str = "hgx-h100-8", **changed: str) -> list[str]:
        lines = ["# a comment \N{EN DASH} FABRIC_MODE=0", *(f"{k}={v}" for k, v in (self.keys | changed).items())]
        self.config.write_text("\n".join(lines) + "\n")
        return ["sim", "nv-fabricmanager", "--platform", board, "-c", str(self.config), *more]

    def start(self, *more: str, board: str = "hgx-h100-8", **changed: str) -> Program:
        argv = self.arguments(*more, board=board, **changed)
        program = Program(*argv, log=self.folder / "stderr")
        self._cleanup.enter_context(program).says("listens")
        return program

    def nvfm(self, address: str = "") -> Nvfm:
        nvfm = Nvfm(Address.parse(address or f"unix:{self.folder}/api.sock"), str(shim.build() / "libnvfm.so.1"))
        self._cleanup.callback(nvfm.close)
        return nvfm

    @property
    def log(self) -> list[str]:
        return self.log_file.read_text().splitlines()

    def says(self, text: str) -> None:
        eventually(lambda: text in self.log_file.read_text())


@pytest.fixture
def fm(folder: Path) -> Iterator[Fm]:
    with contextlib.ExitStack() as cleanup:
        yield Fm(folder, cleanup)


@pytest.mark.parametrize("option", ["-v", "--version"])
def test_its_version_is_printed_as_the_real_one_prints_it(option: str) -> None:
    done = run("sim", "nv-fabricmanager", "--platform", "hgx-h100-8", option)
    assert (done.returncode, done.stdout) == (0, "Fabric Manager version is : 580.95.05\n")
    env = {"FMCTL_SIM_FM_VERSION": "570.86.15"}
    done = run("sim", "nv-fabricmanager", "--platform", "hgx-h100-8", option, env=env)
    assert done.stdout == "Fabric Manager version is : 570.86.15\n"


def test_it_serves_where_its_configuration_says(fm: Fm) -> None:
    fm.start()
    nvfm = fm.nvfm()
    nvfm.activate(3, timeout=T)
    assert [p.id for p in nvfm.list_partitions(timeout=T).partitions if p.active] == [3]


def test_it_serves_over_tcp_without_a_path(fm: Fm) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    fm.start(FM_CMD_UNIX_SOCKET_PATH="", FM_CMD_PORT_NUMBER=str(port))
    assert len(fm.nvfm(f"127.0.0.1:{port}").list_partitions(timeout=T).partitions) == 15


@pytest.mark.parametrize("mode", ["0", ""])
def test_out_of_shared_mode_its_answer_is_not_supported(fm: Fm, mode: str) -> None:
    fm.start(FABRIC_MODE=mode)
    with pytest.raises(FabricNotReady, match="NOT_SUPPORTED"):
        fm.nvfm().list_partitions(timeout=T)


def test_its_log_is_in_fabric_manager_s_format_and_tells_what_happens(fm: Fm) -> None:
    program = fm.start()
    fm.says("every NVSwitch is set up")
    assert program.end() == 0
    fm.says("ends on request")
    entries = [fmlog.parse(line) for line in fm.log]
    assert all(entry is not None and entry.level == "INFO" for entry in entries)


@pytest.mark.parametrize(("append", "kept"), [("1", True), ("0", False)])
def test_an_earlier_log_is_kept_or_not(fm: Fm, append: str, *, kept: bool) -> None:
    fm.log_file.write_text("earlier\n")
    fm.start(LOG_APPEND_TO_LOG=append)
    fm.says("fabric mode 1")
    assert ("earlier" in fm.log) is kept


@pytest.mark.parametrize("how", [["--restart"], ["-r"], []], ids=["long", "short", "configured"])
def test_a_restart_takes_up_its_state(fm: Fm, how: list[str]) -> None:
    program = fm.start()
    eventually(fm.state_file.exists)
    program.end(signal.SIGKILL)
    fm.start(*how, FABRIC_MODE_RESTART="0" if how else "1")
    nvfm = fm.nvfm()
    with pytest.raises(FabricNotReady):
        nvfm.list_partitions(timeout=T)
    nvfm.set_activated([3, 4], timeout=T)
    assert [p.id for p in nvfm.list_partitions(timeout=T).partitions if p.active] == [3, 4]
    fm.says("taking up 2 active partitions")


def test_a_restart_without_a_state_ends_it(fm: Fm) -> None:
    done = run(*fm.arguments("--restart"))
    assert done.returncode == 1
    assert "cannot be used for a restart" in done.stderr
    entry = fmlog.parse(fm.log[-1])
    assert entry is not None
    assert (entry.level, "cannot be used for a restart" in entry.text) == ("CRITICAL", True)


def test_a_restart_that_is_not_told_in_time_ends_it(fm: Fm, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, so that nobody waits for a minute."""
    from fmctl.core.errors import FmctlError
    from fmctl.sim import fabric, nvfabricmanager

    program = fm.start()
    eventually(fm.state_file.exists)
    program.end(signal.SIGKILL)
    monkeypatch.setattr(fabric, "RESTART_WINDOW", 0.2)
    monkeypatch.setattr(fmserver, "RESTART_WINDOW", 0.2)
    fm.arguments()
    with pytest.raises(FmctlError, match="not told which partitions are active"):
        nvfabricmanager.run(Start(platforms.load("hgx-h100-8"), fm.config, restart=True), [])
    assert "CRITICAL" in fm.log[-1]


@pytest.mark.parametrize("guid", ["", "0x0", "none"])
def test_a_board_with_nvlink_5_needs_a_port(fm: Fm, guid: str) -> None:
    done = run(*fm.arguments(*(["-g", guid] if guid else []), board="hgx-b200-8"))
    assert (done.returncode, "is no GUID of a management port" in done.stderr) == (1, True)
    assert "CRITICAL" in fm.log[-1]


@pytest.mark.parametrize("arguments", [["-g", "0x946dae0300000001"], ["--no-port"]])
def test_a_board_with_nvlink_5_starts_with_one(fm: Fm, arguments: list[str]) -> None:
    fm.start(*arguments, board="hgx-b200-8")
    assert fm.nvfm().list_partitions(timeout=T).find(1) is not None


def test_in_the_background_it_serves_once_its_command_has_ended(fm: Fm) -> None:
    done = run(*fm.arguments(DAEMONIZE="1"))
    assert (done.returncode, done.stdout) == (0, "")
    try:
        assert fm.nvfm().list_partitions(timeout=T)
    finally:
        for pid in _serving(fm.config):
            os.kill(pid, signal.SIGTERM)
        eventually(lambda: not _serving(fm.config))


def test_a_start_in_the_background_that_fails_says_so(fm: Fm) -> None:
    done = run(*fm.arguments("--restart", DAEMONIZE="1"))
    assert (done.returncode, "it ended with status 1" in done.stderr) == (1, True)


def _serving(config: Path) -> list[int]:
    found = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(config).encode() in command.read_bytes().split(b"\0"):
                found.append(int(command.parent.name))
    return found


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"FM_CMD_UNIX_SOCKET_PATH": "fm.sock"}, "needs an absolute path"),
        ({"FM_CMD_UNIX_SOCKET_PATH": "", "FM_CMD_PORT_NUMBER": "0"}, "HOST:PORT is wanted"),
        ({"LOG_FILE_NAME": "/proc/nowhere/fm.log"}, "cannot be written"),
    ],
)
def test_a_wrong_configuration_is_told(fm: Fm, changed: dict[str, str], reason: str) -> None:
    done = run(*fm.arguments(**changed))
    assert (done.returncode, reason in done.stderr) == (1, True), done.stderr


def test_a_missing_configuration_is_told(tmp_path: Path) -> None:
    done = run("sim", "nv-fabricmanager", "--platform", "hgx-h100-8", "-c", str(tmp_path / "none"))
    assert (done.returncode, "No such file" in done.stderr) == (1, True)
