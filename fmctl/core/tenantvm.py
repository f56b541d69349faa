# SPDX-License-Identifier: Apache-2.0
"""A tenant VM: the GPUs of one partition or lease, near its memory and processors, with room for their memory regions.

`core.placement` says where they are, `core.domain_xml` makes documents, and `core.tenantcheck` tells what a host lacks.
`core.grant` says what a lease gives, and `core.cdi` tells it to container runtimes.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from fmctl.core import domain_xml, domaincheck, domainparts, mmio, placement
from fmctl.core.capacity import Capacity
from fmctl.core.domain_xml import Rendered
from fmctl.core.domaincheck import Wanted
from fmctl.core.domainparts import Firmware, Port
from fmctl.core.errors import BadRequest, FmctlError
from fmctl.core.gpumap import GpuMap
from fmctl.core.grant import Grant
from fmctl.core.inventory import Device, Inventory, Role
from fmctl.core.partition import Gpu, Partition, PartitionList
from fmctl.core.pci import Bdf
from fmctl.core.placement import Cell, Expander
from fmctl.core.platform import Platform
from fmctl.core.settings import MapRegions, TenantVmSettings
from fmctl.core.template import Template
from fmctl.core.values import AbsolutePath, DomainName, Uuid

TENANT_VM = "tenant-vm.xml.j2"
TENANT_DEVICES = "tenant-devices.xml.j2"
LARGE_REGION = 64 << 30
"""Bytes from which on a region counts as large: QEMU before 10.1 can take minutes to map one."""
MAPS_LARGE_REGIONS = (10, 1)
"""The first QEMU that maps large regions fast."""
_UUIDS = uuid.UUID("f5c2b1c4-5c5e-5d0a-9d0e-666d63746c00")
"""The name space of the UUIDs that are made of a VM's name."""
_DISKS = "abcdefghijklmnopqrstuvwxyz"

QemuVersion = tuple[int, int]


@dataclass(frozen=True)
class Request:
    """Which tenant VM is wanted, beside the settings; `gpu_ids` say nothing where a lease says which GPUs."""

    gpu_ids: tuple[int, ...] = ()
    name: DomainName | None = None
    uuid: Uuid | None = None
    disks: tuple[AbsolutePath, ...] = ()


@dataclass(frozen=True)
class Host:
    """Where it is wanted; `qemu` is None where nobody knows QEMU's version."""

    inventory: Inventory
    gpu_map: GpuMap
    capacity: Capacity
    qemu: QemuVersion | None = None


@dataclass(frozen=True)
class Disk:
    """A disk: a block device, or a file of that format."""

    path: PurePosixPath
    target: str
    format: str
    is_block: bool


@dataclass(frozen=True, kw_only=True)
class TenantVm:
    """What a tenant VM's template gets as `vm`.

    Without expanders all root ports are on pcie.0. `huge_page_kib` is 0 for ordinary pages. `maps_regions` is false
    where QEMU must not map the GPUs' regions. `regions` are the sizes of these in bytes, `window_mib` the room for all.
    `lease` and `owner` are empty where no lease is named.
    """

    name: str
    uuid: str
    partitions: tuple[int, ...]
    lease: str = ""
    owner: str = ""
    domain_type: str
    emulator: PurePosixPath | None
    vcpus: int
    memory_gib: int
    huge_page_kib: int
    cells: tuple[Cell, ...]
    expanders: tuple[Expander, ...]
    ports: tuple[Port, ...]
    regions: tuple[tuple[int, ...], ...]
    window_mib: int
    maps_regions: bool
    firmware: Firmware | None
    disks: tuple[Disk, ...]
    network: str
    mac: str


@dataclass(frozen=True)
class TenantDevices:
    """What the template of bare devices gets as `vm`: the GPUs by address, in order."""

    devices: tuple[Bdf, ...]


def tenant_vm(settings: TenantVmSettings, request: Request, host: Host) -> TenantVm:
    """The tenant VM that has exactly the GPUs of one partition; raises FmctlError."""
    partition = _partitions(host.inventory.platform).with_gpus(request.gpu_ids)
    host.gpu_map.check(host.inventory)
    gpus = _gpus({physical_id: host.gpu_map.addresses[physical_id] for physical_id in partition.gpu_ids}, host)
    name = str(request.name or "tenant-" + "-".join(map(str, sorted(partition.gpu_ids))))
    return _made(settings, replace(request, name=DomainName(name)), gpus, host, partitions=(partition.id,))


def for_lease(settings: TenantVmSettings, request: Request, grant: Grant, host: Host) -> TenantVm:
    """The tenant VM that has exactly what a lease gives, and the UUID of the VM that the lease is for.

    Its GPUs are those at the lease's addresses; the GPU map is not asked. Raises FmctlError.
    """
    if request.uuid and grant.vm_uuid and str(request.uuid) != grant.vm_uuid:
        raise BadRequest(
            f"the lease {grant.lease_id} is for another VM",
            why=f"it is for the VM {grant.vm_uuid}",
            fix="leave the UUID out, or bind the lease to the other VM by `fmctl lease update`",
        )
    bound = Uuid.parse(grant.vm_uuid) if grant.vm_uuid else None
    wanted = replace(request, name=request.name or DomainName(f"tenant-{grant.lease_id}"), uuid=request.uuid or bound)
    gpus = _gpus(grant.addresses, host)
    lease = {"partitions": grant.partitions, "lease": grant.lease_id, "owner": grant.owner}
    return _made(settings, wanted, gpus, host, **lease)


