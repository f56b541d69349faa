# SPDX-License-Identifier: Apache-2.0
"""What both sides of the port `Kernel` say of the same host: pretended in memory, and read from files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fmctl.core.kernel import AMD, INTEL, KernelFacts
from fmctl.core.ports import Kernel
from fmctl.host.kernel import HostKernel
from fmctl.sim.kernel import SimulatedKernel
from tests import kernel_tree

View = Callable[[SimulatedKernel], KernelFacts]


def in_memory(simulated: Kernel) -> KernelFacts:
    return simulated.facts()


@pytest.fixture(params=["memory", "files"])
def view(request: pytest.FixtureRequest, tmp_path: Path) -> View:
    """How one side shows a pretended host."""

    def in_files(simulated: Kernel) -> KernelFacts:
        facts = simulated.facts()
        kernel_tree.write(facts, tmp_path)
        boot_image, *command_line = HostKernel(tmp_path).facts().command_line
        assert boot_image == "BOOT_IMAGE=/boot/vmlinuz"
        kernel_tree.put(tmp_path / "proc/cmdline", " ".join(command_line))
        return HostKernel(tmp_path).facts()

    return in_memory if request.param == "memory" else in_files


@pytest.mark.parametrize("vendor", [INTEL, AMD])
def test_a_host_says_that_it_is_set_up_well(view: View, vendor: str) -> None:
    facts = view(SimulatedKernel(vendor))
    assert facts == SimulatedKernel(vendor).facts()
    assert (facts.vendor, bool(facts.iommus), facts.has_vfio_pci) == (vendor, True, True)
    assert "iommu=pt" in facts.command_line
    assert facts.modules == {"vfio_pci": "", "vfio": "N", "vfio_iommu_type1": "N"}
    assert (facts.interrupt_chips, facts.release) == (("IR-IO-APIC",), "6.8.0-60-generic")


def test_a_module_is_there_with_the_parameter_that_matters(view: View) -> None:
    simulated = SimulatedKernel()
    simulated.load("vfio", "Y")
    simulated.load("nvidia")
    modules = view(simulated).modules
    assert (modules["vfio"], modules["nvidia"]) == ("Y", "")


def test_a_module_that_is_not_loaded_is_still_found(view: View) -> None:
    simulated = SimulatedKernel()
    simulated.unload("vfio_pci")
    facts = view(simulated)
    assert ("vfio_pci" in facts.modules, facts.has_vfio_pci) == (False, True)


def test_a_module_that_is_nowhere_is_not(view: View) -> None:
    simulated = SimulatedKernel()
    simulated.unload("vfio_pci")
    simulated.change(has_vfio_pci=False)
    assert not view(simulated).has_vfio_pci


def test_a_host_without_an_iommu_has_none(view: View) -> None:
    simulated = SimulatedKernel()
    simulated.change(iommus=())
    simulated.boot_with("intel_iommu=off")
    facts = view(simulated)
    assert (facts.iommus, facts.command_line[-1]) == ((), "intel_iommu=off")


def test_groups_without_an_iommu_are_named(view: View) -> None:
    simulated = SimulatedKernel()
    simulated.change(vfio_groups=("12", "noiommu-3"))
    assert view(simulated).vfio_groups == ("12", "noiommu-3")
