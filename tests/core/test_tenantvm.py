# SPDX-License-Identifier: Apache-2.0
"""Tenant VMs: whose GPUs they have, and where these are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fmctl import templates
from fmctl.core import domaincheck, gpumap, tenantvm
from fmctl.core.capacity import Capacity
from fmctl.core.domain import Domain
from fmctl.core.errors import BadRequest, FmctlError, MapUnverified, NoSuchPartition
from fmctl.core.gpumap import GpuMap
from fmctl.core.inventory import Inventory, Role
from fmctl.core.pci import Bdf
from fmctl.core.settings import MapRegions, TenantVmSettings
from fmctl.core.template import BadTemplate
from fmctl.core.tenantvm import Host, Request, TenantVm
from fmctl.core.values import DomainName, Uuid
from fmctl.sim.capacity import CAPACITY
from tests.domains import GRANT, inventory, path

H100 = inventory("hgx-h100-8")
MAP = gpumap.in_order(H100)
HOST = Host(H100, MAP, CAPACITY, (10, 1))
OURS = templates.read()


def vm(*gpu_ids: int, host: Host = HOST, **changes: Any) -> TenantVm:
    return tenantvm.tenant_vm(replace(TenantVmSettings(), **changes), Request(gpu_ids), host)


def on_nodes(nodes: dict[int, int | None]) -> Host:
    """The host with GPUs on other NUMA nodes, by physical id."""
    by_address = {MAP.addresses[physical_id]: node for physical_id, node in nodes.items()}
    devices = tuple(
        replace(d, function=replace(d.function, numa_node=by_address.get(d.function.bdf, d.function.numa_node)))
        for d in H100.devices
    )
    return replace(HOST, inventory=replace(H100, devices=devices))


@pytest.mark.parametrize("row", H100.platform.partitions, ids=lambda row: f"partition-{row.id}")
def test_it_has_exactly_the_gpus_of_its_partition(row: Any) -> None:
    made = vm(*reversed(row.gpu_ids))
    assert made.partitions == (row.id,)
    document = tenantvm.render_tenant_vm(made, OURS)
    assert list(Domain.from_xml(document.xml).hostdevs) == sorted(MAP.addresses[gpu] for gpu in row.gpu_ids)


def test_the_map_says_which_gpu_is_which() -> None:
    turned = GpuMap(dict(zip(MAP.addresses, reversed(list(MAP.addresses.values())), strict=True)))
    (port,) = vm(1, host=replace(HOST, gpu_map=turned)).ports
    assert port.device == MAP.addresses[8]


@pytest.mark.parametrize(
    ("gpu_ids", "why"),
    [
        ((1, 2), "partitions of 2 on this board: {1,3} {2,4} {5,7} {6,8}"),
        ((1, 3, 5), "this board has no partition of 3 GPUs"),
        ((9,), "partitions of 1 on this board: {1} {2} {3} {4} {5} {6} {7} {8}"),
    ],
)
def test_gpus_of_no_partition_are_refused_with_those_that_are(gpu_ids: tuple[int, ...], why: str) -> None:
    with pytest.raises(NoSuchPartition) as refusal:
        vm(*gpu_ids)
    assert refusal.value.why == why


def test_a_map_of_another_host_is_refused() -> None:
    with pytest.raises(MapUnverified):
        vm(1, host=replace(HOST, gpu_map=GpuMap({**MAP.addresses, 8: Bdf(0, 0xFF, 0, 0)})))


def without(physical_id: int) -> Inventory:
    return replace(H100, devices=tuple(d for d in H100.devices if d.function.bdf != MAP.addresses[physical_id]))


def test_a_lost_gpu_takes_only_its_own_partitions() -> None:
    host = replace(HOST, inventory=without(3))
    assert vm(2, 4, host=host).partitions == (4,)
    with pytest.raises(FmctlError) as refusal:
        vm(1, 3, host=host)
    assert refusal.value.what == "GPU 3 is not there"
    assert str(MAP.addresses[3]) in refusal.value.why


@pytest.mark.parametrize("state", [None, "dead"])
def test_a_gpu_that_does_not_tell_its_regions_is_refused(state: str | None) -> None:
    devices = tuple(
        replace(d, state=None if state is None or d.state is None else replace(d.state, bars=()))
        if d.function.bdf == MAP.addresses[1]
        else d
        for d in H100.devices
    )
    with pytest.raises(FmctlError) as refusal:
        vm(1, host=replace(HOST, inventory=replace(H100, devices=devices)))
    assert refusal.value.what == "the sizes of the memory regions of GPU 0000:17:00.0 are not known"


def test_gpus_of_one_node_are_on_root_ports_of_pcie_0() -> None:
    made = vm(5, 6, 7, 8)
    assert made.expanders == ()
    assert [(port.bus, port.slot, port.function) for port in made.ports] == [(0, 2, n) for n in range(4)]
    (cell,) = made.cells
    assert (cell.node, cell.cpus, cell.vcpus, cell.memory_gib) == (1, CAPACITY.nodes[1].cpus, range(16), 64)


def test_gpus_of_two_nodes_have_a_cell_and_a_host_bridge_each() -> None:
    made = vm(*range(1, 9))
    assert [(cell.id, cell.node, cell.vcpus, cell.memory_gib) for cell in made.cells] == [
        (0, 0, range(8), 32),
        (1, 1, range(8, 16), 32),
    ]
    assert [(e.index, e.slot, e.bus, e.cell) for e in made.expanders] == [(1, 2, 32, 0), (2, 3, 37, 1)]
    nodes = {d.function.bdf: d.function.numa_node or 0 for d in H100.devices}
    assert [port.index for port in made.ports] == list(range(3, 11))
    assert [(port.bus, port.slot, port.function) for port in made.ports] == [
        (nodes[port.device] + 1, slot % 4, 0) for slot, port in enumerate(made.ports)
    ]


def test_gpus_of_a_node_are_in_the_order_of_their_addresses_whatever_the_map() -> None:
    turned = GpuMap(dict(zip(MAP.addresses, reversed(list(MAP.addresses.values())), strict=True)))
    assert vm(*range(1, 9), host=replace(HOST, gpu_map=turned)).ports == vm(*range(1, 9)).ports


def test_nodes_are_those_of_its_own_gpus_alone() -> None:
    made = vm(1, 3, host=on_nodes({1: 1, 3: 0}))
    assert [(cell.node, port.device) for cell, port in zip(made.cells, made.ports, strict=True)] == [
        (0, MAP.addresses[3]),
        (1, MAP.addresses[1]),
    ]


@pytest.mark.parametrize("nodes", [{1: None}, {1: None, 3: None}, {3: 7}])
def test_where_a_node_is_not_known_there_is_one_cell_bound_to_none(nodes: dict[int, int | None]) -> None:
    made = vm(1, 3, host=on_nodes(nodes))
    (cell,) = made.cells
    assert (cell.node, cell.cpus, made.expanders) == (None, "", ())
    xml = tenantvm.render_tenant_vm(made, OURS).xml
    assert "numatune" not in xml and "cputune" not in xml


def test_a_node_without_processors_binds_memory_alone() -> None:
    nodes = {number: replace(node, cpus="") for number, node in CAPACITY.nodes.items()}
    xml = tenantvm.render_tenant_vm(vm(1, host=replace(HOST, capacity=Capacity(nodes))), OURS).xml
    assert "<memnode cellid='0' mode='strict' nodeset='0'/>" in xml
    assert "cputune" not in xml


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"vcpus": 15}, "15 processors cannot be divided evenly"),
        ({"memory_gib": 33}, "33 GiB of memory cannot be divided evenly"),
    ],
)
def test_what_cannot_be_divided_over_the_nodes_is_refused(changes: dict[str, Any], what: str) -> None:
    assert vm(1, 3, **changes).cells
    with pytest.raises(BadRequest) as refusal:
        vm(*range(1, 9), **changes)
    assert refusal.value.what == what
    assert refusal.value.fix == "ask for a multiple of 2"


@pytest.mark.parametrize(
    ("choice", "qemu", "maps"),
    [
        (MapRegions.AUTO, (10, 0), False),
        (MapRegions.AUTO, (9, 2), False),
        (MapRegions.AUTO, (10, 1), True),
        (MapRegions.AUTO, (11, 0), True),
        (MapRegions.ALWAYS, (8, 2), True),
        (MapRegions.ALWAYS, None, True),
        (MapRegions.NEVER, (10, 1), False),
        (MapRegions.NEVER, None, False),
    ],
)
def test_large_regions_are_mapped_where_qemu_does_so_fast(
    choice: MapRegions, qemu: tuple[int, int] | None, *, maps: bool
) -> None:
    made = vm(1, host=replace(HOST, qemu=qemu), map_regions=choice)
    assert made.maps_regions is maps
    assert ("x-no-mmap=true" in tenantvm.render_tenant_vm(made, OURS).xml) is not maps


def test_where_it_hangs_on_a_version_that_nobody_knows_it_is_asked_for() -> None:
    with pytest.raises(FmctlError) as refusal:
        vm(1, host=replace(HOST, qemu=None))
    assert refusal.value.fix == "give --qemu-version, or set tenant_vm.map_regions to always or never"


@pytest.mark.parametrize(("size", "maps"), [(64 << 30, False), ((64 << 30) - 1, True)])
def test_a_region_is_large_from_64_gib_on(size: int, *, maps: bool) -> None:
    devices = tuple(replace(d, state=replace(d.state, bars=(size,)) if d.state else None) for d in H100.devices)
    host = Host(replace(H100, devices=devices), MAP, CAPACITY, (8, 2))
    assert vm(1, host=host).maps_regions is maps


def test_its_name_and_uuid_are_made_of_its_gpus_unless_given() -> None:
    made = vm(3, 1)
    assert made.name == "tenant-1-3"
    assert made.uuid == vm(1, 3).uuid != vm(2, 4).uuid
    assert made.mac != vm(2, 4).mac
    given = Request((1, 3), DomainName("a"), Uuid("6f0f3b54-8d0c-4d9e-9c1b-0f6d63746c09"))
    other = tenantvm.tenant_vm(TenantVmSettings(), given, HOST)
    assert (other.name, other.uuid) == ("a", "6f0f3b54-8d0c-4d9e-9c1b-0f6d63746c09")


def test_disks_are_files_of_their_format_or_block_devices() -> None:
    disks = tuple(map(path, ("/var/a.qcow2", "/var/b.img", "/dev/vg0/c", "/devices/d")))
    made = tenantvm.tenant_vm(TenantVmSettings(), Request((1,), disks=disks), HOST)
    assert [(str(d.path), d.target, d.format, d.is_block) for d in made.disks] == [
        ("/var/a.qcow2", "vda", "qcow2", False),
        ("/var/b.img", "vdb", "raw", False),
        ("/dev/vg0/c", "vdc", "raw", True),
        ("/devices/d", "vdd", "raw", False),
    ]


def test_there_are_letters_for_26_disks() -> None:
    many = tuple(path(f"/var/{number}") for number in range(27))
    assert tenantvm.tenant_vm(TenantVmSettings(), Request((1,), disks=many[:26]), HOST).disks[-1].target == "vdz"
    with pytest.raises(BadRequest):
        tenantvm.tenant_vm(TenantVmSettings(), Request((1,), disks=many), HOST)


@pytest.mark.parametrize("key", ["firmware", "firmware_vars", "emulator", "disk"])
@pytest.mark.parametrize("bad", ['/a"b', "/a,b", "/a<b", "/a&b", "/a'b"])
def test_a_path_with_a_meaning_of_its_own_is_refused(key: str, bad: str) -> None:
    changes: dict[str, Any] = {} if key == "disk" else {key: path(bad)}
    disks = (path(bad),) if key == "disk" else ()
    with pytest.raises(BadRequest) as refusal:
        tenantvm.tenant_vm(replace(TenantVmSettings(), **changes), Request((1,), disks=disks), HOST)
    assert refusal.value.what == f"the path {bad!r} is refused"


def test_an_emulator_is_named_only_where_one_is_set() -> None:
    assert "<emulator>" not in tenantvm.render_tenant_vm(vm(1), OURS).xml
    xml = tenantvm.render_tenant_vm(vm(1, emulator=path("/usr/libexec/qemu-kvm")), OURS).xml
    assert "<emulator>/usr/libexec/qemu-kvm</emulator>" in xml


def test_seabios_boots_without_firmware() -> None:
    xml = tenantvm.render_tenant_vm(vm(1, firmware=None), OURS).xml
    assert "loader" not in xml and "X-PciMmio64Mb" not in xml
    assert "<pcihole64 unit='KiB'>268435456</pcihole64>" in xml


def test_an_operator_s_template_cannot_give_it_another_gpu() -> None:
    ours = OURS[tenantvm.TENANT_VM]
    other = ours.text.replace(
        "{{ macros.host_device(port) }}", "{{ macros.host_device(port) | replace('0x17', '0x34') }}"
    )
    with pytest.raises(BadTemplate) as refusal:
        tenantvm.render_tenant_vm(vm(1), {**OURS, tenantvm.TENANT_VM: replace(ours, text=other)})
    assert refusal.value.why == "its PCI functions of the host: 0000:34:00.0, where 0000:17:00.0 is wanted"


def test_only_what_fmctl_itself_says_of_host_devices_is_said_to_qemu() -> None:
    ours = OURS[tenantvm.TENANT_VM]
    other = replace(ours, text=ours.text.replace("vfio-pci.x-no-mmap=true", "vfio-pci.host=0000:34:00.0"))
    slow = vm(1, host=replace(HOST, qemu=(8, 2)))
    with pytest.raises(BadTemplate) as refusal:
        tenantvm.render_tenant_vm(slow, {**OURS, tenantvm.TENANT_VM: other})
    assert refusal.value.why == "its options for QEMU name a host device"


GIVEN = replace(GRANT, vm_uuid="")


def test_the_vm_of_a_lease_has_exactly_its_gpus_and_its_uuid() -> None:
    made = tenantvm.for_lease(TenantVmSettings(), Request(), GRANT, HOST)
    assert (made.uuid, made.name) == (GRANT.vm_uuid, f"tenant-{GRANT.lease_id}")
    domain = Domain.from_xml(tenantvm.render_tenant_vm(made, OURS).xml)
    assert list(map(str, domain.hostdevs)) == ["0000:6e:00.0", "0000:a8:00.0"]
    assert (domain.owner, domain.uuid) == (GRANT.owner, GRANT.vm_uuid)


def test_the_vm_of_a_lease_for_any_has_a_uuid_that_is_the_same_each_time_and_another_for_each_lease() -> None:
    other = replace(GIVEN, lease_id=GIVEN.lease_id.replace("6f", "70"))
    uuids = [tenantvm.for_lease(TenantVmSettings(), Request(), each, HOST).uuid for each in (GIVEN, GIVEN, other)]
    assert uuids[0] == uuids[1] != uuids[2]


def test_a_uuid_is_taken_unless_the_lease_is_for_another_vm() -> None:
    mine = Uuid("99999999-2222-3333-4444-555555555555")
    assert tenantvm.for_lease(TenantVmSettings(), Request(uuid=mine), GIVEN, HOST).uuid == str(mine)
    with pytest.raises(BadRequest) as refusal:
        tenantvm.for_lease(TenantVmSettings(), Request(uuid=mine), GRANT, HOST)
    assert refusal.value.why == f"it is for the VM {GRANT.vm_uuid}"


def test_a_gpu_of_a_lease_that_this_host_has_not_is_refused() -> None:
    elsewhere = replace(GRANT, gpus=(replace(GRANT.gpus[0], address=Bdf(0, 0xFE, 0, 0)), GRANT.gpus[1]))
    with pytest.raises(FmctlError) as refusal:
        tenantvm.for_lease(TenantVmSettings(), Request(), elsewhere, HOST)
    assert "0000:fe:00.0" in refusal.value.why


def test_what_is_no_gpu_is_not_given_whatever_a_lease_says() -> None:
    switch = next(device.function.bdf for device in H100.devices if device.role is not Role.GPU)
    with pytest.raises(FmctlError):
        tenantvm.for_lease(
            TenantVmSettings(), Request(), replace(GRANT, gpus=(replace(GRANT.gpus[0], address=switch),)), HOST
        )


def test_bare_devices_are_hostdevs_of_exactly_these_functions() -> None:
    xml = tenantvm.render_devices(GRANT.addresses.values(), OURS).xml
    found = domaincheck.parse(f"<devices>{xml}</devices>")
    assert [(element.tag, element.get("managed")) for element in found] == [("hostdev", "no")] * 2
    assert [address.get("bus") for address in found.iterfind("hostdev/source/address")] == ["0x6e", "0xa8"]
    assert found.findall("hostdev/address") == []


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("managed='no'", "managed='yes'", "managed='no'"),
        ("vm.devices", "vm.devices[:1]", "its PCI functions of the host"),
        ("{% endfor %}", "{% endfor %}<disk/>", "something beside hostdevs"),
        ("{% endfor %}", "{% endfor %}</devices><cpu/><devices>", "something beside hostdevs"),
    ],
)
def test_an_operator_s_template_of_bare_devices_meets_the_same_checks(old: str, new: str, why: str) -> None:
    ours = OURS[tenantvm.TENANT_DEVICES]
    assert old in ours.text
    with pytest.raises(BadTemplate) as refusal:
        tenantvm.render_devices(
            GRANT.addresses.values(),
            {**OURS, tenantvm.TENANT_DEVICES: replace(ours, text=ours.text.replace(old, new))},
        )
    assert why in refusal.value.why
