# SPDX-License-Identifier: Apache-2.0
"""Domain documents: what ours are, and what an operator's template may not make of the same values."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from typing import Any

import pytest

from fmctl import templates
from fmctl.core import domain_xml, domaincheck, schema, tenantvm
from fmctl.core.domain import Domain
from fmctl.core.domain_xml import Rendered, ServiceVm
from fmctl.core.errors import BadRequest, FmctlError, InvalidDocument
from fmctl.core.inventory import Role
from fmctl.core.settings import Boot, DaemonSettings, ServiceVmSettings
from fmctl.core.template import BadTemplate, Template
from tests.domains import DOCUMENTS, GOLDEN, IMAGE, KERNEL, STORED, inventory, path, service_vm

LAB = inventory("lab")
OURS = templates.read()
SERVICE_VM = OURS[domain_xml.SERVICE_VM]


@pytest.mark.parametrize("name", sorted(DOCUMENTS))
def test_a_document_is_as_its_golden_file(name: str) -> None:
    file, made = GOLDEN / f"{name}.xml", DOCUMENTS[name]().xml
    if os.environ.get("FMCTL_REWRITE_GOLDEN"):
        file.write_text(made)
    assert file.exists(), "tests/golden/README.md says how to write it"
    assert made == file.read_text()


def test_there_is_no_golden_document_that_nothing_makes() -> None:
    assert sorted(file.stem for file in GOLDEN.glob("*.xml")) == sorted(DOCUMENTS)


@pytest.mark.parametrize("board", ["hgx-h100-8", "hgx-b200-8", "hgx-a100-8", "hgx-a100-16", "lab"])
def test_the_service_vm_has_all_of_the_board_but_its_gpus(board: str) -> None:
    found = inventory(board)
    wanted = sorted(device.function.bdf for device in found.devices if device.role is not Role.GPU)
    assert list(Domain.from_xml(service_vm(board, KERNEL).xml).hostdevs) == wanted
    assert len(wanted) >= 3


def test_the_order_in_which_devices_are_found_changes_nothing() -> None:
    turned = replace(LAB, devices=tuple(reversed(LAB.devices)))
    assert domain_xml.service_vm(KERNEL, turned) == domain_xml.service_vm(KERNEL, LAB)


def test_the_fingerprint_is_that_of_the_document_without_it() -> None:
    made = service_vm("lab", KERNEL)
    assert Domain.from_xml(made.xml).fingerprint == made.fingerprint
    bare = made.xml.replace(made.fingerprint, "")
    assert made.fingerprint == hashlib.sha256(bare.encode()).hexdigest()


def test_another_template_value_or_device_is_another_fingerprint() -> None:
    made = service_vm("lab", KERNEL)
    assert service_vm("lab", KERNEL) == made
    assert service_vm("lab", replace(KERNEL, vcpus=3)).fingerprint != made.fingerprint
    fewer = replace(LAB, devices=tuple(d for d in LAB.devices if d.role is not Role.MEMORY_CONTROLLER))
    assert rendered(SERVICE_VM.text, domain_xml.service_vm(KERNEL, fewer)).fingerprint != made.fingerprint
    same = domain_xml.service_vm(KERNEL, LAB)
    assert rendered(SERVICE_VM.text, same) == made
    assert rendered(SERVICE_VM.text + "<!-- ours -->", same).fingerprint != made.fingerprint


def test_a_card_keeps_its_address_and_two_vms_have_two() -> None:
    vm = domain_xml.service_vm(KERNEL, LAB)
    other = domain_xml.service_vm(replace(KERNEL, uuid=type(KERNEL.uuid)("0" * 8 + str(KERNEL.uuid)[8:])), LAB)
    assert vm.mac.startswith("52:54:00:")
    assert vm.mac == domain_xml.service_vm(KERNEL, LAB).mac != other.mac


@pytest.mark.parametrize(
    ("settings", "key"),
    [(ServiceVmSettings(), "kernel"), (ServiceVmSettings(boot=Boot.UEFI, kernel=KERNEL.kernel), "root_image")],
)
def test_what_it_cannot_boot_without_must_be_set(settings: ServiceVmSettings, key: str) -> None:
    with pytest.raises(InvalidDocument) as refusal:
        domain_xml.service_vm(settings, LAB)
    assert refusal.value.why == f"service_vm.boot is {settings.boot.value}, and service_vm.{key} is not set"
    assert refusal.value.fix == f"set service_vm.{key}, or choose an image by `fmctl service-vm upgrade IMAGE`"


def test_a_host_without_nvswitches_has_no_service_vm() -> None:
    gpus = replace(LAB, devices=tuple(device for device in LAB.devices if device.role is not Role.NVSWITCH))
    with pytest.raises(FmctlError) as refusal:
        domain_xml.service_vm(KERNEL, gpus)
    assert refusal.value.what == "there is no NVSwitch to give to the Service VM"
    assert refusal.value.fix == "see `fmctl inventory`"


def test_there_is_room_for_232_functions_each_at_a_port_of_its_own() -> None:
    switch = next(device for device in LAB.devices if device.role is Role.NVSWITCH)
    places = [replace(switch.function.bdf, bus=bus) for bus in range(233)]
    many = [replace(switch, function=replace(switch.function, bdf=place)) for place in places]
    ports = domain_xml.service_vm(KERNEL, replace(LAB, devices=tuple(many[:232]))).ports
    assert len({(port.slot, port.function) for port in ports}) == 232
    assert {port.slot for port in ports} == set(range(2, 31))
    with pytest.raises(FmctlError) as refusal:
        domain_xml.service_vm(KERNEL, replace(LAB, devices=tuple(many)))
    assert str(refusal.value) == "a VM cannot have 233 functions of the host: it has room for 232"


BAD_PATHS = ['/a"b', "/a'b", "/a<b", "/a&b", "/a,b", "/a{b}", "/a*b", "/a?", "/a[b]", "/a\\b", "/ä", "/a;b", "/a$b"]


@pytest.mark.parametrize("bad", BAD_PATHS)
@pytest.mark.parametrize("key", ["kernel", "initrd", "root_image", "console_log", "firmware", "firmware_vars"])
def test_a_path_with_a_meaning_of_its_own_is_refused(key: str, bad: str) -> None:
    base = replace(KERNEL, root_image=IMAGE.root_image, boot=Boot.UEFI if key.startswith("firmware") else Boot.KERNEL)
    changes: dict[str, Any] = {key: path(bad)}
    with pytest.raises(BadRequest) as refusal:
        domain_xml.service_vm(replace(base, **changes), LAB)
    assert refusal.value.what == f"the path {bad!r} is refused"


@pytest.mark.parametrize(
    "line",
    [
        "kernel: boot/vmlinuz",
        "kernel: /boot/../etc/shadow",
        'kernel: "/boot/a\\nb"',
        'kernel: "/boot/a\\0b"',
        "name: a<b",
        "name: ../a",
        "name: ''",
        "uuid: 6f0f3b54-8d0c-4d9e-9c1b-0f6d63746c0'",
        "network: a'b",
        "network: a/b",
        'kernel_arguments: "a\\nb"',
        'kernel_arguments: "a\\0b"',
        "cid: 2",
        "cid: '1000'",
        "memory_mib: 1",
    ],
)
def test_a_setting_that_could_break_out_is_refused(line: str) -> None:
    with pytest.raises(InvalidDocument) as refusal:
        schema.load(DaemonSettings, f"service_vm:\n  {line}\n", "fmctld.yaml")
    assert "service_vm" in refusal.value.why


def test_kernel_arguments_reach_the_kernel_as_they_are() -> None:
    arguments = """a="b c" d='e' <f> &amp; console=ttyS0,115200"""
    made = service_vm("lab", replace(KERNEL, kernel_arguments=arguments))
    assert domaincheck.parse(made.xml).findtext("os/cmdline") == arguments


CHECKED = domain_xml.service_vm(replace(KERNEL, root_image=IMAGE.root_image, network="default"), LAB)


def rendered(text: str, vm: ServiceVm = CHECKED) -> Rendered:
    """A Service VM by an operator's template."""
    return domain_xml.render_service_vm(vm, {**OURS, domain_xml.SERVICE_VM: replace(SERVICE_VM, text=text)})


