# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest

from fmctl import platforms
from fmctl.core.pci import Bdf
from fmctl.core.vfio import PARKED, VFIO_PCI
from fmctl.sim.sysfs import SimulatedBus
from tests import sysfs_tree
from tests.support import run

BOARD = "hgx-h100-8"
GPU = Bdf.parse("0000:17:00.0")
GPU_GROUP = 11
SWITCHES = [Bdf.parse(f"0000:0{number}:00.0") for number in (4, 5, 6, 7)]
MEMORY_CONTROLLER = Bdf.parse("0000:02:00.0")


@pytest.fixture
def host() -> SimulatedBus:
    return SimulatedBus(platforms.load(BOARD))


def lay_out(host: SimulatedBus, root: Path, *, parked: tuple[Bdf, ...] = ()) -> None:
    """The host as files, on which no kernel acts."""
    sysfs_tree.write(host, root / "sys")
    for bdf in parked:
        (sysfs_tree.folder(root / "sys", bdf) / "driver_override").write_text(f"{PARKED}\n")
    for folder in ("dev/vfio/devices", "proc", "run"):
        (root / folder).mkdir(parents=True)


def hold(host: SimulatedBus, root: Path, bdf: Bdf) -> None:
    """Let a VM have a function open, by its own node, since the files of a group can be opened by many."""
    (function,) = (f for f in host.functions() if f.bdf == bdf)
    device = root / "sys" / "kernel" / "iommu_groups" / str(function.iommu_group) / "devices" / str(bdf)
    (device / "vfio-dev" / "vfio0").mkdir(parents=True)
    files = root / "proc" / "4242" / "fd"
    files.mkdir(parents=True)
    (files / "9").symlink_to(root / "dev" / "vfio" / "devices" / "vfio0")
    (files.parent / "comm").write_text("qemu-system-x86\n")


def overrides(root: Path) -> set[str]:
    return {file.read_text() for file in (root / "sys" / "bus" / "pci" / "devices").glob("*/driver_override")}


