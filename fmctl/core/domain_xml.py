# SPDX-License-Identifier: Apache-2.0
"""Domain documents: values into a template, checks on the result; and the Service VM's values.

The XML lies in the templates, which `templates` finds; an operator's get the same values and meet the same checks
(`core.domaincheck`) as ours. `core.tenantvm` has the values of tenant VMs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from fmctl.core import domaincheck, domainparts
from fmctl.core import template as templating
from fmctl.core.domaincheck import ServiceVmWanted, Wanted
from fmctl.core.domainparts import Firmware, Port
from fmctl.core.errors import FmctlError, InvalidDocument
from fmctl.core.image import Image
from fmctl.core.inventory import Inventory, Role
from fmctl.core.pci import Bdf
from fmctl.core.settings import Boot, ServiceVmSettings
from fmctl.core.template import BadTemplate, Template
from fmctl.core.values import AbsolutePath

SERVICE_VM = "service-vm.xml.j2"


@dataclass(frozen=True)
class Rendered:
    """A domain's document, and the SHA-256 of that document without the fingerprint itself."""

    xml: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class ServiceVm:
    """What the Service VM's template gets as `vm`. Without a kernel its firmware boots the root image.

    `image` is the name of the image in the store whose files these are; empty where the settings name them.
    """

    name: str
    uuid: str
    domain_type: str
    vcpus: int
    memory_mib: int
    kernel: PurePosixPath | None = None
    initrd: PurePosixPath | None = None
    kernel_arguments: str = ""
    firmware: Firmware | None = None
    root_image: PurePosixPath | None = None
    agent_image: PurePosixPath | None = None
    image: str = ""
    network: str = ""
    mac: str
    cid: int
    console_log: PurePosixPath
    ports: tuple[Port, ...]


def service_vm(settings: ServiceVmSettings, inventory: Inventory, image: Image | None = None) -> ServiceVm:
    """The Service VM of a board, with every NVSwitch and memory controller and no GPU; raises FmctlError.

    It boots the image, or without one what the settings name.
    """
    boots = _of_settings(settings) if image is None else _of_image(image)
    return ServiceVm(
        **boots,
        name=str(settings.name),
        uuid=str(settings.uuid),
        domain_type=settings.domain_type.value,
        vcpus=settings.vcpus,
        memory_mib=settings.memory_mib,
        network=settings.network,
        mac=domainparts.mac(str(settings.uuid)),
        cid=settings.cid,
        console_log=domainparts.safe(settings.console_log),
        ports=domainparts.root_ports(_switches(inventory)),
    )


def _of_settings(settings: ServiceVmSettings) -> dict[str, Any]:
    safe = domainparts.safe
    root_image = safe(settings.root_image) if settings.root_image else None
    if settings.boot is Boot.UEFI:
        if root_image is None:
            raise _cannot_boot(settings.boot, "root_image")
        firmware = domainparts.firmware(settings.firmware, settings.firmware_vars)
        return {"firmware": firmware, "root_image": root_image}
    if settings.kernel is None:
        raise _cannot_boot(settings.boot, "kernel")
    return {
        "kernel": safe(settings.kernel),
        "initrd": safe(settings.initrd) if settings.initrd else None,
        "kernel_arguments": settings.kernel_arguments,
        "root_image": root_image,
    }


def _of_image(image: Image) -> dict[str, Any]:
    kernel, initrd, root, agent = (
        domainparts.safe(AbsolutePath(path)) for path in (image.kernel, image.initrd, image.root, image.agent)
    )
    return {
        "kernel": kernel,
        "initrd": initrd,
        "kernel_arguments": image.manifest.kernel_arguments,
        "root_image": root,
        "agent_image": agent,
        "image": image.name,
    }


def render_service_vm(vm: ServiceVm, templates: Mapping[str, Template]) -> Rendered:
    """The Service VM's document; raises BadTemplate."""
    wanted = Wanted(vm.domain_type, vm.name, vm.uuid, vm.network, tuple(port.device for port in vm.ports))
    disks = tuple(str(disk) for disk in (vm.root_image, vm.agent_image) if disk)
    beside = ServiceVmWanted(vm.cid, str(vm.console_log), disks, vm.image)

    def differences(rendered: Rendered) -> Iterator[str]:
        yield from domaincheck.differences(rendered.xml, rendered.fingerprint, wanted)
        yield from domaincheck.service_vm_differences(rendered.xml, beside)

    return render(SERVICE_VM, vm, templates, differences)


def render(
    name: str, vm: object, templates: Mapping[str, Template], differences: Callable[[Rendered], Iterator[str]]
) -> Rendered:
    """What the template of that name makes of `vm` and `fingerprint`; raises BadTemplate where it differs."""
    bare = templating.fill(templates, name, {"vm": vm, "fingerprint": ""})
    fingerprint = hashlib.sha256(bare.encode()).hexdigest()
    rendered = Rendered(templating.fill(templates, name, {"vm": vm, "fingerprint": fingerprint}), fingerprint)
    try:
        found = "; ".join(differences(rendered))
    except ValueError as error:
        found = str(error)
    if found:
        path = templates[name].path
        raise BadTemplate(
            f"what the template {path} makes is refused", why=found, fix=f"correct {path}, or what it imports"
        )
    return rendered


def _cannot_boot(boot: Boot, key: str) -> InvalidDocument:
    return InvalidDocument(
        "the Service VM cannot boot",
        why=f"service_vm.boot is {boot.value}, and service_vm.{key} is not set",
        fix=f"set service_vm.{key}, or choose an image by `fmctl service-vm upgrade IMAGE`",
    )


def _switches(inventory: Inventory) -> list[Bdf]:
    """What the Service VM gets of a board; raises FmctlError where there is no NVSwitch."""
    if not any(device.role is Role.NVSWITCH for device in inventory.devices):
        raise FmctlError(
            "there is no NVSwitch to give to the Service VM",
            why=f"this host has none that the platform {inventory.platform.name} names",
            fix="see `fmctl inventory`",
        )
    return [device.function.bdf for device in inventory.devices if device.role is not Role.GPU]
