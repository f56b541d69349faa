# SPDX-License-Identifier: Apache-2.0
"""`fmctl daemon --simulate`: the main job, and a process tree that leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from fmctl import platforms
from fmctl.rpc.fmctl.v1 import fabric_controller_pb2 as messages
from fmctl.rpc.fmctl.v1.fabric_controller_pb2_grpc import FabricControllerServiceStub
from tests.cli.test_render import H100_TABLE
from tests.integration.conftest import StartDaemon
from tests.support import children, eventually, run

ROOT = Path(__file__).parents[2]


def child(pid: int, word: str) -> int:
    """The process below `pid` whose command line has that word."""

    def find() -> int:
        for candidate in children(pid):
            try:
                if word.encode() in Path(f"/proc/{candidate}/cmdline").read_bytes().split(b"\0"):
                    return candidate
            except OSError:
                continue
        return 0

    return eventually(find)


def test_the_main_job(start_daemon: StartDaemon) -> None:
    fmctl = start_daemon()
    assert fmctl.done("activate", "7") == "partition 7 is now active: GPUs 1\n"
    assert fmctl.done("list") == H100_TABLE
    assert fmctl.done("activate", "7") == "partition 7 is already active: GPUs 1\n"
    assert fmctl.done("activate", "--gpu-ids", "8,6", "-o", "name") == "partition/6\n"
    assert fmctl.active() == [6, 7]
    assert fmctl.done("deactivate", "7") == "partition 7 is now inactive: GPUs 1\n"
    assert fmctl.done("deactivate", "7") == "partition 7 is already inactive: GPUs 1\n"
    assert fmctl.active() == [6]


def test_each_refusal_has_its_exit_code_and_its_message(start_daemon: StartDaemon) -> None:
    fmctl = start_daemon()
    fmctl.done("activate", "3", "--owner", "tenant-a")
    refusals = {
        ("activate", "1"): (4, "shares GPUs with active partitions"),
        ("activate", "3", "--owner", "tenant-b"): (4, "it is active for owner 'tenant-a'"),
        ("deactivate", "3", "--owner", "tenant-b"): (4, "it is active for owner 'tenant-a'"),
        ("activate", "99"): (3, "there is no partition 99"),
        ("deactivate", "4294967295"): (3, "there is no partition 4294967295"),
        ("activate", "--gpu-ids", "1,2"): (3, "no partition has exactly the GPUs 1,2"),
        ("activate", "--gpu-ids", "1,3,5"): (3, "this board has no partition of 3 GPUs"),
        ("activate", "4", "--owner", "system:layout"): (2, "fmctl's own"),
    }
    for arguments, (code, says) in refusals.items():
        done = fmctl(*arguments)
        assert (done.returncode, done.stdout) == (code, ""), arguments
        assert says in done.stderr
        assert "  do:  " in done.stderr
    assert fmctl.active() == [3]


@pytest.mark.parametrize("board", platforms.names())
def test_every_board_lists_its_table(start_daemon: StartDaemon, board: str) -> None:
    fmctl = start_daemon(board=board)
    listed = json.loads(fmctl.done("list", "-o", "json"))
    assert [(p["id"], p["gpus"]) for p in listed["partitions"]] == [
        (row.id, list(row.gpu_ids)) for row in platforms.load(board).partitions
    ]
    assert fmctl.status()["platform"] == board


def test_every_answer_and_every_refusal_says_that_it_is_simulated(start_daemon: StartDaemon) -> None:
    fmctl = start_daemon()
    with grpc.insecure_channel(fmctl.address) as channel:
        stub = FabricControllerServiceStub(channel)
        answers: list[Any] = [
            stub.ListPartitions(messages.ListPartitionsRequest()),
            stub.GetPartition(messages.GetPartitionRequest(partition_id=0)),
            stub.ActivatePartition(messages.ActivatePartitionRequest(partition_id=0, owner="a")),
            stub.DeactivatePartition(messages.DeactivatePartitionRequest(partition_id=0, owner="a")),
            stub.GetStatus(messages.GetStatusRequest()),
        ]
        assert [answer.simulated for answer in answers] == [True] * len(answers)
        with pytest.raises(grpc.RpcError) as refusal:
            stub.GetPartition(messages.GetPartitionRequest(partition_id=99))
    status = rpc_status.from_call(refusal.value)  # type: ignore[arg-type]
    info = error_details_pb2.ErrorInfo()
    assert status and status.details[0].Unpack(info)
    assert (info.reason, info.metadata["simulated"], info.metadata["partition_id"]) == (
        "NO_SUCH_PARTITION",
        "true",
        "99",
    )


def test_fmpm_s_format_is_fmpm_s_output_byte_for_byte(start_daemon: StartDaemon) -> None:
    golden = ROOT / "tests" / "golden" / "fmpm-list-hgx-h100-8.json"
    assert start_daemon().done("list", "-o", "fmpm") == golden.read_text()


def test_it_says_so_before_its_board_answers(start_daemon: StartDaemon) -> None:
    fmctl = start_daemon(ready=False)
    eventually(lambda: fmctl("status").returncode == 0)
    assert fmctl.status()["simulated"] is True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_a_signal_stops_the_whole_tree(start_daemon: StartDaemon, folder: Path, number: int) -> None:
    fmctl = start_daemon()
    below = children(fmctl.program.process.pid)
    assert len(below) >= 3
    assert fmctl.program.end(number) == 0
    eventually(lambda: not [pid for pid in below if Path(f"/proc/{pid}").exists()], within=2)
    assert not (folder / "fmctld.sock").exists()
    assert "Traceback" not in fmctl.program.log


def test_ctrl_c_while_it_starts_stops_it_too(start_daemon: StartDaemon) -> None:
    fmctl = start_daemon(ready=False)
    fmctl.program.says("serving at")
    assert fmctl.program.end(signal.SIGINT) == 0


def test_kill_9_leaves_no_process_and_the_next_daemon_starts(start_daemon: StartDaemon) -> None:
    fmctl = start_daemon()
    fmctl.done("activate", "3")
    below = children(fmctl.program.process.pid)
    fmctl.program.end(signal.SIGKILL)
    eventually(lambda: not [pid for pid in below if Path(f"/proc/{pid}").exists()])
    again = start_daemon()
    eventually(lambda: again.active() == [3])
    assert again("activate", "3", "--owner", "somebody-else").returncode == 4


def test_a_killed_agent_is_replaced(start_daemon: StartDaemon) -> None:
    fmctl = start_daemon()
    fmctl.done("activate", "3")
    os.kill(child(fmctl.program.process.pid, "agent"), signal.SIGKILL)
    eventually(lambda: fmctl("list").returncode == 0)
    assert fmctl.active() == [3]
    assert "already active" in fmctl.done("activate", "3")


@pytest.mark.parametrize("board", ["hgx-h100-8", "hgx-b200-8"])
def test_a_killed_fabric_manager_takes_up_what_was_active(start_daemon: StartDaemon, board: str) -> None:
    fmctl = start_daemon(board=board)
    eventually(lambda: fmctl("activate", "4").returncode == 0)  # on NVLink 5 free GPUs are cleaned first
    killed = child(fmctl.program.process.pid, "nv-fabricmanager")
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: child(fmctl.program.process.pid, "nv-fabricmanager") != killed)
    fmctl.done("wait")
    assert fmctl.active() == [4]
    assert "already active" in fmctl.done("activate", "4")


def test_fabric_manager_goes_on_without_its_agent(start_daemon: StartDaemon) -> None:
    fmctl = start_daemon()
    started = child(fmctl.program.process.pid, "nv-fabricmanager")
    os.kill(child(fmctl.program.process.pid, "agent"), signal.SIGKILL)
    eventually(lambda: fmctl("activate", "3").returncode == 0)
    assert Path(f"/proc/{started}").exists()
    assert fmctl.active() == [3]


def test_a_board_with_nvlink_5_has_its_subnet_manager(start_daemon: StartDaemon) -> None:
    fmctl = start_daemon(board="hgx-b200-8")
    agent = child(fmctl.program.process.pid, "agent")
    for program in ("nvlsm", "nv-fabricmanager"):
        command = Path(f"/proc/{child(agent, program)}/cmdline").read_text().split("\0")
        assert command[command.index("-g") + 1] == "0x946dae0300000001"


def test_a_killed_worker_is_replaced(start_daemon: StartDaemon) -> None:
    fmctl = start_daemon()
    os.kill(child(fmctl.program.process.pid, "fmctl.guest.worker"), signal.SIGKILL)
    assert fmctl.active() == []


def test_two_daemons_at_one_address_are_one_too_many(start_daemon: StartDaemon, folder: Path) -> None:
    fmctl = start_daemon()
    second = run("daemon", "--simulate", "hgx-h100-8", "--listen", fmctl.address, "--state-dir", str(folder / "other"))
    assert second.returncode == 1
    assert "is in use" in second.stderr
    assert fmctl.active() == []


def test_only_the_owner_and_the_group_may_call(start_daemon: StartDaemon, folder: Path) -> None:
    fmctl = start_daemon(address=f"unix:{folder}/new/fmctld.sock")
    assert fmctl.active() == []
    assert (folder / "new").stat().st_mode & 0o777 == 0o750
    assert (folder / "new" / "fmctld.sock").stat().st_mode & 0o777 == 0o660


def test_loopback_tcp_serves_with_a_warning(start_daemon: StartDaemon) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    fmctl = start_daemon("--insecure-tcp", address=f"127.0.0.1:{port}")
    assert fmctl.active() == []
    assert "has no authentication" in fmctl.program.log


def test_the_demo_runs_and_leaves_nothing() -> None:
    before = children(os.getpid())
    done = subprocess.run([str(ROOT / "tools" / "demo")], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0             Inactive  8     144      1,2,3,4,5,6,7,8\n" in done.stdout
    assert "3             Active    2     36       1,3\n" in done.stdout
    assert "shares GPUs with active partitions" in done.stdout
    assert "refused with exit status 4" in done.stdout
    for shown in (
        "gpu                0000:17:00.0  H100 SXM",
        "nothing found: this host can pass hgx-h100-8 on to VMs",
        "0000:04:00.0: bind to vfio-pci",
        "<hostdev mode='subsystem' type='pci' managed='no'>",
        "service VM ready, domain fmctl-service-vm",
        "service VM absent, domain fmctl-service-vm",
    ):
        assert shown in done.stdout
    assert done.stdout.endswith("Every partition is inactive again.\n")
    assert children(os.getpid()) == before
    assert sys.executable.startswith(str(ROOT / ".venv")), "the demo uses .venv, and so must this test"
