# SPDX-License-Identifier: Apache-2.0
"""Initial RAM disks for the VMs in the emulated host that are not the Service VM: busybox, and an init of the lab's."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from fmctl import process


def busybox(root: Path, files: Path, archive: Path) -> None:
    """Write one with busybox from that root file system, and those files."""
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch)
        for folder in ("bin", "dev"):
            (tree / folder).mkdir()
        shutil.copy2(root / "usr/bin/busybox", tree / "bin/busybox")
        (tree / "bin/sh").symlink_to("busybox")
        shutil.copytree(files, tree, dirs_exist_ok=True)
        _pack(tree, archive)


def _pack(tree: Path, archive: Path) -> None:
    command = 'cd "$1" && find . -mindepth 1 | sort | cpio --quiet --create --format=newc --owner=+0:+0 >"$2"'
    process.run(["sh", "-ec", command, "sh", str(tree), str(archive.absolute())], timeout=120)
