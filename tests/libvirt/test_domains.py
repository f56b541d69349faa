# SPDX-License-Identifier: Apache-2.0
"""Every golden domain document is one that libvirt takes, by its QEMU driver and by its schema."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from fmctl import process
from tests.domains import DOCUMENTS, GOLDEN

ROOT = Path(__file__).parents[2]
SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")
MISSING = "this test needs root, and what tools/setup installs: libvirt's QEMU driver and QEMU"
NAMES = sorted(DOCUMENTS)


def accept(folder: Path, *files: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.libvirt.accept", str(folder), *map(str, files)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{MISSING}\n{done.stderr}"
    judged: dict[str, Any] = json.loads(done.stdout)
    return judged


@pytest.fixture(scope="module")
def judged() -> Iterator[dict[str, Any]]:
    folder = Path(tempfile.mkdtemp(prefix="fmctl-test-"))
    yield accept(folder / "root", *(GOLDEN / f"{name}.xml" for name in NAMES))
    shutil.rmtree(folder)


def options(name: str, judged: dict[str, Any]) -> str:
    answer = judged[f"{name}.xml"]
    assert "error" not in answer, (
        f"{answer['error']}\nIf it is about KVM: this needs a /dev/kvm, even if it is of no use."
    )
    return " ".join(answer["options"])


def devices(line: str, driver: str) -> list[dict[str, Any]]:
    found = [json.loads(text) for text in re.findall(r'-device (\{"driver":"[^}]*\})', line)]
    return [device for device in found if device["driver"] == driver]


def sources(name: str) -> list[str]:
    document = ElementTree.fromstring((GOLDEN / f"{name}.xml").read_text())  # noqa: S314 (our own file)
    found = [address.attrib for address in document.iterfind("devices/hostdev/source/address")]
    return ["{}:{}:{}.{}".format(*(a[key][2:] for key in ("domain", "bus", "slot", "function"))) for a in found]


@pytest.mark.parametrize("name", NAMES)
def test_the_driver_gives_each_host_device_a_root_port_to_itself(name: str, judged: dict[str, Any]) -> None:
    line = options(name, judged)
    ports = {device["id"] for device in devices(line, "pcie-root-port")}
    passed = devices(line, "vfio-pci")
    assert sorted(device["host"] for device in passed) == sorted(sources(name))
    assert all(device["bus"] in ports and device["addr"] == "0x0" for device in passed)
    assert len({device["bus"] for device in passed}) == len(passed) > 0
    assert "usb" not in line.replace("usb=off", "") and "balloon" not in line and "-display none" in line


@pytest.mark.parametrize("name", NAMES)
def test_the_schema_accepts_it(name: str) -> None:
    xmllint = shutil.which("xmllint")
    assert xmllint, "tools/setup installs xmllint"
    argv = [xmllint, "--noout", "--relaxng", str(SCHEMA), str(GOLDEN / f"{name}.xml")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("service-vm")])
def test_the_service_vm_is_locked_has_its_context_id_and_changes_no_file_but_its_console(
    name: str, judged: dict[str, Any]
) -> None:
    line = options(name, judged)
    assert "-overcommit mem-lock=on" in line
    (vsock,) = devices(line, "vhost-vsock-pci")
    assert vsock["guest-cid"] == 1000
    assert "-chardev file,id=charserial0,path=/var/log/libvirt/qemu/fmctl-service-vm-console.log,append=on" in line
    assert ("-netdev" in line) == (name == "service-vm-a100-16")
    disks = re.findall(r'"node-name":"(?:libvirt-[0-9]+|libvirt-pflash0)-format","read-only":(\w+)', line)
    assert set(disks) <= {"true"}


def test_uefi_gets_its_firmware_and_a_copy_of_its_variables(judged: dict[str, Any]) -> None:
    line = options("service-vm-lab-uefi", judged)
    assert '"filename":"/usr/share/OVMF/OVMF_CODE_4M.fd"' in line
    assert "/nvram/fmctl-service-vm_VARS.fd" in line
    assert "-kernel" not in line
    assert "-kernel /boot/fmctl/vmlinuz" in options("service-vm-lab-kernel", judged)


@pytest.mark.parametrize(("name", "accelerator"), [("service-vm-lab-kernel", "kvm"), ("service-vm-lab-qemu", "tcg")])
def test_both_kinds_of_domain_are_accepted(name: str, accelerator: str, judged: dict[str, Any]) -> None:
    assert f"-accel {accelerator}" in options(name, judged)


def test_a_tenant_vm_over_two_nodes_has_a_host_bridge_and_memory_on_each(judged: dict[str, Any]) -> None:
    line = options("tenant-vm-h100-8", judged)
    assert [device["numa_node"] for device in devices(line, "pxb-pcie")] == [0, 1]
    assert line.count('"hugetlbsize":1073741824') == 2
    assert "pci-hole64-size=4294967296K" in line
    assert "-fw_cfg name=opt/ovmf/X-PciMmio64Mb,string=4194304" in line
    assert "x-no-mmap" not in line


def test_an_old_qemu_is_kept_from_mapping_the_regions(judged: dict[str, Any]) -> None:
    line = options("tenant-vm-h100-8-old-qemu", judged)
    assert "-global vfio-pci.x-no-mmap=true" in line
    qemu = shutil.which("qemu-system-x86_64")
    assert qemu, MISSING
    assert "x-no-mmap=<bool>" in process.run([qemu, "-device", "vfio-pci,help"], timeout=20)


WRONG = {
    "an element that there is not": ("<locked/>", "<locks/>"),
    "two devices in one place": ("bus='0x02' slot='0x00'", "bus='0x01' slot='0x00'"),
    "a machine that there is not": ("machine='q35'", "machine='q53'"),
    "no XML": ("</domain>", ""),
}


def test_what_is_wrong_is_not_accepted(folder: Path) -> None:
    document = (GOLDEN / "service-vm-lab-kernel.xml").read_text()
    files = [folder / name for name in WRONG]
    for file, (right, wrong) in zip(files, WRONG.values(), strict=True):
        assert right in document
        file.write_text(document.replace(right, wrong))
    judged = accept(folder / "root", *files)
    assert [name for name in WRONG if "error" not in judged[name]] == []
