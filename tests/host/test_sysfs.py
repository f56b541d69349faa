# SPDX-License-Identifier: Apache-2.0
"""The reader on trees that real kernels make now and then."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from fmctl import platforms
from fmctl.core.pci import Bdf, FunctionState, PciId
from fmctl.host.sysfs import Sysfs
from fmctl.sim.sysfs import SimulatedBus
from tests import sysfs_tree

GPU = Bdf.parse("0000:17:00.0")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    sysfs_tree.write(SimulatedBus(platforms.load("hgx-h100-8")), tmp_path)
    return tmp_path


def test_a_host_without_pci_has_no_functions(tmp_path: Path) -> None:
    assert Sysfs(tmp_path).functions() == ()


def test_a_function_whose_folder_goes_while_it_is_read_is_left_out(tree: Path) -> None:
    shutil.rmtree(sysfs_tree.folder(tree, GPU).resolve())
    assert GPU not in {function.bdf for function in Sysfs(tree).functions()}
    assert Sysfs(tree).state(GPU) is None


@pytest.mark.parametrize(
    "attribute", ["numa_node", "subsystem_vendor", "current_link_speed", "resource", "reset_method"]
)
@pytest.mark.parametrize("content", [None, "", "Unknown\n", "\xff\xff"], ids=["missing", "empty", "unknown", "garbage"])
def test_an_odd_attribute_costs_no_more_than_itself(tree: Path, attribute: str, content: str | None) -> None:
    file = sysfs_tree.folder(tree, GPU) / attribute
    file.unlink()
    if content is not None:
        file.write_text(content, "latin-1")
    (function,) = (f for f in Sysfs(tree).functions() if f.bdf == GPU)
    assert str(function.id) == "10de:2330"
    state = Sysfs(tree).state(GPU)
    assert state is not None and state.answers


def test_registers_of_all_ones_mean_that_it_does_not_answer(tree: Path) -> None:
    (sysfs_tree.folder(tree, GPU) / "config").write_bytes(b"\xff" * 64)
    assert Sysfs(tree).state(GPU) == FunctionState(answers=False)


def test_a_link_of_unknown_speed_is_no_link(tree: Path) -> None:
    (sysfs_tree.folder(tree, GPU) / "current_link_speed").write_text("Unknown speed\n")
    state = Sysfs(tree).state(GPU)
    assert state is not None and state.link is None


def test_a_driver_and_a_group_are_read_anew_at_each_look(tree: Path) -> None:
    sysfs, folder = Sysfs(tree), sysfs_tree.folder(tree, GPU)
    before = sysfs.function(GPU)
    assert before is not None and before.driver == ""
    (folder / "driver").symlink_to("../../../bus/pci/drivers/vfio-pci")
    (folder / "iommu_group").unlink()
    (folder / "iommu_group").symlink_to("../../../kernel/iommu_groups/77")
    assert sysfs.function(GPU) == replace(before, driver="vfio-pci", iommu_group=77)
    (folder / "driver").unlink()
    assert GPU in {function.bdf for function in sysfs.functions() if not function.driver}


def test_another_function_at_an_address_is_told_from_the_one_before(tree: Path) -> None:
    sysfs, folder = Sysfs(tree), sysfs_tree.folder(tree, GPU).resolve()
    (before,) = (function for function in sysfs.functions() if function.bdf == GPU)
    put = folder.with_name("put")
    shutil.copytree(folder, put, symlinks=True)
    (put / "device").write_text("0x22a3\n")
    shutil.rmtree(folder)
    put.rename(folder)
    assert sysfs.function(GPU) == replace(before, id=PciId(0x10DE, 0x22A3))
    shutil.rmtree(folder)
    assert sysfs.function(GPU) is None
    assert GPU not in {function.bdf for function in sysfs.functions()}


def test_the_functions_of_this_machine_can_be_read() -> None:
    sysfs = Sysfs()
    for function in sysfs.functions():
        sysfs.state(function.bdf)