def test_status_shows_each_function_and_fits_a_terminal(host: SimulatedBus, tmp_path: Path) -> None:
    host.change(GPU, driver=VFIO_PCI)
    host.change(SWITCHES[1], driver="nouveau")
    host.change(SWITCHES[2], iommu_group=None)
    lay_out(host, tmp_path, parked=(SWITCHES[0],))
    hold(host, tmp_path, GPU)
    done = run("vfio", "status", "--root", str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["ROLE", "ADDRESS", "DRIVER", "GROUP", "HELD", "BY"]
    rows = {cells[1]: cells for cells in (line.split() for line in lines[2:])}
    assert rows[str(GPU)] == ["gpu", str(GPU), "vfio-pci", "11", "qemu-system-x86[4242]"]
    assert rows[str(SWITCHES[0])][2:] == ["parked", "27", "-"]
    assert rows[str(SWITCHES[1])][2:] == ["nouveau", "29", "-"]
    assert rows[str(SWITCHES[2])][2:] == ["-", "-", "-"]
    assert rows[str(MEMORY_CONTROLLER)][0] == "memory-controller"
    assert max(map(len, lines)) <= 80


def test_status_for_programs(host: SimulatedBus, tmp_path: Path) -> None:
    host.change(GPU, driver=VFIO_PCI)
    lay_out(host, tmp_path, parked=(SWITCHES[0],))
    hold(host, tmp_path, GPU)
    document = json.loads(run("vfio", "status", "--root", str(tmp_path), "-o", "json").stdout)
    assert document["platform"] == BOARD
    shown = {function["address"]: function for function in document["functions"]}
    assert shown[str(GPU)] == {
        "role": "gpu",
        "address": str(GPU),
        "binding": "bound",
        "driver": "vfio-pci",
        "iommu_group": GPU_GROUP,
        "held": True,
        "holders": [{"pid": 4242, "command": "qemu-system-x86"}],
    }
    parked = shown[str(SWITCHES[0])]
    assert (parked["binding"], parked["driver"], parked["held"], parked["holders"]) == ("parked", None, False, [])
    names = run("vfio", "status", "--root", str(tmp_path), "-o", "name").stdout.splitlines()
    assert names[0] == f"gpu/{GPU}"
    assert len(names) == len(document["functions"]) == 13
    without = run("vfio", "status", "--root", str(tmp_path), "--no-headers").stdout.splitlines()
    assert len(without) == 13


def test_bind_gives_the_service_vm_its_functions_and_parks_the_gpus() -> None:
    done = run("vfio", "bind", "--simulate", "hgx-b200-8")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    released = [
        f"{bdf}: {what}" for bdf in SWITCHES for what in ("set driver_override to vfio-pci", "unbind from mlx5_core")
    ]
    bound = [f"{bdf}: bind to vfio-pci" for bdf in SWITCHES]
    assert lines[:12] == released + bound
    assert lines[12] == f"{GPU}: set driver_override to fmctl-parked"
    assert len(lines) == 20


def test_bind_includes_memory_controllers() -> None:
    assert f"{MEMORY_CONTROLLER}: bind to vfio-pci\n" in run("vfio", "bind", "--simulate", BOARD).stdout


def test_bind_of_named_gpus_touches_nothing_else() -> None:
    other = Bdf.parse("0000:34:00.0")
    done = run("vfio", "bind", "--simulate", BOARD, "--gpus", f"{other}, {GPU}")
    assert done.stdout.splitlines() == [
        f"{other}: set driver_override to vfio-pci",
        f"{GPU}: set driver_override to vfio-pci",
        f"{other}: bind to vfio-pci",
        f"{GPU}: bind to vfio-pci",
    ]


def test_unbind_parks_everything() -> None:
    lines = run("vfio", "unbind", "--simulate", "hgx-b200-8").stdout.splitlines()
    assert len({line.split(": ")[0] for line in lines}) == 12
    assert f"{SWITCHES[0]}: unbind from mlx5_core" in lines
    assert not [line for line in lines if "vfio-pci" in line]
    only = run("vfio", "unbind", "--simulate", BOARD, "--gpus", str(GPU)).stdout
    assert only == f"{GPU}: set driver_override to fmctl-parked\n"


@pytest.mark.parametrize("command", ["bind", "unbind"])
def test_a_dry_run_prints_the_same_and_writes_nothing(host: SimulatedBus, tmp_path: Path, command: str) -> None:
    lay_out(host, tmp_path)
    done = run("vfio", command, "--root", str(tmp_path), "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == run("vfio", command, "--simulate", BOARD).stdout
    assert overrides(tmp_path) == {"(null)\n"}
    assert not (tmp_path / "run" / "fmctl").exists()


def test_what_is_as_wanted_needs_nothing(host: SimulatedBus, tmp_path: Path) -> None:
    gpus = tuple(f.bdf for f in host.functions() if f.id.device == 0x2330)
    for bdf in (*SWITCHES, MEMORY_CONTROLLER):
        host.change(bdf, driver=VFIO_PCI)
    lay_out(host, tmp_path, parked=gpus)
    done = run("vfio", "bind", "--root", str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "nothing to do\n", "")


def test_what_a_vm_holds_is_named_and_left_as_it_is(host: SimulatedBus, tmp_path: Path) -> None:
    host.change(GPU, driver=VFIO_PCI)
    lay_out(host, tmp_path)
    hold(host, tmp_path, GPU)
    holder = f"gpu {GPU} is held by qemu-system-x86 (process 4242)"
    unbound = run("vfio", "unbind", "--root", str(tmp_path), "--dry-run")
    assert unbound.returncode == 4
    assert unbound.stderr == (
        f"fmctl: what a VM uses is left as it is\n  why: {holder}\n  do:  stop that VM, and run the same again\n"
    )
    assert str(GPU) not in unbound.stdout and str(SWITCHES[0]) in unbound.stdout
    bound = run("vfio", "bind", "--root", str(tmp_path), "--dry-run")
    assert (bound.returncode, bound.stderr) == (0, f"fmctl: {holder}, and stays as it is\n")
    assert str(GPU) not in bound.stdout


def test_a_foreign_device_in_a_group_is_a_refusal(host: SimulatedBus, tmp_path: Path) -> None:
    foreign = host.intrude(27)
    lay_out(host, tmp_path)
    done = run("vfio", "bind", "--root", str(tmp_path))
    assert (done.returncode, done.stdout) == (4, "")
    what, why, fix = done.stderr.splitlines()
    assert what == "fmctl: IOMMU group 27 has a device that is not the board's"
    assert why == f"  why: {foreign} (144d:a824), driver nvme"
    assert fix.startswith("  do:  change the slots")
    assert overrides(tmp_path) == {"(null)\n"}


def test_a_kernel_that_does_not_do_as_told_is_a_failure_that_says_where(host: SimulatedBus, tmp_path: Path) -> None:
    lay_out(host, tmp_path)
    done = run("vfio", "bind", "--root", str(tmp_path), "--gpus", str(GPU))
    assert done.returncode == 1
    assert done.stdout == f"{GPU}: set driver_override to vfio-pci\n"
    assert done.stderr.startswith(f"fmctl: {GPU}: bind to vfio-pci failed\n  why: the kernel refused ")
    (tmp_path / "sys" / "bus" / "pci" / "drivers_probe").touch()
    again = run("vfio", "bind", "--root", str(tmp_path), "--gpus", str(GPU))
    assert again.stderr.startswith(f"fmctl: {GPU}: bind to vfio-pci had no effect\n  why: it has driver none")


def test_one_process_at_a_time(host: SimulatedBus, tmp_path: Path) -> None:
    lay_out(host, tmp_path)
    (tmp_path / "run" / "fmctl").mkdir()
    with (tmp_path / "run" / "fmctl" / "host.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run("vfio", "bind", "--root", str(tmp_path))
    assert done.returncode == 5
    assert done.stderr.startswith("fmctl: another fmctl process changes this host's devices\n")
    assert overrides(tmp_path) == {"(null)\n"}


@pytest.mark.parametrize("command", ["bind", "unbind"])
@pytest.mark.parametrize(
    ("gpus", "message"),
    [
        ("17:00.0", "a PCI address such as '0000:1b:00.0' is wanted, not '17:00.0'"),
        (f"{GPU},", "is wanted, not ''"),
        (str(SWITCHES[0]), f"{SWITCHES[0]} is no GPU of the board"),
        ("ffff:00:00.0", "ffff:00:00.0 is no GPU of the board"),
    ],
)
def test_what_is_no_gpu_is_a_usage_error(command: str, gpus: str, message: str) -> None:
    done = run("vfio", command, "--simulate", BOARD, "--gpus", gpus)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_a_pretended_host_brings_its_board() -> None:
    assert run("vfio", "status", "--simulate", BOARD, "--platform", BOARD).returncode == 2
