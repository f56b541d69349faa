# SPDX-License-Identifier: Apache-2.0
"""Initial RAM disks for the VMs in the emulated host, cut out of its root file system.

Small counts: two emulators unpack them, one in the other. So Python goes in without its sources and without the
modules that nothing here imports.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from fmctl import process

MODULES = ("virtio_pci", "vmw_vsock_virtio_transport", "button", "evdev")
"""Kernel modules that the Service VM loads; button and evdev let libvirt shut it down."""

APPLETS = (
    *("sh", "init", "mount", "mkdir", "insmod", "ip", "hostname", "poweroff", "acpid", "cat", "echo", "grep"),
    *("kill", "pidof", "ps", "sync", "tail", "sleep"),
)

PYTHON = "usr/lib/python3.11"
UNUSED = (
    *("__pycache__", "config-*", "distutils", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "sqlite3", "test"),
    *("tkinter", "turtledemo", "unittest", "venv", "wsgiref", "curses", "dbm", "turtle*", "_pydecimal*"),
    *("_codecs_??*", "_dbm*", "_curses*", "_sqlite3*", "_tkinter*", "_test*", "_xxtest*"),
)
"""What of Python's library is left out."""

DEPENDENCIES = "opt/fmctl"
UNUSED_DEPENDENCIES = ("__pycache__", "*.dist-info", "bin", "_pytest", "pytest", "pygments", "rich", "jinja2", "tests")
"""What of fmctl's dependencies the agent never imports; importing them there would end it at once."""


def service_vm(root: Path, version: str, files: Path, archive: Path) -> None:
    """Write the Service VM's: busybox, Python, fmctl's dependencies and the modules of that kernel."""
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch)
        _base(root, tree)
        shutil.copytree(files, tree, dirs_exist_ok=True)
        shutil.copytree(root / PYTHON, tree / PYTHON, ignore=shutil.ignore_patterns(*UNUSED))
        shutil.copytree(root / DEPENDENCIES, tree / DEPENDENCIES, ignore=shutil.ignore_patterns(*UNUSED_DEPENDENCIES))
        _copy(root, tree, ["usr/bin/python3.11"])
        (tree / "usr/bin/python3").symlink_to("python3.11")
        _copy(root, tree, _libraries(root, tree))
        modules = _modules(root, version)
        _copy(root, tree, modules)
        (tree / "etc/modules").write_text("".join(f"/{path}\n" for path in modules))
        _compile(root, tree)
        (tree / "init").symlink_to("bin/busybox")
        pack(tree, archive)


def tenant_vm(root: Path, files: Path, archive: Path) -> None:
    """Write a tenant VM's: busybox and an init of the lab's."""
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch)
        _base(root, tree)
        shutil.copytree(files, tree, dirs_exist_ok=True)
        pack(tree, archive)


def pack(tree: Path, archive: Path) -> None:
    """Write a tree as a cpio archive; the kernel takes several of them, one after the other in one file."""
    command = 'cd "$1" && find . -mindepth 1 | sort | cpio --quiet --create --format=newc --owner=+0:+0 >"$2"'
    process.run(["sh", "-ec", command, "sh", str(tree), str(archive.absolute())], timeout=120)


def _base(root: Path, tree: Path) -> None:
    for folder in ("bin", "dev", "proc", "sys", "run", "tmp", "etc", "usr/bin", "usr/lib", "lab"):
        (tree / folder).mkdir(parents=True, exist_ok=True)
    (tree / "sbin").symlink_to("bin")
    (tree / "lib").symlink_to("usr/lib")
    (tree / "lib64").symlink_to("usr/lib64")
    shutil.copy2(root / "usr/bin/busybox", tree / "bin/busybox")
    for applet in APPLETS:
        (tree / "bin" / applet).symlink_to("busybox")


def _copy(root: Path, tree: Path, paths: Iterable[str]) -> None:
    for path in paths:
        target = tree / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / path, target)


def _libraries(root: Path, tree: Path) -> set[str]:
    """The shared libraries that the tree's programs need, by their paths in the root."""
    objects = [str(path.relative_to(tree)) for path in tree.rglob("*.so")] + ["usr/bin/python3.11"]
    listed = process.run(["chroot", str(root), "ldd", *(f"/{path}" for path in objects)], timeout=60)
    found = {word.lstrip("/") for word in listed.split() if word.startswith("/") and not word.endswith(":")}
    return {path if path.startswith("usr/") else f"usr/{path}" for path in found}


def _modules(root: Path, version: str) -> list[str]:
    """The modules' files in the order in which they load."""
    found: dict[str, None] = {}
    for module in MODULES:
        command = ["chroot", str(root), "modprobe", "--set-version", version, "--show-depends", module]
        for line in process.run(command, timeout=30).splitlines():
            kind, _, path = line.partition(" ")
            if kind == "insmod":
                found[path.split()[0].lstrip("/")] = None
    return list(found)


def _compile(root: Path, tree: Path) -> None:
    """Leave compiled modules in the place of Python's sources, made by the Python that will load them."""
    scratch = root / "tmp/compile"
    for folder in (PYTHON, DEPENDENCIES):
        shutil.copytree(tree / folder, scratch, symlinks=True)
        compileall = ("python3", "-m", "compileall", "-q", "-b", "--invalidation-mode", "unchecked-hash")
        process.run(["chroot", str(root), *compileall, "/tmp/compile"], timeout=300)
        shutil.rmtree(tree / folder)
        shutil.copytree(scratch, tree / folder, symlinks=True, ignore=shutil.ignore_patterns("*.py", "*.pyi"))
        shutil.rmtree(scratch)