def edited(old: str, new: str) -> dict[str, Template]:
    """Our templates with one text in the place of another."""
    changed = {
        name: replace(ours, path=f"/etc/fmctl/{name}", text=ours.text.replace(old, new, 1))
        for name, ours in OURS.items()
        if name not in (tenantvm.TENANT_VM, tenantvm.TENANT_DEVICES) and old in ours.text
    }
    assert len(changed) == 1, old
    return {**OURS, **changed}


def device(text: str) -> tuple[str, str]:
    """The edit that adds a device."""
    return "</devices>", f"{text}</devices>"


def option(text: str) -> tuple[str, str]:
    """The edit that adds an element beside the devices."""
    return "</devices>", f"</devices>{text}"


QEMU = "xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'"
GPU = "<source><address domain='0' bus='0x17' slot='0' function='0'/></source>"
PASSED = "{{ macros.host_device(port) }}"
NO_PORT = "a host device has no pcie-root-port to itself"
NO_HOSTDEV = "a host device is not a hostdev with mode='subsystem' type='pci' managed='no'"
NAMED = "its options for QEMU name a host device"
SVIRT = "a seclabel switches sVirt off"


@pytest.mark.parametrize(
    ("edit", "difference"),
    [
        (("type='{{ vm.domain_type }}'", "type='xen'"), "its type: xen, where kvm is wanted"),
        (("<name>{{", "<name>x{{"), "its name: xfmctl-service-vm, where fmctl-service-vm is wanted"),
        (("</name>", "</name><name>b</name>"), "its name: fmctl-service-vm, b, where fmctl-service-vm is wanted"),
        (("<uuid>{{ vm.uuid }}</uuid>", ""), "its UUID: none, where 6f0f3b54-8d0c-4d9e-9c1b-0f6d63746c01 is wanted"),
        (("fingerprint='{{ fingerprint }}'", ""), "the fingerprint in its metadata: none, where "),
        (("{{ fingerprint }}", "0"), "the fingerprint in its metadata: 0, where "),
        ((PASSED, ""), "its PCI functions of the host: none, where 0000:02:00.0, 0000:04:00.0, 0000:05:00.0 is wanted"),
        ((PASSED, PASSED * 2), "its PCI functions of the host: 0000:02:00.0, 0000:02:00.0, "),
        (device(f"<hostdev mode='subsystem' type='pci' managed='no'>{GPU}</hostdev>"), "05:00.0, 0000:17:00.0, where "),
        (device(f"<interface type='hostdev'>{GPU}</interface>"), "05:00.0, 0000:17:00.0, where "),
        (device(f"<disk type='nvme'>{GPU}<readonly/></disk>"), "05:00.0, 0000:17:00.0, where "),
        (("managed='no'", "managed='yes'"), NO_HOSTDEV),
        (("managed='no'", ""), NO_HOSTDEV),
        (device("<hostdev mode='subsystem' type='mdev' managed='no'/>"), NO_HOSTDEV),
        (device("<hostdev mode='capabilities' type='pci' managed='no'/>"), NO_HOSTDEV),
        (("{{ macros.root_port(port) }}", ""), NO_PORT),
        (("model='pcie-root-port'", "model='pcie-switch-downstream-port'"), NO_PORT),
        (("<address type='pci' {{ place(port.index, 0, 0) }}/>", ""), NO_PORT),
        (("{{ place(port.index, 0, 0) }}", "{{ place(1, port.index, 0) }}"), NO_PORT),
        (device("<sound model='ich9'><address type='pci' bus='1' slot='1'/></sound>"), NO_PORT),
        (option(f"<q:commandline {QEMU}><q:arg value='vfio-pci,host=17:00.0'/></q:commandline>"), NAMED),
        (option(f"<q:override {QEMU}><q:property name='host'/></q:override>"), NAMED),
        (option(f"<q:override {QEMU}><q:property name='sysfsdev'/></q:override>"), NAMED),
        (("<source network='{{ network }}'/>", "<source network='other'/>"), "cards: other, where default is wanted"),
        (
            device("<interface type='user'/>"),
            "the networks of its network cards: default, a user, where default is wanted",
        ),
        (option("<seclabel type='none'/>"), SVIRT),
        (option("<seclabel type='dynamic' model='dac' relabel='no'/>"), SVIRT),
        (("<readonly/>", "<readonly/><seclabel type='none'/>"), SVIRT),
        (("address='{{ vm.cid }}'", "address='1001'"), "its context id: 1001, where 1000 is wanted"),
        (("auto='no'", "auto='yes'"), "its context id: chosen by libvirt, where 1000 is wanted"),
        (("<serial type='file'>", "<serial type='pty'>"), "the file of its serial console: none, where /var/log/"),
        (("path='{{ vm.console_log }}'", "path='/x'"), "the file of its serial console: /x, where /var/log/"),
        (("<on_reboot>destroy", "<on_reboot>restart"), "on_reboot: restart, where destroy is wanted"),
        (("<on_poweroff>destroy</on_poweroff>", ""), "on_poweroff: none, where destroy is wanted"),
        (("<on_crash>destroy", "<on_crash>preserve"), "on_crash: preserve, where destroy is wanted"),
        (("<locked/>", ""), "its memory is not locked"),
        (("<readonly/>", ""), "one of its disks is not read-only"),
        (device("<disk type='file'><source file='/data'/></disk>"), "one of its disks is not read-only"),
        (
            ("'vda', vm.root_image", "'vda', '/x'"),
            "its first disks: /x, where /var/lib/libvirt/images/fmctl-service-",
        ),
        (
            ("{% if vm.image %} image='{{ vm.image }}'{% endif %}", " image='b'"),
            "the image in its metadata: b, where none",
        ),
        (("</domain>", ""), "it is not XML: "),
        (("<domain ", "<!DOCTYPE domain []><domain "), "it has a document type"),
        (("<domain ", "<!DOCTYPE d [<!ENTITY no 'yes'>]><domain "), "it has a document type"),
        (("index='{{ port.index }}'", "index='one'"), "controller index is no number: one"),
    ],
)
def test_a_template_that_makes_another_domain_is_refused(edit: tuple[str, str], difference: str) -> None:
    with pytest.raises(BadTemplate) as refusal:
        domain_xml.render_service_vm(CHECKED, edited(*edit))
    assert difference in refusal.value.why
    assert refusal.value.what.endswith("service-vm.xml.j2 makes is refused")


