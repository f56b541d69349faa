# SPDX-License-Identifier: Apache-2.0
"""The port that leads to the NVSwitches, found in a pretended sysfs, and NVLSM at it, played by a shell."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmctl import platforms, templates
from fmctl.core.address import Address
from fmctl.core.errors import FmctlError
from fmctl.core.fmconfig import ConfigValues
from fmctl.guest.fmservice import Configuration, FmService
from fmctl.guest.nvlink5 import Ports, SubnetManager
from fmctl.sim import guestfiles
from tests.support import eventually

GUID = "0x946dae0300000001"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def root(tmp_path: Path) -> Path:
    guestfiles.make(tmp_path / "root", platforms.load("hgx-b200-8"))
    return tmp_path / "root"


@pytest.fixture
def infiniband(root: Path) -> Path:
    return root / "sys" / "class" / "infiniband"


def ports(root: Path, clock: Clock | None = None) -> Ports:
    clock = clock or Clock()
    return Ports(root, clock=clock, pause=clock.pause)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def add_port(device: Path, number: int, mask: str, guid: str) -> None:
    write(device / "ports" / str(number) / "cap_mask", mask + "\n")
    write(device / "ports" / str(number) / "gids" / "0", f"fe80:0000:0000:0000:{guid}\n")


def add_function(root: Path, vpd: str = "SW_MNG", vendor: str = "0x15b3", kind: str = "0x020700") -> None:
    function = root / "sys" / "bus" / "pci" / "devices" / "0000:05:00.0"
    for name, text in (("vendor", vendor), ("class", kind), ("vpd", vpd)):
        write(function / name, text + "\n")


def test_a_guest_with_switches_on_pci_needs_no_port(tmp_path: Path) -> None:
    guestfiles.make(tmp_path, platforms.load("hgx-h100-8"))
    assert ports(tmp_path).find() is None


def test_the_port_of_the_device_that_is_marked_is_taken(root: Path, infiniband: Path) -> None:
    write(infiniband / "a_card" / "device" / "vpd", "an ordinary network card")
    add_port(infiniband / "a_card", 1, "0x2651e848", "1111:1111:1111:1111")
    assert ports(root).find() == GUID


def test_a_device_whose_vital_product_data_cannot_be_read_is_passed_over(root: Path, infiniband: Path) -> None:
    (infiniband / "a_card" / "device" / "vpd").mkdir(parents=True)
    assert ports(root).find() == GUID


@pytest.mark.parametrize("mask", ["0x2651ec48", "0x400", "", "none"])
def test_a_port_where_a_subnet_manager_is_forbidden_is_not(root: Path, infiniband: Path, mask: str) -> None:
    device = infiniband / "mlx5_0"
    shutil.rmtree(device / "ports")
    add_port(device, 1, mask, "1111:1111:1111:1111")
    add_port(device, 2, "0x2651e848", "946d:ae03:0000:0002")
    assert ports(root).find() == "0x946dae0300000002"


def test_ports_are_taken_by_their_number(root: Path, infiniband: Path) -> None:
    device = infiniband / "mlx5_0"
    shutil.rmtree(device / "ports")
    add_port(device, 10, "0x2651e848", "1111:1111:1111:1111")
    add_port(device, 2, "0x2651e848", "946d:ae03:0000:0002")
    assert ports(root).find() == "0x946dae0300000002"


def test_without_a_usable_port_it_says_which_devices_were_looked_at(root: Path, infiniband: Path) -> None:
    add_port(infiniband / "mlx5_0", 1, "0x2651e848", "0000:0000:0000:0000")
    clock = Clock()
    with pytest.raises(FmctlError) as refusal:
        ports(root, clock).find()
    assert "no port of mlx5_0 both has an address and lets a subnet manager run" in refusal.value.why
    assert 29 <= clock.now <= 32


def test_without_ib_umad_it_says_so(root: Path) -> None:
    shutil.rmtree(root / "sys" / "module" / "ib_umad")
    with pytest.raises(FmctlError) as refusal:
        ports(root).find()
    assert refusal.value.what == "Fabric Manager is not started"
    assert "ib_umad, through which it reaches the NVSwitches, is not loaded" in refusal.value.why
    (root / "sys" / "class" / "infiniband_mad").mkdir()
    assert ports(root).find() == GUID


def test_a_function_without_a_device_is_waited_for(root: Path, infiniband: Path, tmp_path: Path) -> None:
    add_function(root)
    infiniband.rename(tmp_path / "later")
    clock = Clock()

    def pause(seconds: float) -> None:
        clock.pause(seconds)
        if clock.now >= 5 and not infiniband.exists():
            (tmp_path / "later").rename(infiniband)

    assert Ports(root, clock=clock, pause=pause).find() == GUID
    assert 5 <= clock.now < 7


def test_a_function_that_gets_no_device_is_told(root: Path, infiniband: Path) -> None:
    add_function(root)
    shutil.rmtree(infiniband)
    with pytest.raises(FmctlError) as refusal:
        ports(root).find()
    assert "have no InfiniBand device after 30 s" in refusal.value.why


@pytest.mark.parametrize("other", [{"vpd": "none"}, {"vendor": "0x10de"}, {"kind": "0x020000"}])
def test_another_function_is_not_waited_for(root: Path, infiniband: Path, other: dict[str, str]) -> None:
    add_function(root, **other)
    shutil.rmtree(infiniband)
    clock = Clock()
    assert ports(root, clock).find() is None
    assert clock.now == 0


class Nvlsm:
    """Notes each start, and runs until it is ended."""

    def __init__(self, folder: Path) -> None:
        self.notes = folder / "nvlsm"
        self.command = ["/bin/sh", "-c", f'echo "$$ $*" >> {self.notes}; exec sleep 1000', "nvlsm", "-F", "x.conf"]
        self.manager = SubnetManager(self.command, folder / "nvlsm.json")

    @property
    def started(self) -> list[str]:
        return self.notes.read_text().splitlines() if self.notes.exists() else []

    @property
    def pid(self) -> int:
        return int(self.started[-1].split()[0])


@pytest.fixture
def nvlsm(tmp_path: Path) -> Iterator[Nvlsm]:
    nvlsm = Nvlsm(tmp_path)
    yield nvlsm
    for line in nvlsm.started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(line.split()[0]), signal.SIGKILL)
    nvlsm.manager._process.stop()


def test_nvlsm_runs_at_the_port_in_the_foreground(nvlsm: Nvlsm) -> None:
    assert nvlsm.manager.state() == ""
    nvlsm.manager.start(GUID, restart=False)
    (line,) = eventually(lambda: nvlsm.started)
    assert line.split()[1:] == ["-F", "x.conf", "-g", GUID]
    assert nvlsm.manager.state() == "running"


def test_a_restart_leaves_it_alone_and_a_fresh_start_replaces_it(nvlsm: Nvlsm) -> None:
    nvlsm.manager.start(GUID, restart=False)
    eventually(lambda: nvlsm.started)
    nvlsm.manager.start(GUID, restart=True)
    assert len(nvlsm.started) == 1
    nvlsm.manager.start(GUID, restart=False)
    eventually(lambda: len(nvlsm.started) == 2)


def test_one_that_died_is_told_and_started_with_the_next_start(nvlsm: Nvlsm, caplog: pytest.LogCaptureFixture) -> None:
    nvlsm.manager.start(GUID, restart=False)
    eventually(lambda: nvlsm.started)
    os.kill(nvlsm.pid, signal.SIGKILL)
    eventually(lambda: nvlsm.manager.state() == "ended; it is started again with Fabric Manager")
    eventually(lambda: "NVLSM, process" in caplog.text)
    nvlsm.manager.start(GUID, restart=True)
    eventually(lambda: len(nvlsm.started) == 2)
    assert nvlsm.manager.state() == "running"


def test_hardware_that_needs_one_and_no_command_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FmctlError) as refusal:
        SubnetManager((), tmp_path / "nvlsm.json").start(GUID, restart=False)
    assert "nvlsm_command" in refusal.value.fix


def test_fabric_manager_and_nvlsm_get_the_same_port(root: Path, nvlsm: Nvlsm, tmp_path: Path) -> None:
    notes = tmp_path / "fm"
    script = f'case "$*" in *-v*) exit;; esac; cat {nvlsm.notes} > {tmp_path}/before; echo "$$ $*" >> {notes}'
    script += "; exec sleep 1000"
    values = ConfigValues(Address.parse("unix:/run/fm.sock"), "/run/fm.state", "/var/log/fm.log", 16)
    configuration = Configuration(tmp_path / "fm.cfg", tmp_path / "none", templates.fabric_manager_config, values)
    command = ["/bin/sh", "-c", script, "fm"]
    service = FmService(command, configuration, tmp_path / "run", nvlsm_command=nvlsm.command, root=root)
    try:
        service.start(restart=False)
        (line,) = eventually(lambda: notes.read_text().splitlines() if notes.exists() else [])
        assert line.split()[1:] == ["-c", str(tmp_path / "fm.cfg"), "-g", GUID]
        (started,) = eventually(lambda: nvlsm.started)
        assert started.endswith(f"-g {GUID}")
        assert service.facts().nvlsm == "running"
    finally:
        service._process.stop()
        service._nvlsm._process.stop()
