# SPDX-License-Identifier: Apache-2.0
"""The domain documents that tests compare with tests/golden, and give to libvirt: each board in several ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from fmctl import platforms, templates
from fmctl.control import discovery
from fmctl.core import domain_xml, gpumap, tenantvm
from fmctl.core.domain_xml import Rendered
from fmctl.core.grant import Grant
from fmctl.core.image import FILES, Image, Manifest
from fmctl.core.inventory import Device, Inventory, Role
from fmctl.core.lease import GpuDevice
from fmctl.core.pci import Bdf
from fmctl.core.settings import Boot, DomainType, HugePages, ServiceVmSettings, TenantVmSettings
from fmctl.core.tenantvm import Host, QemuVersion, Request
from fmctl.core.values import AbsolutePath
from fmctl.sim.capacity import CAPACITY
from fmctl.sim.sysfs import SimulatedBus

GOLDEN = Path(__file__).parent / "golden"
LAB = Path(__file__).parent / "lab" / "lab.yaml"
REGIONS = {
    "lab": (16 << 10, 0, 0, 0, 0, 0),
    "hgx-b200-8": (64 << 20, 0, 256 << 30, 0, 32 << 20, 0),
}
"""What the GPUs of these boards have for memory regions; all pretended hosts have those of an H100."""


def path(text: str) -> AbsolutePath:
    return AbsolutePath.parse(text)


KERNEL = ServiceVmSettings(kernel=path("/boot/fmctl/vmlinuz"), initrd=path("/boot/fmctl/initrd.img"))
STORED = Image(
    "580-1",
    PurePosixPath("/var/lib/fmctl/images/580-1"),
    Manifest(dict.fromkeys(FILES, "0" * 64), "console=ttyS0 panic=-1 root=/dev/vda ro", {}, False, {}),
    "0" * 64,
)
IMAGE = ServiceVmSettings(root_image=path("/var/lib/libvirt/images/fmctl-service-vm.img"), boot=Boot.UEFI)


def inventory(board: str, *, shared_group: bool = False) -> Inventory:
    """The board of a pretended host."""
    platform = platforms.read(LAB) if board == "lab" else platforms.load(board)
    found = discovery.discover(SimulatedBus(platform, shared_group=shared_group), [platform])
    return replace(found, devices=tuple(_with_regions(device, REGIONS.get(board)) for device in found.devices))


def _with_regions(device: Device, regions: tuple[int, ...] | None) -> Device:
    if regions is None or device.state is None or device.role is not Role.GPU:
        return device
    return replace(device, state=replace(device.state, bars=regions))


def service_vm(
    board: str, settings: ServiceVmSettings, image: Image | None = None, *, shared_group: bool = False
) -> Rendered:
    values = domain_xml.service_vm(settings, inventory(board, shared_group=shared_group), image)
    return domain_xml.render_service_vm(values, templates.read())


def tenant_vm(board: str, *gpu_ids: int, qemu: QemuVersion = (10, 1), **changes: Any) -> Rendered:
    disks = changes.pop("disks", ())
    found = inventory(board)
    host = Host(found, gpumap.in_order(found), CAPACITY, qemu)
    values = tenantvm.tenant_vm(replace(TenantVmSettings(), **changes), Request(gpu_ids, disks=disks), host)
    return tenantvm.render_tenant_vm(values, templates.read())


GRANT = Grant(
    "6f0d6bd5-7d58-4a41-8e6e-0b6c0f7f2a11",
    'a<&"b',
    (10, 12),
    (GpuDevice(4, Bdf.parse("0000:6e:00.0"), 72, 0), GpuDevice(6, Bdf.parse("0000:a8:00.0"), 74, 1)),
    "11111111-2222-3333-4444-555555555555",
)
"""What a lease of two single GPUs of a pretended H100 host gives, for an owner with characters that XML reads."""


def for_lease(board: str, grant: Grant) -> Rendered:
    found = inventory(board)
    host = Host(found, gpumap.in_order(found), CAPACITY, (10, 1))
    return tenantvm.render_tenant_vm(tenantvm.for_lease(TenantVmSettings(), Request(), grant, host), templates.read())


DISKS = (path("/var/lib/libvirt/images/tenant.qcow2"), path("/dev/vg0/tenant-data"))

DOCUMENTS: dict[str, Callable[[], Rendered]] = {
    "service-vm-h100": lambda: service_vm("hgx-h100-8", KERNEL),
    "service-vm-h100-shared-group": lambda: service_vm("hgx-h100-8", KERNEL, shared_group=True),
    "service-vm-h100-image": lambda: service_vm("hgx-h100-8", replace(KERNEL, root_image=IMAGE.root_image)),
    "service-vm-h100-stored": lambda: service_vm("hgx-h100-8", ServiceVmSettings(), STORED),
    "service-vm-b200": lambda: service_vm("hgx-b200-8", IMAGE),
    "service-vm-a100-8": lambda: service_vm("hgx-a100-8", KERNEL),
    "service-vm-a100-16": lambda: service_vm("hgx-a100-16", replace(IMAGE, network="default")),
    "service-vm-lab-kernel": lambda: service_vm("lab", KERNEL),
    "service-vm-lab-uefi": lambda: service_vm("lab", IMAGE),
    "service-vm-lab-qemu": lambda: service_vm("lab", replace(KERNEL, domain_type=DomainType.QEMU)),
    "tenant-vm-h100-1": lambda: tenant_vm("hgx-h100-8", 5),
    "tenant-vm-h100-2": lambda: tenant_vm("hgx-h100-8", 1, 3, huge_pages=HugePages.GIB_1, disks=DISKS),
    "tenant-vm-h100-8": lambda: tenant_vm("hgx-h100-8", *range(1, 9), huge_pages=HugePages.GIB_1, network="tenants"),
    "tenant-vm-h100-8-old-qemu": lambda: tenant_vm("hgx-h100-8", *range(1, 9), qemu=(8, 2), huge_pages=HugePages.MIB_2),
    "tenant-vm-h100-lease": lambda: for_lease("hgx-h100-8", GRANT),
    "tenant-vm-b200-2": lambda: tenant_vm("hgx-b200-8", 1, 2),
    "tenant-vm-b200-8": lambda: tenant_vm("hgx-b200-8", *range(1, 9)),
    "tenant-vm-a100-8": lambda: tenant_vm("hgx-a100-8", *range(1, 9)),
    "tenant-vm-a100-16": lambda: tenant_vm("hgx-a100-16", *range(1, 17), vcpus=32),
    "tenant-vm-lab-1": lambda: tenant_vm("lab", 2, firmware=None),
    "tenant-vm-lab-4": lambda: tenant_vm("lab", 1, 2, 3, 4, firmware=None, domain_type=DomainType.QEMU),
}
"""Each document by its file's name, less `.xml`."""
