# SPDX-License-Identifier: Apache-2.0
"""What a host lacks for a tenant VM."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fmctl.core import gpumap, tenantcheck, tenantvm
from fmctl.core.capacity import Capacity, Node
from fmctl.core.finding import Finding
from fmctl.core.settings import HugePages, MapRegions, TenantVmSettings
from fmctl.core.tenantvm import Host, Request
from tests.domains import inventory

H100 = inventory("hgx-h100-8")
GIB = 1024 * 1024
NODES = {0: Node(0, "0-7", {2048: 0, GIB: 32}), 1: Node(1, "8-15", {2048: 100, GIB: 31})}


def judge(
    *gpu_ids: int, capacity: Capacity, qemu: tuple[int, int] | None = (10, 1), **changes: Any
) -> tuple[Finding, ...]:
    host = Host(H100, gpumap.in_order(H100), capacity, qemu)
    made = tenantvm.tenant_vm(replace(TenantVmSettings(), **changes), Request(gpu_ids), host)
    return tenantcheck.judge(made, capacity, qemu)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright (c) 2003-2022 ...", (7, 2)),
        ("QEMU emulator version 10.1.0", (10, 1)),
        ("10.1", (10, 1)),
        ("10.2.1", (10, 2)),
        ("ten", None),
        ("", None),
        ("a 10.1", None),
    ],
)
def test_the_version_is_found_in_what_qemu_says(text: str, version: tuple[int, int] | None) -> None:
    assert tenantcheck.qemu_version(text) == version


def test_ordinary_pages_need_nothing() -> None:
    assert judge(*range(1, 9), capacity=Capacity(NODES)) == ()


def test_each_node_must_have_its_part_of_the_huge_pages() -> None:
    (found,) = judge(*range(1, 9), capacity=Capacity(NODES), huge_pages=HugePages.GIB_1)
    assert found.name == "huge-pages-missing"
    assert found.what == "NUMA node 1 has 31 free huge pages of 1048576 KiB, and the VM needs 32"
    assert found.fix == (
        "add 1 to /sys/devices/system/node/node1/hugepages/hugepages-1048576kB/nr_hugepages,"
        " or let the kernel do so when it boots"
    )
    assert judge(*range(1, 9), capacity=Capacity(NODES), huge_pages=HugePages.GIB_1, memory_gib=62) == ()


def test_pages_of_another_size_do_not_help() -> None:
    found = judge(1, 3, capacity=Capacity(NODES), huge_pages=HugePages.MIB_2, memory_gib=1)
    assert [finding.what for finding in found] == [
        "NUMA node 0 has 0 free huge pages of 2048 KiB, and the VM needs 512"
    ]


def test_where_the_node_is_not_known_the_pages_of_the_whole_host_count() -> None:
    (found,) = judge(1, 3, capacity=Capacity(free_pages={GIB: 8}), huge_pages=HugePages.GIB_1, memory_gib=10)
    assert found.what == "the host has 8 free huge pages of 1048576 KiB, and the VM needs 10"
    assert found.fix.startswith("add 2 to /sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages")


def test_a_qemu_that_maps_large_regions_slowly_is_told_where_it_is_to_map_them() -> None:
    always = {"map_regions": MapRegions.ALWAYS}
    (found,) = judge(1, capacity=Capacity(NODES), qemu=(8, 2), **always)
    assert (found.name, found.what) == (
        "large-regions-mapped",
        "QEMU is 8.2, and is to map memory regions of 128 GiB",
    )
    assert found.fix == "install QEMU 10.1, or set tenant_vm.map_regions to auto or never"
    (found,) = judge(1, capacity=Capacity(NODES), qemu=None, **always)
    assert found.what == "QEMU's version is not known, and is to map memory regions of 128 GiB"
    assert judge(1, capacity=Capacity(NODES), qemu=(10, 1), **always) == ()
    assert judge(1, capacity=Capacity(NODES), qemu=(8, 2)) == ()


@pytest.mark.parametrize(("bits", "is_enough"), [(43, True), (42, False), (None, True)])
def test_the_window_must_be_within_the_host_s_addresses(bits: int | None, *, is_enough: bool) -> None:
    found = judge(*range(1, 9), capacity=Capacity(NODES, address_bits=bits))
    assert [finding.name for finding in found] == ([] if is_enough else ["mmio-window-too-high"])
    for finding in found:
        assert finding.what.endswith("needs addresses of 43 bits, and this host has 42")
        assert finding.why == "4096 GiB must lie above the VM's 64 GiB of memory"


def test_small_regions_are_no_matter() -> None:
    lab = inventory("lab")
    host = Host(lab, gpumap.in_order(lab), Capacity(), None)
    made = tenantvm.tenant_vm(TenantVmSettings(map_regions=MapRegions.ALWAYS), Request((1,)), host)
    assert tenantcheck.judge(made, Capacity(address_bits=40), (7, 2)) == ()
