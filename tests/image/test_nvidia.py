# SPDX-License-Identifier: Apache-2.0
"""Which of NVIDIA's packages fit together, told by packages of their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmctl.core.errors import BadRequest, VersionMismatch
from imagebuild import nvidia
from imagebuild.lock import Lock
from imagebuild.tree import Tree
from tests.image import nvidia as stub

KERNEL = "6.1.0-1-amd64"
LOCK = Lock(0, (), ())


def test_a_whole_set_is_read(tmp_path: Path) -> None:
    stub.fabric_manager(tmp_path)
    stub.precompiled(tmp_path, KERNEL, b"module")
    stub.deb(tmp_path, "linux-modules-nvidia-580-x", {}, "6.1.0-40.40")
    theirs = nvidia.read(tmp_path, "580")
    assert theirs.versions == {"driver": "580.95.05", "fabric_manager": "580.95.05", "nvlsm": "2025.03.1"}
    assert theirs.packages["nvidia-fabricmanager"] == "580.95.05-1"


def test_the_package_of_another_version_is_named(tmp_path: Path) -> None:
    stub.fabric_manager(tmp_path)
    stub.deb(tmp_path, "libnvidia-nscq", {}, "580.82.07-1")
    with pytest.raises(VersionMismatch) as caught:
        nvidia.read(tmp_path, "580")
    assert "libnvidia-nscq has 580.82.07" in caught.value.why


@pytest.mark.parametrize("branch", ["570", "58", "580.9"])
def test_another_branch_is_refused(tmp_path: Path, branch: str) -> None:
    stub.fabric_manager(tmp_path)
    with pytest.raises(VersionMismatch, match="is not of branch"):
        nvidia.read(tmp_path, branch)


def test_a_folder_without_fabric_manager_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="no NVIDIA packages"):
        nvidia.read(tmp_path, "580")
    stub.precompiled(tmp_path, KERNEL, b"module")
    with pytest.raises(BadRequest, match="one package of Fabric Manager"):
        nvidia.read(tmp_path, "580")


def test_precompiled_modules_go_in_and_units_are_masked(tmp_path: Path) -> None:
    stub.fabric_manager(tmp_path)
    stub.precompiled(tmp_path, KERNEL, b"module")
    root = Tree()
    theirs = nvidia.read(tmp_path, "580")
    assert nvidia.add(theirs, root, KERNEL, LOCK, "root", tmp_path / "scratch") == ["nvidia"]
    assert root[f"usr/lib/modules/{KERNEL}/updates/nvidia.ko"].content
    assert root["etc/systemd/system/nvidia-fabricmanager.service"].link == "/dev/null"
    assert root["usr/bin/nv-fabricmanager"].mode == 0o755


def test_modules_of_another_kernel_are_named(tmp_path: Path) -> None:
    stub.fabric_manager(tmp_path)
    stub.precompiled(tmp_path, "5.10.0-1-amd64", b"module")
    with pytest.raises(BadRequest, match=f"no kernel module for {KERNEL}") as caught:
        nvidia.add(nvidia.read(tmp_path, "580"), Tree(), KERNEL, LOCK, "root", tmp_path / "scratch")
    assert "5.10.0-1-amd64" in caught.value.why


def test_a_missing_library_is_named(tmp_path: Path) -> None:
    stub.deb(tmp_path, "nvidia-fabricmanager-580", {"usr/bin/nv-fabricmanager": stub.PROGRAM})
    with pytest.raises(BadRequest, match="not complete") as caught:
        nvidia.add(nvidia.read(tmp_path, "580"), Tree(), KERNEL, LOCK, "root", tmp_path / "scratch")
    assert "libnvfm.so.1" in caught.value.why