def _made(settings: TenantVmSettings, request: Request, devices: Iterable[Device], host: Host, **of: Any) -> TenantVm:
    """The tenant VM of that name with these GPUs; `of` says what gives them to it."""
    gpus = placement.by_node(devices, host.capacity)
    sizes = [[_regions(gpu) for gpu in together] for together in gpus.values()]
    expanders, ports = placement.bridges(gpus)
    name = str(request.name)
    own = str(request.uuid or uuid.uuid5(_UUIDS, name))
    safe = domainparts.safe
    return TenantVm(
        name=name,
        uuid=own,
        domain_type=settings.domain_type.value,
        emulator=safe(settings.emulator) if settings.emulator else None,
        vcpus=settings.vcpus,
        memory_gib=settings.memory_gib,
        huge_page_kib=settings.huge_pages.kib,
        cells=placement.cells(settings, tuple(gpus), host.capacity),
        expanders=expanders,
        ports=ports,
        regions=tuple(regions for together in sizes for regions in together),
        window_mib=mmio.window(sizes) >> 20,
        maps_regions=_maps_regions(settings.map_regions, sizes, host.qemu),
        firmware=domainparts.firmware(settings.firmware, settings.firmware_vars) if settings.firmware else None,
        disks=tuple(_disks(request.disks)),
        network=settings.network,
        mac=domainparts.mac(own),
        **of,
    )


def render_tenant_vm(vm: TenantVm, templates: Mapping[str, Template]) -> Rendered:
    """A tenant VM's document; raises BadTemplate."""
    wanted = Wanted(vm.domain_type, vm.name, vm.uuid, vm.network, tuple(port.device for port in vm.ports))

    def differences(rendered: Rendered) -> Iterator[str]:
        yield from domaincheck.differences(rendered.xml, rendered.fingerprint, wanted)

    return domain_xml.render(TENANT_VM, vm, templates, differences)


def render_devices(devices: Iterable[Bdf], templates: Mapping[str, Template]) -> Rendered:
    """The elements that give these functions to a VM, for a document of somebody else's; raises BadTemplate."""
    vm = TenantDevices(tuple(sorted(devices)))
    return domain_xml.render(
        TENANT_DEVICES, vm, templates, lambda rendered: domaincheck.device_differences(rendered.xml, vm.devices)
    )


def _partitions(platform: Platform) -> PartitionList:
    rows = (Partition(row.id, tuple(Gpu(physical_id) for physical_id in row.gpu_ids)) for row in platform.partitions)
    return PartitionList(tuple(rows))


def _gpus(addresses: Mapping[int, Bdf], host: Host) -> Iterator[Device]:
    """The host's devices that these GPUs are, by physical id; raises FmctlError."""
    devices = {device.function.bdf: device for device in host.inventory.devices if device.role is Role.GPU}
    for physical_id, bdf in addresses.items():
        if bdf not in devices:
            raise FmctlError(
                f"GPU {physical_id} is not there",
                why=f"this host has no GPU at {bdf}, where the GPU map says it is",
                fix="see `fmctl inventory`, and choose a partition without it",
            )
        yield devices[bdf]


def _regions(gpu: Device) -> tuple[int, ...]:
    found = tuple(size for size in gpu.state.bars if size) if gpu.state else ()
    if not found:
        raise FmctlError(
            f"the sizes of the memory regions of GPU {gpu.function.bdf} are not known",
            why="it does not answer, or is gone",
            fix="see `fmctl inventory`, and choose a partition without it",
        )
    return found


def _maps_regions(choice: MapRegions, sizes: Iterable[Iterable[Iterable[int]]], qemu: QemuVersion | None) -> bool:
    """Whether QEMU is to map the GPUs' regions; raises FmctlError where that hangs on a version that nobody knows."""
    if choice is not MapRegions.AUTO:
        return choice is MapRegions.ALWAYS
    if all(size < LARGE_REGION for gpus in sizes for regions in gpus for size in regions):
        return True
    if qemu is None:
        raise FmctlError(
            "whether QEMU may map the GPUs' memory regions is not known",
            why="QEMU before 10.1 can take minutes to map one of 64 GiB or more, and its version is not known",
            fix="give --qemu-version, or set tenant_vm.map_regions to always or never",
        )
    return qemu >= MAPS_LARGE_REGIONS


def _disks(paths: tuple[AbsolutePath, ...]) -> Iterator[Disk]:
    if len(paths) > len(_DISKS):
        raise BadRequest(f"{len(paths)} disks are too many", why=f"a tenant VM can have {len(_DISKS)}")
    for letter, path in zip(_DISKS, paths, strict=False):
        suffix = "qcow2" if path.path.suffix == ".qcow2" else "raw"
        yield Disk(domainparts.safe(path), f"vd{letter}", suffix, path.path.is_relative_to("/dev"))
