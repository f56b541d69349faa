# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import pytest

from fmctl.core.hostprep import FileState, HostFile, Preparation, compare, plan
from fmctl.core.kernel import AMD, GPU_DRIVERS, INTEL
from fmctl.sim.kernel import SimulatedKernel


def planned(*parameters: str, iommus: tuple[str, ...] = ("dmar0",), vendor: str = INTEL) -> Preparation:
    return plan(replace(SimulatedKernel(vendor).facts(), command_line=parameters, iommus=iommus))


def test_a_host_that_is_set_up_well_needs_its_files_alone() -> None:
    prepared = plan(SimulatedKernel().facts())
    assert (prepared.add, prepared.take_off, prepared.firmware) == ((), (), "")
    assert [file.path for file in prepared.files] == ["etc/modules-load.d/fmctl.conf", "etc/modprobe.d/fmctl.conf"]


def test_an_intel_host_without_iommu_gets_the_parameter() -> None:
    prepared = planned("ro", iommus=())
    assert (prepared.add, prepared.take_off, prepared.firmware) == (("intel_iommu=on",), (), "VT-d")


def test_an_amd_host_without_iommu_needs_the_firmware_alone() -> None:
    prepared = planned("ro", iommus=(), vendor=AMD)
    assert (prepared.add, prepared.take_off, prepared.firmware) == ((), (), "the IOMMU (AMD-Vi)")


def test_what_is_refused_and_what_switches_the_iommu_off_is_to_be_taken_off() -> None:
    prepared = planned("pci=noaer,noacs", "pcie_acs_override=downstream", "pci=noacs", "intel_iommu=off", iommus=())
    assert prepared.take_off == ("pci=noacs", "pcie_acs_override=downstream", "intel_iommu=off")


def test_what_would_switch_the_iommu_off_may_stay_where_it_is_on() -> None:
    assert planned("intel_iommu=off", "intel_iommu=on").take_off == ()


def lines(prepared: Preparation, path: str) -> list[str]:
    (file,) = (file for file in prepared.files if file.path == path)
    return file.text.splitlines()


def test_the_modules_that_fmctl_needs_are_loaded_at_boot() -> None:
    entries = [line for line in lines(planned(), "etc/modules-load.d/fmctl.conf") if not line.startswith("#")]
    assert entries == ["vfio-pci", "vhost_vsock"]


def test_drivers_of_gpus_are_kept_away_by_themselves_and_by_name() -> None:
    found = lines(planned(), "etc/modprobe.d/fmctl.conf")
    for module in GPU_DRIVERS:
        assert f"blacklist {module}" in found
        assert f"install {module} /bin/false" in found
    assert "options vfio_pci disable_idle_d3=1" in found
    assert not [line for line in found if "ids=" in line or "mlx5" in line]


def test_every_line_of_the_files_is_one_that_the_tools_know() -> None:
    words = {line.split()[0] for line in lines(planned(), "etc/modprobe.d/fmctl.conf") if line}
    assert words == {"#", "blacklist", "install", "options"}


@pytest.mark.parametrize("file", plan(SimulatedKernel().facts()).files, ids=lambda file: file.path)
def test_what_lies_in_a_file_s_place_is_told_apart(file: HostFile) -> None:
    first, _, rest = file.text.partition("\n")
    assert compare(file, None) is FileState.MISSING
    assert compare(file, file.text) is FileState.SAME
    assert compare(file, f"{file.text}options vfio_pci ids=10de:2330\n") is FileState.FOREIGN
    assert compare(file, rest) is FileState.FOREIGN
    assert compare(file, "") is FileState.FOREIGN
    assert compare(file, f"{first}\n") is FileState.FOREIGN
    assert compare(file, file.text.replace("vfio", "VFIO")) is FileState.FOREIGN


def test_what_another_version_of_fmctl_wrote_is_outdated() -> None:
    now, other = plan(SimulatedKernel().facts()).files
    assert compare(now, other.text) is FileState.OUTDATED


def test_bytes_of_no_encoding_are_somebody_else_s() -> None:
    file = plan(SimulatedKernel().facts()).files[0]
    assert compare(file, "# caf\udce9\n# caf\udce9\nvfio-pci\n") is FileState.FOREIGN
