# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a kernel, by what users write on its command line and by what it has loaded."""

from __future__ import annotations

import pytest

from fmctl.core import hazards
from fmctl.core.finding import Finding
from fmctl.core.kernel import AMD, INTEL
from fmctl.sim.kernel import SimulatedKernel


def judged(kernel: SimulatedKernel) -> tuple[Finding, ...]:
    return hazards.judge(kernel.facts())


def booted(*parameters: str, vendor: str = INTEL) -> tuple[Finding, ...]:
    kernel = SimulatedKernel(vendor)
    kernel.boot_with(*parameters)
    return judged(kernel)


def off(*parameters: str, vendor: str = INTEL) -> Finding:
    """What is said where the IOMMU is off, with these parameters alone."""
    kernel = SimulatedKernel(vendor)
    kernel.change(iommus=(), command_line=parameters, interrupt_chips=("IO-APIC",))
    (finding,) = judged(kernel)
    return finding


@pytest.mark.parametrize("vendor", [INTEL, AMD])
def test_nothing_is_wrong_with_a_host_that_is_set_up_well(vendor: str) -> None:
    assert judged(SimulatedKernel(vendor)) == ()


@pytest.mark.parametrize(
    "parameter",
    [
        "iommu=pt",
        "iommu.passthrough=1",
        "iommu.strict=0",
        "intel_iommu=on,sm_on",
        "amd_iommu=force_isolation",
        "amd_iommu=off",
        "pci=noaer",
        "pci=realloc,pcie_bus_perf",
        "pci=noacsx",
        "pci=config_acs=xx111x1@pci:0:0",
        "pci=config_acs=0xxxxxx@0000:00:01.0",
        "pci=config_acs=10x@0000:00:01.0",
        "intremap=on",
        "intremap=no_x2apic_optout",
        "vfio.enable_unsafe_noiommu_mode=0",
        "vfio.enable_unsafe_noiommu_mode=N",
        "vfio.enable_unsafe_noiommu_mode=off",
        "vfio_iommu_type1.allow_unsafe_interrupts=n",
        "vfio_iommu_type1.dma_entry_limit=1",
        "vfio.allow_unsafe_interrupts=1",
        "vfio-pci.ids=10de:2330",
        "acs_override",
        "kvm.intremap=off",
    ],
)
def test_what_others_set_is_no_hazard(parameter: str) -> None:
    assert booted(parameter) == ()


@pytest.mark.parametrize(
    ("parameter", "name", "shown"),
    [
        ("pcie_acs_override=downstream,multifunction", "pcie-acs-override", None),
        ("pcie-acs-override=id:10de:2330", "pcie-acs-override", "pcie_acs_override=id:10de:2330"),
        ("pci_acs_override=downstream", "pcie-acs-override", None),
        ("pcie_acs_override", "pcie-acs-override", None),
        ("pci=noacs", "pci-noacs", None),
        ("pci=noaer,noacs", "pci-noacs", "pci=noacs"),
        ("pci=disable_acs_redir=0000:00:01.0", "disable-acs-redir", None),
        (
            "pci=noaer,disable_acs_redir=0000:00:01.0;pci:8086:352a",
            "disable-acs-redir",
            "pci=disable_acs_redir=0000:00:01.0;pci:8086:352a",
        ),
        ("pci=config_acs=0000000@pci:0:0", "config-acs", None),
        ("pci=config_acs=xxxxxx0@0000:00:01.0", "config-acs", None),
        ("pci=config_acs=xxxx0xx@0000:00:01.0", "config-acs", None),
        ("pci=config_acs=xxx0xxx@0000:00:01.0", "config-acs", None),
        ("pci=config_acs=xx0xxxx@0000:00:01.0", "config-acs", None),
        ("pci=config_acs=x1xxxxx@0000:00:01.0", "config-acs", None),
        ("pci=config_acs=1111111@0000:00:01.0;101xxxx@0000:00:02.0", "config-acs", None),
        ("vfio.enable_unsafe_noiommu_mode=1", "noiommu-mode", None),
        ("vfio.enable_unsafe_noiommu_mode=Y", "noiommu-mode", None),
        ("vfio.enable_unsafe_noiommu_mode=on", "noiommu-mode", None),
        ("vfio.enable_unsafe_noiommu_mode=true", "noiommu-mode", None),
        ("vfio.enable_unsafe_noiommu_mode", "noiommu-mode", None),
        ("vfio_iommu_type1.allow_unsafe_interrupts=1", "unsafe-interrupts", None),
        (
            "vfio-iommu-type1.allow-unsafe-interrupts=Y",
            "unsafe-interrupts",
            "vfio_iommu_type1.allow_unsafe_interrupts=Y",
        ),
        ("iommufd.allow_unsafe_interrupts=y", "unsafe-interrupts", None),
        ("intremap=off", "interrupt-remapping-off", None),
        ("intremap=nopost,nosid", "interrupt-remapping-off", "intremap=nosid"),
        ("nointremap", "interrupt-remapping-off", None),
    ],
)
def test_a_parameter_that_gives_up_isolation_is_refused_by_name(parameter: str, name: str, shown: str | None) -> None:
    (finding,) = booted(parameter)
    assert finding.name == name
    assert finding.what.endswith(f": {shown or parameter}")
    assert finding.why
    assert "the kernel's command line" in finding.fix and "reboot" in finding.fix


