# SPDX-License-Identifier: Apache-2.0
"""What goes into the emulated host at each run: fmctl as the checkout has it, and the VMs' images with it.

It is a small disk, mounted read-only at /lab, so that a change of fmctl rebuilds no image.
"""

from __future__ import annotations

import compileall
import py_compile
import shutil
from pathlib import Path

from fmctl import process
from fmctl.sim import shim
from tests.lab import initrd
from tests.lab.images import HERE, ROOT, Images

_OURS = shutil.ignore_patterns("__pycache__", "*.so", "hostvm", "servicevm", "tenantvm")


def make(images: Images, scratch: Path) -> Path:
    """Make the disk in an empty folder; raises FmctlError."""
    tree, service_vm, disk = scratch / "disk", scratch / "service-vm", scratch / "payload.ext4"
    library = shim.build() / shim.SONAME
    _source(tree / "src", "fmctl", "tests", "vm-templates")
    _source(service_vm / "lab/src", "fmctl")
    for target in (tree, service_vm / "lab"):
        shutil.copy2(HERE / "lab.yaml", target)
        shutil.copy2(library, target)
    shutil.copy2(HERE / "agent.yaml", service_vm / "lab")
    shutil.copytree(HERE / "etc", tree / "etc")
    folder = tree / "images"
    folder.mkdir()
    shutil.copy2(images.kernel, folder / "vmlinuz")
    shutil.copy2(images.tenant_vm, folder / "tenant-vm.cpio")
    initrd.pack(service_vm, scratch / "fmctl.cpio")
    with (folder / "service-vm.cpio").open("wb") as whole:
        for part in (images.service_vm, scratch / "fmctl.cpio"):
            with part.open("rb") as stream:
                shutil.copyfileobj(stream, whole)
    process.run(["mke2fs", "-q", "-t", "ext4", "-E", "root_owner=0:0", "-d", str(tree), str(disk), "192M"], timeout=60)
    return disk


def _source(target: Path, *names: str) -> None:
    """Copy folders of the checkout that are there, with their Python compiled, which is slow under emulation."""
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=_OURS)
    compileall.compile_dir(target, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
