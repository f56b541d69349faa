# SPDX-License-Identifier: Apache-2.0
"""The Service VM: what is in it, and its life."""

from __future__ import annotations

import re

from tests.lab import guests, steps
from tests.lab.host import Host, want
from tests.lab.machine import Variant
from tests.lab.scenario import scenario

TAMPERED = {
    "vmlinuz": "vmlinuz",
    "root.squashfs": "root.squashfs",
    "manifest.json": "signature",
    "manifest.json.sig": "signature",
}
"""What is changed of an image, and what the refusal must name."""


@scenario(Variant.GROUPS, Variant.SHARED)
def the_service_vm_has_the_switches_and_the_memory_controller(host: Host) -> None:
    with steps.resets(host, starts=1):
        steps.ready(host)
    listed = re.findall(r"lab: pci \S+ (\S+)", host.sh(f"cat {steps.CONSOLE}"))
    inside = sorted(found for found in listed if found in ("1234:11e8", "1b36:0005", "1b36:0010", "8086:10d3"))
    want(inside == ["1234:11e8", "1234:11e8", "1b36:0005"], f"the guest lists {listed}")


@scenario(Variant.GROUPS)
def its_domain_is_transient_and_confined(host: Host) -> None:
    steps.ready(host)
    want(not host.sh("virsh list --all --persistent --name").strip(), "a domain is persistent")
    xml = host.sh(f"virsh dumpxml {steps.SERVICE_VM}")
    want(xml.count("managed='no'") == 3 and "managed='yes'" not in xml, xml)
    want("<seclabel type='dynamic' model='apparmor'" in xml, xml)
    label = host.sh(f"cat /proc/{steps.qemu(host)}/attr/current")
    want("(enforce)" in label, f"its process is {label}")


@scenario(Variant.SHARED)
def an_image_that_does_not_boot_is_not_kept(host: Host) -> None:
    steps.ready(host)
    before = steps.image(host)
    refused = steps.upgrade(host, guests.BROKEN, status=1)
    want(steps.LOST in refused, refused)
    steps.ready(host)
    want(steps.image(host) == before, f"the image in use is {steps.image(host)}")


@scenario(Variant.SHARED)
def it_is_stopped_and_does_not_start_from_a_tampered_image(host: Host) -> None:
    steps.ready(host)
    steps.stopped(host)
    want(not host.sh("virsh list --all --name").strip(), "its domain is still there")
    want(host.ask("status")["service_vm"]["state"] == "absent", "fmctl shows it as there")
    folder = f"{steps.STORE}/{steps.image(host)}"
    for file, said in TAMPERED.items():
        host.sh(f"cp -p {folder}/{file} /root/kept && printf '!' >>{folder}/{file}")
        refused = steps.started(host, status=1)
        want(said in refused, f"of {file} is said: {refused}")
        want(not host.sh("virsh list --all --name").strip(), "a domain was started all the same")
        steps.stopped(host)
        host.sh(f"cp -p /root/kept {folder}/{file}")


@scenario(Variant.FOREIGN)
def it_does_not_start_beside_a_foreign_device(host: Host) -> None:
    foreign = host.sh("lspci -D -d 1af4:1110").split()[0]
    steps.serving(host)
    refused = steps.upgrade(host, guests.FIRST, status=1)
    want(foreign in refused, refused)
    want(not host.sh("virsh list --all --name").strip(), "a domain was started all the same")