def test_two_words_of_one_hazard_are_one_finding_and_told_once_each() -> None:
    (finding,) = booted("pci=noacs", "pci=nomsi,noacs", "pcie_acs_override=a", "pcie_acs_override=b")[1:]
    assert finding.what.endswith(": pci=noacs")
    (override, _) = booted("pci=noacs", "pcie_acs_override=a", "pcie_acs_override=b")
    assert override.what.endswith(": pcie_acs_override=a, pcie_acs_override=b")


def test_what_a_loaded_module_says_counts_as_well() -> None:
    kernel = SimulatedKernel()
    kernel.load("vfio", "Y")
    kernel.load("vfio_iommu_type1", "Y")
    noiommu, interrupts = judged(kernel)
    assert (noiommu.name, interrupts.name) == ("noiommu-mode", "unsafe-interrupts")
    assert "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode is Y" in noiommu.what
    assert "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts is Y" in interrupts.what
    assert "/etc/modprobe.d" in noiommu.fix and "/etc/modprobe.d" in interrupts.fix
    kernel = SimulatedKernel()
    kernel.load("iommufd", "Y")
    assert "/sys/module/iommufd/" in judged(kernel)[0].what


def test_a_group_that_vfio_made_without_an_iommu_is_found() -> None:
    kernel = SimulatedKernel()
    kernel.change(vfio_groups=("11", "noiommu-3"))
    (finding,) = judged(kernel)
    assert finding.name == "noiommu-mode"
    assert finding.what.endswith(": /sys/class/vfio/noiommu-3 is there")


def test_interrupts_that_are_not_remapped_are_found_without_any_parameter() -> None:
    kernel = SimulatedKernel()
    kernel.change(interrupt_chips=("IO-APIC",))
    (finding,) = judged(kernel)
    assert finding.name == "interrupt-remapping-off"
    assert "IR-IO-APIC" in finding.what and "firmware" in finding.fix
    kernel.change(interrupt_chips=())
    assert judged(kernel) == ()


def test_an_intel_host_without_iommu_is_told_the_parameter_and_the_firmware_s_switch() -> None:
    finding = off("ro")
    assert (finding.name, finding.what) == ("iommu-off", "the IOMMU is off")
    assert (
        finding.fix
        == "add intel_iommu=on to the kernel's command line, switch VT-d on in the firmware's setup, and reboot"
    )


@pytest.mark.parametrize("parameter", ["intel_iommu=off", "iommu=off", "intel_iommu=sm_on,off"])
def test_what_switched_the_iommu_off_is_named(parameter: str) -> None:
    finding = off(parameter)
    assert finding.what == f"the IOMMU is off: {parameter}"
    assert finding.fix.startswith(f"take {parameter} off the kernel's command line, add intel_iommu=on")


def test_a_host_that_already_has_the_parameter_is_sent_to_the_firmware() -> None:
    assert off("intel_iommu=on,sm_on").fix == "switch VT-d on in the firmware's setup, and reboot"


def test_an_amd_host_needs_no_parameter() -> None:
    assert off("ro", vendor=AMD).fix == "switch the IOMMU (AMD-Vi) on in the firmware's setup, and reboot"
    finding = off("amd_iommu=off", "intel_iommu=off", vendor=AMD)
    assert finding.what == "the IOMMU is off: amd_iommu=off"
    assert "take amd_iommu=off off the kernel's command line" in finding.fix


def test_a_host_of_another_vendor_is_told_what_holds_for_all() -> None:
    kernel = SimulatedKernel()
    kernel.change(iommus=(), vendor="")
    assert judged(kernel)[0].fix == "switch the IOMMU on in the firmware's setup, and reboot"


def test_vfio_pci_must_be_loaded() -> None:
    kernel = SimulatedKernel()
    kernel.unload("vfio_pci")
    (finding,) = judged(kernel)
    assert (finding.name, finding.what) == ("vfio-pci-not-loaded", "the driver vfio-pci is not loaded")
    assert "modprobe vfio-pci" in finding.fix and "fmctl host prepare --write" in finding.fix


def test_a_kernel_without_vfio_pci_is_named() -> None:
    kernel = SimulatedKernel()
    kernel.unload("vfio_pci")
    kernel.change(has_vfio_pci=False)
    (finding,) = judged(kernel)
    assert finding.name == "vfio-pci-missing"
    assert "6.8.0-60-generic" in finding.what and "CONFIG_VFIO_PCI" in finding.fix


def test_all_drivers_of_gpus_are_named_at_once() -> None:
    kernel = SimulatedKernel()
    for module in ("nvidia", "nvidia_uvm"):
        kernel.load(module)
    (finding,) = judged(kernel)
    assert finding.what.endswith(": nvidia_uvm, nvidia") and "`modprobe -r nvidia_uvm nvidia`" in finding.fix


@pytest.mark.parametrize(
    "module",
    [
        "nouveau",
        "nova_core",
        "nvidia",
        "nvidia_drm",
        "nvidia_modeset",
        "nvidia_peermem",
        "nvidia_uvm",
        "nvidiafb",
    ],
)
def test_a_driver_of_gpus_on_the_host_is_named(module: str) -> None:
    kernel = SimulatedKernel()
    kernel.load(module)
    (finding,) = judged(kernel)
    assert (finding.name, finding.what) == (
        "gpu-driver-loaded",
        f"drivers of GPUs are loaded on the host: {module}",
    )
    assert f"modprobe -r {module}" in finding.fix and "fmctl host prepare --write" in finding.fix
