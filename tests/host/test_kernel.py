# SPDX-License-Identifier: Apache-2.0
"""The reader on files that real kernels and distributions make."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmctl.core.kernel import AMD, INTEL, KernelFacts
from fmctl.host.kernel import HostKernel
from fmctl.sim.kernel import SimulatedKernel
from tests import kernel_tree
from tests.kernel_tree import module_list, put

RELEASE = SimulatedKernel().facts().release


def test_a_host_that_shows_nothing_has_nothing(tmp_path: Path) -> None:
    assert HostKernel(tmp_path).facts() == KernelFacts()


@pytest.mark.parametrize("suffix", [".ko", ".ko.xz", ".ko.gz", ".ko.zst"])
@pytest.mark.parametrize("name", ["vfio-pci", "vfio_pci"])
def test_a_module_is_found_as_distributions_store_it(tmp_path: Path, name: str, suffix: str) -> None:
    put(tmp_path / "proc/sys/kernel/osrelease", RELEASE)
    put(tmp_path / "lib/modules" / RELEASE / "modules.dep", module_list(f"vfio/pci/{name}", suffix=suffix))
    assert HostKernel(tmp_path).facts().has_vfio_pci


def test_a_module_that_is_built_in_is_found(tmp_path: Path) -> None:
    put(tmp_path / "proc/sys/kernel/osrelease", RELEASE)
    put(tmp_path / "lib/modules" / RELEASE / "modules.builtin", "kernel/drivers/vfio/pci/vfio-pci.ko")
    assert HostKernel(tmp_path).facts().has_vfio_pci


@pytest.mark.parametrize("name", ["mlx5-vfio-pci", "vfio-pci-core", "vfio-pcix"])
def test_a_module_of_another_name_is_not_taken_for_it(tmp_path: Path, name: str) -> None:
    put(tmp_path / "proc/sys/kernel/osrelease", RELEASE)
    dependencies = f"kernel/drivers/a.ko: kernel/drivers/vfio/pci/vfio-pci.ko\n{module_list(f'vfio/pci/{name}')}"
    put(tmp_path / "lib/modules" / RELEASE / "modules.dep", dependencies)
    assert not HostKernel(tmp_path).facts().has_vfio_pci


def test_the_modules_of_another_kernel_do_not_count(tmp_path: Path) -> None:
    put(tmp_path / "proc/sys/kernel/osrelease", RELEASE)
    put(tmp_path / "lib/modules/6.1.0/modules.dep", module_list("vfio/pci/vfio-pci"))
    assert not HostKernel(tmp_path).facts().has_vfio_pci


def test_other_interrupts_than_the_first_sixteen_do_not_count(tmp_path: Path) -> None:
    put(tmp_path / "sys/kernel/irq/15/chip_name", "IO-APIC")
    put(tmp_path / "sys/kernel/irq/16/chip_name", "IR-PCI-MSI")
    assert HostKernel(tmp_path).facts().interrupt_chips == ("IO-APIC",)


@pytest.mark.parametrize("vendor", [INTEL, AMD])
def test_the_vendor_is_as_the_kernel_writes_it(tmp_path: Path, vendor: str) -> None:
    put(tmp_path / "proc/cpuinfo", f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: 6\n")
    assert HostKernel(tmp_path).facts().vendor == vendor
    assert (INTEL, AMD) == ("GenuineIntel", "AuthenticAMD")


def test_what_a_module_says_now_counts(tmp_path: Path) -> None:
    kernel_tree.load(tmp_path, "vfio", "N")
    kernel = HostKernel(tmp_path)
    assert kernel.facts().modules == {"vfio": "N"}
    kernel_tree.load(tmp_path, "vfio", "Y")
    assert kernel.facts().modules == {"vfio": "Y"}


def test_the_kernel_of_this_machine_can_be_read() -> None:
    facts = HostKernel().facts()
    assert facts.release and facts.command_line
