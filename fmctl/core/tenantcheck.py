# SPDX-License-Identifier: Apache-2.0
"""What a host lacks for a tenant VM: the decisions behind `fmctl tenant-vm check`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from fmctl.core import mmio
from fmctl.core.capacity import Capacity
from fmctl.core.finding import Finding
from fmctl.core.placement import Cell
from fmctl.core.tenantvm import LARGE_REGION, MAPS_LARGE_REGIONS, QemuVersion, TenantVm

_GIB = 1 << 30


def qemu_version(text: str) -> QemuVersion | None:
    """The version in what `qemu-system-x86_64 --version` prints, or in `10.1`; None where there is none."""
    found = re.search(r"(?:^|version )([0-9]{1,4})\.([0-9]{1,4})", text)
    return (int(found[1]), int(found[2])) if found else None


def judge(vm: TenantVm, capacity: Capacity, qemu: QemuVersion | None) -> tuple[Finding, ...]:
    """All that keeps a tenant VM from starting on a host, or from starting soon."""
    pages = (finding for cell in vm.cells for finding in _huge_pages(vm.huge_page_kib, cell, capacity))
    return (*pages, *_regions(vm, qemu), *_window(vm, capacity))


def _huge_pages(size: int, cell: Cell, capacity: Capacity) -> Iterator[Finding]:
    """A cell's memory comes from the node that it is on and from no other."""
    if not size:
        return
    own = cell.node is not None
    folder = f"/sys/devices/system/node/node{cell.node}/hugepages" if own else "/sys/kernel/mm/hugepages"
    free = (capacity.nodes[cell.node].free_pages if cell.node is not None else capacity.free_pages).get(size, 0)
    needed = cell.memory_gib * (_GIB >> 10) // size
    if free < needed:
        yield Finding(
            "huge-pages-missing",
            f"{f'NUMA node {cell.node}' if own else 'the host'} has {free} free huge pages of {size} KiB,"
            f" and the VM needs {needed}",
            "the VM takes its memory from there, and does not start without",
            f"add {needed - free} to {folder}/hugepages-{size}kB/nr_hugepages, or let the kernel do so when it boots",
        )


def _regions(vm: TenantVm, qemu: QemuVersion | None) -> Iterator[Finding]:
    largest = max(size for regions in vm.regions for size in regions)
    if not vm.maps_regions or largest < LARGE_REGION or (qemu and qemu >= MAPS_LARGE_REGIONS):
        return
    version = f"QEMU is {qemu[0]}.{qemu[1]}" if qemu else "QEMU's version is not known"
    yield Finding(
        "large-regions-mapped",
        f"{version}, and is to map memory regions of {largest // _GIB} GiB",
        "QEMU before 10.1 can take minutes for each, in which the VM does not start",
        "install QEMU 10.1, or set tenant_vm.map_regions to auto or never",
    )


def _window(vm: TenantVm, capacity: Capacity) -> Iterator[Finding]:
    """The guest can have addresses as long as the host's, since its processors are the host's."""
    end = mmio.end(vm.window_mib << 20, vm.memory_gib * _GIB)
    bits = (end - 1).bit_length()
    if capacity.address_bits is not None and bits > capacity.address_bits:
        yield Finding(
            "mmio-window-too-high",
            f"the window for the GPUs' memory regions needs addresses of {bits} bits, and this host has"
            f" {capacity.address_bits}",
            f"{vm.window_mib >> 10} GiB must lie above the VM's {vm.memory_gib} GiB of memory",
            "give the VM less memory or fewer GPUs",
        )
