# SPDX-License-Identifier: Apache-2.0
"""What fmctl finds on the emulated host, whether passthrough is safe there, and which driver each function has."""

from __future__ import annotations

import errno
import json
import shlex
from typing import Any

from fmctl.host import registersjob
from tests.lab import steps
from tests.lab.host import Host, want
from tests.lab.machine import Variant
from tests.lab.scenario import scenario
from tests.lab.steps import BOARD

EDU = "0x10000ed"
"""What the identification register of QEMU's edu holds (QEMU, docs/specs/edu)."""
STAND_INS = {"gpu": 4, "nvswitch": 2, "memory-controller": 1}


@scenario(*Variant)
def discovery_finds_the_stand_ins(host: Host) -> None:
    devices = _devices(host)
    counts = {role: sum(device["role"] == role for device in devices) for role in STAND_INS}
    want(counts == STAND_INS, f"found were {counts}")
    gpus = {device["iommu_group"] for device in devices if device["role"] == "gpu"}
    others = {device["iommu_group"] for device in devices if device["role"] != "gpu"}
    want(len(gpus) == 4, f"the GPUs are in groups {gpus}")
    wanted = 3 if host.variant is Variant.GROUPS else 1
    want(len(others) == wanted and not others & gpus, f"the Service VM's functions are in groups {others}")


@scenario(Variant.GROUPS)
def the_host_is_prepared_once(host: Host) -> None:
    steps.prepared(host)
    again = host.fmctl("host", "prepare", "--write")
    want("was written" not in again and "was replaced" not in again, again)


@scenario(Variant.GROUPS, Variant.SHARED)
def a_check_of_the_host_finds_nothing(host: Host) -> None:
    steps.prepared(host)
    want("nothing found" in host.fmctl("host", "check", *BOARD), "something was found")


@scenario(Variant.GROUPS)
def a_check_of_the_host_finds_access_control_switched_off(host: Host) -> None:
    port = _devices(host)[0]["ports"][-1]
    before = host.sh(f"setpci -s {port} ECAP_ACS+6.w").strip()
    host.sh(f"setpci -s {port} ECAP_ACS+6.w=0")
    answer = host.try_fmctl("host", "check", *BOARD)
    host.sh(f"setpci -s {port} ECAP_ACS+6.w={before}")
    want(answer.status == 1 and port in answer.out, f"exit status {answer.status}\n{answer.out}")


@scenario(Variant.GROUPS, Variant.SHARED)
def binding_is_done_once(host: Host) -> None:
    first = host.fmctl("vfio", "bind", *BOARD)
    want("vfio-pci" in first, first)
    again = host.fmctl("vfio", "bind", *BOARD)
    want(again == "nothing to do\n", again)
    for device in _devices(host):
        wanted = None if device["role"] == "gpu" else "vfio-pci"
        want(device["driver"] == wanted, f"{device['address']} has the driver {device['driver']}")


@scenario(Variant.GROUPS)
def what_a_process_holds_is_named_and_left_alone(host: Host) -> None:
    switch = next(device for device in _devices(host) if device["role"] == "nvswitch")
    held = f"/dev/vfio/{switch['iommu_group']}"
    answer = host.run(f"exec 9<>{held}; fmctl vfio unbind {' '.join(BOARD)}")
    want(answer.status == 4 and switch["address"] in answer.err, f"exit status {answer.status}\n{answer.err}")
    want(_driver(host, switch["address"]) == "vfio-pci", "the function lost its driver")


@scenario(Variant.GROUPS)
def nothing_goes_back_to_a_host_driver(host: Host) -> None:
    host.fmctl("vfio", "unbind", *BOARD)
    host.sh("udevadm trigger --subsystem-match=pci --action=add && udevadm settle")
    drivers = {device["address"]: device["driver"] for device in _devices(host)}
    want(not any(drivers.values()), f"drivers are {drivers}")


@scenario(Variant.GROUPS, Variant.SHARED)
def registers_of_a_device_are_read_through_its_group_and_by_sysfs(host: Host) -> None:
    steps.prepared(host)
    host.fmctl("vfio", "bind", *BOARD)
    switch = next(device for device in _devices(host) if device["role"] == "nvswitch")
    want(_identified(host, switch, "vfio") == [EDU], "its group does not tell its identification register")
    held = host.run(f"exec 9<>/dev/vfio/{switch['iommu_group']}; {_reading(switch, 'vfio')}")
    want(held.status == registersjob.ERRNO_BASE + errno.EBUSY, f"a held group was opened: {held.status}")
    answer = host.run(_reading(switch, "vfio", settle=[[0, 0x18000000, 0x1FF00000]]))
    want(answer.status == registersjob.UNSETTLED and answer.out.split() == [EDU], f"{answer.status}: {answer.out}")
    host.fmctl("vfio", "unbind", *BOARD)
    want(_identified(host, switch, "sysfs") == [EDU], "sysfs does not tell its identification register")


def _identified(host: Host, device: dict[str, Any], way: str) -> list[str]:
    """What a device's first register holds, once it is what an edu's is."""
    return host.sh(_reading(device, way)).split()


def _reading(device: dict[str, Any], way: str, settle: list[list[int]] | None = None) -> str:
    """The command that reads the first register of a device, as fmctl runs it."""
    asked = {
        "way": way,
        "root": "",
        "bdf": device["address"],
        "group": str(device["iommu_group"]),
        "settle": settle or [[0, int(EDU, 16), 0xFFFFFFFF]],
        "offsets": [0],
        "patience": 2,
    }
    python = "/usr/lib/fmctl/current/bin/python3"
    job = f"$({python} -c 'import fmctl.host.registersjob as job; print(job.__file__)')"
    return f"{python} -I -S {job} {shlex.quote(json.dumps(asked))}"


@scenario(Variant.FOREIGN)
def a_foreign_device_in_the_group_is_refused_by_name(host: Host) -> None:
    foreign = host.sh("lspci -D -d 1af4:1110").split()[0]
    before = [device["driver"] for device in _devices(host)]
    answer = host.try_fmctl("vfio", "bind", *BOARD)
    want(answer.status not in (0, 2) and foreign in answer.err, f"exit status {answer.status}\n{answer.err}")
    want([device["driver"] for device in _devices(host)] == before, "a function was bound all the same")


def _devices(host: Host) -> list[dict[str, Any]]:
    found = host.ask("inventory", *BOARD)
    want(not found["problems"], f"{found['problems']}")
    devices: list[dict[str, Any]] = found["devices"]
    return devices


def _driver(host: Host, address: str) -> str:
    return host.sh(f"basename $(readlink /sys/bus/pci/devices/{address}/driver)").strip()