@pytest.mark.parametrize(
    ("edit", "difference"),
    [
        (
            ("'vdb', vm.agent_image", "'vdb', '/x'"),
            "its first disks: /var/lib/fmctl/images/580-1/root.squashfs, /x, where ",
        ),
        (
            ("'vda', vm.root_image", "'vda', vm.agent_image"),
            "its first disks: /var/lib/fmctl/images/580-1/agent.tar, ",
        ),
        (("image='{{ vm.image }}'", ""), "the image in its metadata: none, where 580-1 is wanted"),
        (("model='dac' relabel='no'", "relabel='no'"), SVIRT),
        (("model='dac' relabel='no'", "model='apparmor' relabel='no'"), SVIRT),
        (("<seclabel model='dac' relabel='no'/>", "<seclabel type='none'/>"), SVIRT),
        (option("<seclabel model='dac' relabel='no'/>"), SVIRT),
    ],
)
def test_a_template_that_boots_another_image_is_refused(edit: tuple[str, str], difference: str) -> None:
    with pytest.raises(BadTemplate) as refusal:
        domain_xml.render_service_vm(domain_xml.service_vm(ServiceVmSettings(), LAB, STORED), edited(*edit))
    assert difference in refusal.value.why


@pytest.mark.parametrize(
    "card", ["<interface type='user'/>", "<interface type='bridge'><source bridge='br0'/></interface>"]
)
def test_a_card_of_any_kind_is_refused_where_none_is_wanted(card: str) -> None:
    with pytest.raises(BadTemplate) as refusal:
        domain_xml.render_service_vm(domain_xml.service_vm(KERNEL, LAB), edited(*device(card)))
    assert refusal.value.why.startswith("the networks of its network cards: a ")
    assert refusal.value.why.endswith(", where none is wanted")


def test_all_differences_are_told_at_once() -> None:
    with pytest.raises(BadTemplate) as refusal:
        rendered(SERVICE_VM.text.replace("<locked/>", "").replace("<on_crash>destroy", "<on_crash>preserve"))
    assert refusal.value.why == "on_crash: preserve, where destroy is wanted; its memory is not locked"


@pytest.mark.parametrize(
    "edit",
    [
        ("<acpi/>", "<acpi/><pmu state='off'/>"),
        device("<disk type='file' device='cdrom'><source file='/seed.iso'/><target dev='sda'/><readonly/></disk>"),
        option(f"<q:commandline {QEMU}><q:arg value='-no-hpet'/></q:commandline>"),
        option("<seclabel type='dynamic' model='apparmor'/>"),
    ],
)
def test_an_operator_s_template_may_have_more(edit: tuple[str, str]) -> None:
    assert edit[1] in domain_xml.render_service_vm(CHECKED, edited(*edit)).xml


def test_values_are_escaped_in_an_operator_s_template_too() -> None:
    made = rendered(SERVICE_VM.text.replace("<features>", "<title>{{ '<locked/>' }}</title><features>"))
    assert "<title>&lt;locked/&gt;</title>" in made.xml
