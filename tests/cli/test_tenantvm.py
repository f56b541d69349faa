# SPDX-License-Identifier: Apache-2.0
"""`fmctl tenant-vm render` and `check`."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from fmctl import platforms
from fmctl.core import domaincheck
from fmctl.core.domain import Domain
from fmctl.sim.host import MapFault
from fmctl.sim.sysfs import SimulatedBus
from tests import sysfs_tree
from tests.control.test_gpumap import World
from tests.domains import GOLDEN
from tests.rpc.test_gpumap import serving
from tests.support import run

NODE = "sys/devices/system/node"
ADDRESSES = ["17", "34", "51", "6e", "8b", "a8", "c5", "e2"]


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """An H100 host's files, with one NUMA node less than its GPUs are on, and a QEMU of its own."""
    sysfs_tree.write(SimulatedBus(platforms.load("hgx-h100-8")), tmp_path / "sys")
    (tmp_path / NODE / "node0").mkdir(parents=True)
    (tmp_path / NODE / "node0" / "cpulist").write_text("0-55,112-167\n")
    pages = tmp_path / NODE / "node0" / "hugepages" / "hugepages-1048576kB"
    pages.mkdir(parents=True)
    (pages / "free_hugepages").write_text("63\n")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text("address sizes\t: 46 bits physical, 57 bits virtual\n")
    qemu = tmp_path / "qemu"
    qemu.write_text("#!/bin/sh\necho QEMU emulator version 8.2.2\n")
    qemu.chmod(0o755)
    (tmp_path / "fmctld.yaml").write_text(f"tenant_vm: {{emulator: {qemu}}}\n")
    return tmp_path


@pytest.fixture
def gpu_map(tmp_path: Path) -> Path:
    file = tmp_path / "map.yaml"
    file.write_text(yaml.dump({number: f"0000:{bus}:00.0" for number, bus in enumerate(reversed(ADDRESSES), 1)}))
    return file


