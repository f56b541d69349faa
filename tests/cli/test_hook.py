# SPDX-License-Identifier: Apache-2.0
"""The hook as libvirt runs it: a process with a document on its standard input, and an exit status."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fmctl.cli.hook import MANAGED, HookCall, managed
from fmctl.core.address import Address
from fmctl.core.answers import HookLoad
from fmctl.core.asking import HostDevice
from fmctl.core.errors import FmctlError
from fmctl.core.pci import Bdf
from fmctl.core.request import Request
from tests.core.test_hook import VM, document, hostdev
from tests.rpc.leasing import TIMEOUT, Host

GPU, NIC, SWITCH = Bdf(0, 0x17, 0, 0), Bdf(0, 0x18, 0, 0), Bdf(0, 0x19, 0, 0)
PROMISE = 5.0
"""Seconds within which the hook must have decided."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host with a GPU, a network card, and a function of which the daemon said that it is the board's."""
    for bdf, vendor in ((GPU, "0x10de"), (NIC, "0x15b3"), (SWITCH, "0x1b36")):
        folder = tmp_path / "sys/bus/pci/devices" / str(bdf)
        folder.mkdir(parents=True)
        (folder / "vendor").write_text(f"{vendor}\n")
    (tmp_path / MANAGED).parent.mkdir(parents=True)
    (tmp_path / MANAGED).write_text(f"{SWITCH}\n")
    return tmp_path


def hook(
    address: str, xml: str | None, *arguments: str, operation: str = "prepare"
) -> subprocess.CompletedProcess[bytes]:
    """What the hook answers, within what is promised; without `xml` its standard input does not end."""
    command = [sys.executable, "-m", "fmctl", "hook", "qemu", *arguments, "--", "vm", operation, "begin", "-"]
    reading, writing = os.pipe()
    if xml is not None:
        os.write(writing, xml.encode())
        os.close(writing)
    began = time.monotonic()
    done = subprocess.run(
        command, stdin=reading, capture_output=True, check=False, env={**os.environ, "FMCTL_ADDRESS": address}
    )
    assert time.monotonic() - began < PROMISE
    os.close(reading)
    if xml is None:
        os.close(writing)
    assert done.stdout == b"", "libvirt would take it for another document"
    assert done.stderr.count(b"\n") <= 1, done.stderr
    return done


@pytest.mark.parametrize(
    ("devices", "operation", "status"),
    [
        ((), "prepare", 0),
        ((NIC,), "prepare", 0),
        ((GPU,), "prepare", 1),
        ((NIC, GPU), "start", 1),
        ((SWITCH,), "prepare", 1),
        ((GPU,), "restore", 1),
        ((GPU,), "reconnect", 0),
        ((GPU,), "release", 0),
    ],
)
def test_without_a_daemon_what_may_be_the_board_s_does_not_start(
    root: Path, devices: tuple[Bdf, ...], operation: str, status: int
) -> None:
    done = hook("unix:/nowhere", document(*map(hostdev, devices)), "--root", str(root), operation=operation)
    assert done.returncode == status, done.stderr
    if status:
        assert b"the domain vm is refused: fmctld at unix:/nowhere does not answer" in done.stderr


@pytest.mark.parametrize(("device", "status"), [(NIC, 0), (GPU, 1)])
def test_a_daemon_that_hangs_is_one_that_is_not_there(folder: Path, root: Path, device: Bdf, status: int) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{folder}/fmctld.sock")
        listening.listen()
        done = hook(f"unix:{folder}/fmctld.sock", document(hostdev(device)), "--root", str(root))
    assert done.returncode == status, done.stderr


def test_a_document_that_does_not_come_refuses_in_time() -> None:
    assert hook("unix:/nowhere", None).returncode == 1
    assert hook("unix:/nowhere", None, operation="stopped").returncode == 0


@pytest.mark.parametrize("xml", ["", "<domain>", "<!DOCTYPE d>" + document(), "\x00"])
def test_what_is_no_document_is_refused(xml: str) -> None:
    assert hook("unix:/nowhere", xml).returncode == 1


def leased(host: Host, *gpus: int) -> str:
    """The document of a VM with these GPUs, to which the first two are leased."""
    addresses = host.inventory().devices
    host.client.allocate(Request("a", "r", gpu_ids=(1, 3), vm_uuid=VM), timeout=TIMEOUT)
    found = sorted(device.function.bdf for device in addresses if device.role.value == "gpu")
    return document(*(hostdev(found[gpu - 1]) for gpu in gpus))


def test_the_daemon_decides(host: Host) -> None:
    done = hook(str(host.address), leased(host, 1, 3), "--allow-simulated")
    assert (done.returncode, done.stderr) == (0, b"")
    assert host.hook.load is HookLoad.LOADED, "this process called it"
    done = hook(str(host.address), leased(host, 1), "--allow-simulated")
    assert done.returncode == 1
    assert done.stderr.startswith(b"fmctl: the domain vm is refused: no active lease holds exactly the GPUs 1 ")


def test_a_simulated_daemon_does_not_decide(host: Host, root: Path) -> None:
    done = hook(str(host.address), document(hostdev(GPU)), "--root", str(root))
    assert (done.returncode, b"simulated host" in done.stderr) == (1, True)
    assert hook(str(host.address), document(hostdev(NIC)), "--root", str(root)).returncode == 0


def call(host: Host, xml: str, *, within: float) -> str:
    """What a call of the hook comes to, with another limit."""
    return HookCall(
        "prepare", xml.encode, lambda devices: ["0000:17:00.0"], host.address, allow_simulated=True, within=within
    ).result()


def test_making_gpus_ready_has_a_limit_of_its_own(host: Host) -> None:
    xml = leased(host, 1, 3)
    assert call(host, xml, within=3.0) == ""
    host.readiness.prepared.clear()
    host.readiness.takes = 4.0
    assert call(host, xml, within=3.0) == ""
    host.readiness.prepared.clear()
    host.readiness.failure = FmctlError("the kernel refused it")
    assert "the kernel refused it" in call(host, xml, within=3.0)


def test_a_defect_refuses_what_may_be_the_board_s() -> None:
    def broken(devices: object) -> list[str]:
        return ["0000:17:00.0"]

    call = HookCall("prepare", document().encode, broken, Address.parse("vsock:3:4"))
    assert "0000:17:00.0" in call.result()


def test_a_function_that_is_gone_is_nobody_s(root: Path) -> None:
    gone = Bdf(0, 0x99, 0, 0)
    assert managed([HostDevice(gone), HostDevice(NIC)], root) == []
    assert managed([HostDevice(GPU), HostDevice(SWITCH)], root) == [str(GPU), str(SWITCH)]
    assert managed([HostDevice(SWITCH)], root / "nowhere") == []
