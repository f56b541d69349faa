# SPDX-License-Identifier: Apache-2.0
"""`fmctl sim` as processes: how a server starts, ends and dies."""

from __future__ import annotations

import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.sim import abi
from tests.sim.abi import Library
from tests.sim.compiler import compile_c
from tests.sim.servers import fabric_manager, started, tcp_listener
from tests.support import run

H100 = ("--platform", "hgx-h100-8")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_cleanly_and_takes_its_socket_with_it(folder: Path, number: int) -> None:
    address = f"unix:{folder / 'fm.sock'}"
    with started(folder, *H100, "--listen", address) as server:
        server.says(f"simulated Fabric Manager of hgx-h100-8 listens at {address}\n")
        assert server.end(number) == 0
    assert not (folder / "fm.sock").exists()
    assert server.log.count("\n") == 1


def test_it_ends_cleanly_with_clients_connected(folder: Path, fm: Library) -> None:
    address = f"unix:{folder / 'fm.sock'}"
    with started(folder, *H100, "--listen", address, "--fault", "hang@2") as server:
        server.says("listens")
        handle = fm.opened(address)
        assert (fm.list(handle), fm.list(handle)) == (0, -2)
        assert server.end() == 0
    assert server.log.count("\n") == 1


def test_it_listens_on_tcp(folder: Path, fm: Library) -> None:
    with tcp_listener() as probe:
        port = probe.getsockname()[1]
    with started(folder, *H100, "--listen", f"127.0.0.1:{port}") as server:
        server.says("listens")
        assert fm.list(fm.opened(f"127.0.0.1:{port}")) == 0


def test_a_board_can_be_a_file(folder: Path, fm: Library) -> None:
    board = folder / "board.yaml"
    text = run("platform", "show", "hgx-b200-8").stdout
    board.write_text(text.replace("name: hgx-b200-8", "name: my-board"))
    with fabric_manager(folder, platform=str(board)) as address:
        assert fm.deactivate(fm.opened(address), 1) == -18
    assert "of my-board listens" in (folder / "fm.log").read_text()


def test_it_never_takes_a_living_server_s_address(folder: Path, fm: Library) -> None:
    with fabric_manager(folder) as address:
        second = run("sim", "fm", *H100, "--listen", address)
        assert second.returncode == 1
        assert f"cannot listen at {address}\n  why: something else is there already\n" in second.stderr
        assert fm.list(fm.opened(address)) == 0


def test_it_never_takes_a_port_in_use(folder: Path) -> None:
    with tcp_listener() as listener:
        listener.listen()
        second = run("sim", "fm", *H100, "--listen", f"127.0.0.1:{listener.getsockname()[1]}")
    assert second.returncode == 1
    assert "something else is there already" in second.stderr


def test_it_replaces_what_a_dead_server_left(folder: Path, fm: Library) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(folder / "fm.sock"))
    with fabric_manager(folder) as address:
        assert fm.list(fm.opened(address)) == 0


def test_it_never_replaces_a_file_that_is_no_socket(folder: Path) -> None:
    (folder / "fm.sock").write_text("precious")
    refused = run("sim", "fm", *H100, "--listen", f"unix:{folder / 'fm.sock'}")
    assert refused.returncode == 1
    assert (folder / "fm.sock").read_text() == "precious"


def test_it_leaves_the_socket_of_its_successor(folder: Path) -> None:
    path = folder / "fm.sock"
    with started(folder, *H100, "--listen", f"unix:{path}") as server:
        server.says("listens")
        path.unlink()
        with socket.socket(socket.AF_UNIX) as successor:
            successor.bind(str(path))
            assert server.end() == 0
    assert path.is_socket()


@pytest.mark.parametrize(
    ("address", "why"),
    [("unix:/nowhere/fm.sock", "No such file"), ("host.invalid:1", ""), ("vsock:77777:1", "")],
)
def test_an_address_that_cannot_be_is_told(address: str, why: str) -> None:
    refused = run("sim", "fm", *H100, "--listen", address)
    assert refused.returncode == 1
    assert f"cannot listen at {address}" in refused.stderr
    assert why in refused.stderr


@pytest.mark.parametrize(("fault", "active"), [("die-before@activate:1", 0), ("die-after@activate:1", 1)])
def test_death_is_that_of_kill_9_before_or_after_the_change(folder: Path, fm: Library, fault: str, active: int) -> None:
    address = f"unix:{folder / 'fm.sock'}"
    with started(folder, *H100, "--listen", address, "--fault", fault) as server:
        server.says("listens")
        assert fm.activate(fm.opened(address), 1) == -9
        assert server.process.wait(10) == -signal.SIGKILL
    assert (folder / "fm.sock").is_socket()


def test_a_change_before_a_close_fault_is_not_made(folder: Path, fm: Library) -> None:
    with fabric_manager(folder, "--fault", "close@activate:1") as address:
        assert fm.activate(fm.opened(address), 1) == -9
        listed = abi.List(version=abi.LIST)
        assert fm.list(fm.opened(address), listed) == 0
        assert [row.active for row in listed.rows[:15]] == [0] * 15


def test_a_restart_with_nothing_to_start_from_ends_with_status_1(folder: Path) -> None:
    arguments = ["sim", "fm", *H100, "--listen", f"unix:{folder / 'fm.sock'}", "--restart"]
    refused = run(*arguments, "--state-file", str(folder / "state"))
    assert refused.returncode == 1
    assert "cannot be used for a restart" in refused.stderr
    assert "No such file" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--platform", "hgx-h100-9"], "did you mean hgx-"),
        ([*H100, "--fault", "hang@0"], "calls count from 1"),
        ([*H100, "--restart"], "needs a state file"),
        ([*H100, "--missing-gpu", "9"], "GPU 9 cannot be missing"),
    ],
)
def test_wrong_usage_is_told(folder: Path, arguments: list[str], text: str) -> None:
    refused = run("sim", "fm", "--listen", f"unix:{folder / 'fm.sock'}", *arguments)
    assert refused.returncode == 2
    assert text in refused.stderr


def test_a_wrong_address_is_a_usage_error() -> None:
    refused = run("sim", "fm", *H100, "--listen", "here")
    assert refused.returncode == 2
    assert "unix:PATH or HOST:PORT is wanted" in refused.stderr


def test_the_folder_of_the_library_is_all_that_lib_prints(tmp_path: Path) -> None:
    done = run("sim", "lib", env={"XDG_CACHE_HOME": str(tmp_path)})
    (folder,) = (tmp_path / "fmctl").iterdir()
    assert (done.stdout, done.stderr) == (f"{folder}\n", "")


def test_a_c_program_links_against_it(folder: Path, library_path: Path) -> None:
    program, lib = folder / "client", library_path.parent
    compile_c(program, Path(__file__).parent / "client.c", f"-L{lib}", "-lnvfm")
    with fabric_manager(folder) as address:
        argv = [str(program), address.removeprefix("unix:")]
        done = subprocess.run(argv, env={"LD_LIBRARY_PATH": str(lib)}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "15 partitions, partition 1 active\n")