def tenant_vm(host: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command about that host, whose daemon is the one at `d.sock` in it, if there is one."""
    address = {"FMCTL_ADDRESS": f"unix:{host}/d.sock"}
    return run("tenant-vm", *arguments, "--root", str(host), "--config", str(host / "fmctld.yaml"), env=address)


def unverified(host: Path, gpu_map: Path) -> str:
    """What is told where no daemon answers."""
    return (
        f"fmctl: the GPU map {gpu_map} is not verified: fmctld at unix:{host}/d.sock does not answer:"
        " No such file or directory\n"
    )


def test_a_pretended_host_has_its_gpus_in_order_and_a_new_qemu() -> None:
    done = run("tenant-vm", "render", "--simulate", "hgx-h100-8", "--gpu-ids", "5")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (GOLDEN / "tenant-vm-h100-1.xml").read_text()


def test_the_map_of_the_option_or_of_the_settings_says_which_gpu_is_which(host: Path, gpu_map: Path) -> None:
    done = tenant_vm(host, "render", "--gpu-ids", "6,8", "--gpu-map", str(gpu_map))
    assert (done.returncode, done.stderr) == (0, unverified(host, gpu_map))
    assert list(map(str, Domain.from_xml(done.stdout).hostdevs)) == ["0000:17:00.0", "0000:51:00.0"]
    assert "<memnode cellid='0' mode='strict' nodeset='0'/>" in done.stdout
    assert "x-no-mmap=true" in done.stdout
    with (host / "fmctld.yaml").open("a") as settings:
        settings.write(f"gpu_map: {gpu_map}\n")
    assert tenant_vm(host, "render", "--gpu-ids", "6,8").stdout == done.stdout


def test_without_a_map_there_is_no_tenant_vm(host: Path) -> None:
    done = tenant_vm(host, "render", "--gpu-ids", "1")
    assert (done.returncode, done.stdout) == (8, "")
    assert done.stderr == (
        "fmctl: which GPU has which physical id is not known\n"
        "  why: no GPU map is set, and the addresses alone do not tell\n"
        "  do:  write what `fmctl gpumap show -o map` prints into a file, and name it with --gpu-map or by the setting"
        " gpu_map\n"
    )


def test_where_a_daemon_answers_its_verified_map_alone_says_which_gpu_is_which(folder: Path, host: Path) -> None:
    (folder / "host").symlink_to(host)
    host, world, file = folder / "host", World("hgx-h100-8", MapFault.UNCONFIRMED), folder / "map.yaml"
    asked = ("render", "--gpu-ids", "6,8", "--devices-only")
    file.write_text(world.host.written_map() or yaml.dump({n: str(bdf) for n, bdf in world.addresses.items()}))
    with serving(world, folder / "host"):
        world.maps.refresh()
        for more in ((), ("--gpu-map", str(file))):
            done = tenant_vm(host, *asked, *more)
            assert (done.returncode, done.stdout) == (8, "")
            assert "nothing but registers tells which GPU is which" in done.stderr
        world.maps.accept(world.maps.status().fingerprint, actor="ann")
        done = tenant_vm(host, *asked)
        assert (done.returncode, done.stderr) == (0, "")
        found = domaincheck.parse(f"<devices>{done.stdout}</devices>").iterfind("hostdev/source/address")
        assert [int(address.get("bus", ""), 0) for address in found] == [world.addresses[gpu].bus for gpu in (6, 8)]
        assert tenant_vm(host, *asked, "--gpu-map", str(file)).stdout == done.stdout
        file.write_text(file.read_text().replace("1:", "9:", 1).replace("2:", "1:", 1).replace("9:", "2:", 1))
        done = tenant_vm(host, *asked, "--gpu-map", str(file))
        assert (done.returncode, done.stdout) == (8, "")
        assert (
            f"{file} contradicts the daemon's verified GPU map\n  why: they differ about the GPUs 1, 2" in done.stderr
        )


def test_a_gpu_that_the_host_has_lost_keeps_no_other_from_a_document(folder: Path, host: Path) -> None:
    (folder / "host").symlink_to(host)
    world = World("hgx-h100-8")
    world.maps.refresh()
    world.bring()
    (host / "sys/bus/pci/devices" / str(world.addresses[1])).unlink()
    world.host.bus.remove(world.addresses[1])
    with serving(world, folder / "host"):
        done = tenant_vm(folder / "host", "render", "--gpu-ids", "6,8", "--devices-only")
        assert (done.returncode, done.stderr) == (0, "")


def test_gpus_of_no_partition_are_not_found() -> None:
    done = run("tenant-vm", "render", "--simulate", "hgx-h100-8", "--gpu-ids", "1,2")
    assert (done.returncode, done.stdout) == (3, "")
    assert "partitions of 2 on this board: {1,3} {2,4} {5,7} {6,8}" in done.stderr


def test_options_win_over_settings(host: Path, gpu_map: Path) -> None:
    with (host / "fmctld.yaml").open("a") as settings:
        settings.write("template_dir: null\n")
    done = tenant_vm(
        host,
        *("render", "--gpu-ids", "6,8", "--gpu-map", str(gpu_map), "--name", "a.b-c", "--qemu-version", "10.1"),
        *("--uuid", "6f0f3b54-8d0c-4d9e-9c1b-0f6d63746c09", "--vcpus", "6", "--memory-gib", "7", "--huge-pages", "2M"),
        *("--network", "tenants", "--disk", "/var/a.qcow2", "--disk", "/dev/b"),
    )
    assert (done.returncode, done.stderr) == (0, unverified(host, gpu_map))
    for text in (
        "<name>a.b-c</name>",
        "<uuid>6f0f3b54-8d0c-4d9e-9c1b-0f6d63746c09</uuid>",
        "<vcpu placement='static'>6</vcpu>",
        "<memory unit='GiB'>7</memory>",
        "<page size='2048' unit='KiB'/>",
        "<source network='tenants'/>",
        "<source file='/var/a.qcow2'/>",
        "<source dev='/dev/b'/>",
        f"<emulator>{host}/qemu</emulator>",
    ):
        assert text in done.stdout
    assert "x-no-mmap" not in done.stdout


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--name", "a<b", "a name of at most 63 letters"),
        ("--name", "../a", "a name of at most 63 letters"),
        ("--uuid", "1", "a UUID in lower case is wanted"),
        ("--network", "a'b", "is no name of a libvirt network"),
        ("--disk", "a.img", "an absolute path is wanted"),
        ("--disk", "/a/../b", "without .. is wanted"),
        ("--disk", "/a\nb", "a path of printable characters"),
        ("--disk", "/a,b", "the path '/a,b' is refused"),
        ("--vcpus", "0", "0 is not in the range 1<=x<=255"),
        ("--vcpus", "256", "256 is not in the range 1<=x<=255"),
        ("--memory-gib", "0", "0 is not in the range"),
        ("--huge-pages", "4M", "'4M' is not one of"),
        ("--qemu-version", "new", "a version such as 10.1 is wanted"),
        ("--gpu-map", "/nowhere/map.yaml", "/nowhere/map.yaml cannot be read"),
    ],
)
def test_a_value_that_could_break_out_is_a_usage_error(option: str, value: str, reason: str) -> None:
    done = run("tenant-vm", "render", "--simulate", "hgx-h100-8", "--gpu-ids", "1", option, value)
    assert (done.returncode, done.stdout) == (2, "")
    assert reason in " ".join(done.stderr.split())


def test_a_host_that_lacks_nothing_passes_the_check(host: Path) -> None:
    done = tenant_vm(host, "check", "--memory-gib", "2048")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "nothing found: the host can run this tenant VM\n"


def test_what_a_host_lacks_is_told_with_what_to_do(host: Path, gpu_map: Path) -> None:
    arguments = ("check", "--gpu-ids", "6,8", "--gpu-map", str(gpu_map), "--huge-pages", "1G")
    done = tenant_vm(host, *arguments)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == (
        "huge-pages-missing: NUMA node 0 has 63 free huge pages of 1048576 KiB, and the VM needs 64\n"
        "  why: the VM takes its memory from there, and does not start without\n"
        f"  do:  add 1 to /{NODE}/node0/hugepages/hugepages-1048576kB/nr_hugepages,"
        " or let the kernel do so when it boots\n"
    )
    document = json.loads(tenant_vm(host, *arguments, "-o", "json").stdout)
    assert [finding["name"] for finding in document["findings"]] == ["huge-pages-missing"]
    assert tenant_vm(host, *arguments, "--memory-gib", "63").returncode == 0


def test_the_check_asks_the_qemu_of_the_settings(host: Path) -> None:
    (host / "fmctld.yaml").write_text(f"tenant_vm: {{emulator: {host}/qemu, map_regions: always}}\n")
    done = tenant_vm(host, "check")
    assert done.returncode == 1
    assert done.stdout.startswith("large-regions-mapped: QEMU is 8.2, and is to map memory regions of 128 GiB\n")
    (host / "qemu").unlink()
    assert "QEMU's version is not known" in tenant_vm(host, "check").stdout
    assert tenant_vm(host, "check", "--qemu-version", "10.1").returncode == 0


def test_a_pretended_host_brings_its_own_platform() -> None:
    done = run("tenant-vm", "check", "--simulate", "hgx-h100-8", "--platform", "hgx-b200-8")
    assert done.returncode == 2
    assert "--simulate brings its own --platform." in done.stderr
