# SPDX-License-Identifier: Apache-2.0
"""What goes into the emulated host at each run: fmctl as the checkout has it, installed, and the images with its agent.

It is a small disk, mounted read-only at /lab, so that a change of fmctl rebuilds no image.
"""

from __future__ import annotations

import compileall
import py_compile
import shutil
from pathlib import Path

from fmctl import process
from tests.lab import guests
from tests.lab.images import HERE, ROOT, Images

SIZE = "1G"

_OURS = shutil.ignore_patterns("__pycache__", "*.so", "hostvm", "servicevm", "tenantvm")


def make(images: Images, scratch: Path) -> Path:
    """Make the disk in an empty folder; raises FmctlError."""
    tree, disk = scratch / "disk", scratch / "payload.ext4"
    _install(images, tree / "root")
    _source(tree / "src", "fmctl", "tests", "vm-templates", "service-vm")
    shutil.copytree(HERE / "etc", tree / "etc")
    shutil.copy2(HERE / "lab.yaml", tree)
    folder = tree / "guests"
    folder.mkdir()
    for file in (images.kernel, images.tenant_vm, images.bare):
        shutil.copy2(file, folder)
    guests.make(images, tree / "service-vm", tree / "etc/fmctl/image.pub", scratch)
    process.run(["mke2fs", "-q", "-t", "ext4", "-E", "root_owner=0:0", "-d", str(tree), str(disk), SIZE], timeout=120)
    shutil.rmtree(tree)
    return disk


def _install(images: Images, root: Path) -> None:
    """`make install`, as whoever makes a package does it."""
    process.run(
        ["make", "--no-print-directory", "-C", str(ROOT), "install", f"DESTDIR={root}", f"WHEELS={_wheels(images)}"],
        timeout=300,
    )


def _wheels(images: Images) -> Path:
    """The folder of wheels: fmctl's own made anew, those that it needs kept with the images."""
    wheels = images.folder.parent / ".wheels"
    for wheel in wheels.glob("fmctl-*.whl"):
        wheel.unlink()
    process.run(["make", "--no-print-directory", "-C", str(ROOT), "wheels", f"WHEELS={wheels}"], timeout=600)
    return wheels


def _source(target: Path, *names: str) -> None:
    """Copy folders of the checkout that are there, with their Python compiled, which is slow under emulation."""
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=_OURS)
    compileall.compile_dir(target, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
