# SPDX-License-Identifier: Apache-2.0
"""The root file system: mmdebstrap unpacks Debian's packages, hooks prune and complete them, and out comes one tar.

The hooks work on the folder that mmdebstrap gives them, so it is the same path as root and without.
"""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from pathlib import Path

from fmctl import process
from fmctl.core.errors import FmctlError
from imagebuild import GRACE, RECIPE, tree
from imagebuild.tree import Tree

SCRATCH = ".image"
"""Folder of the root that is left out of the image: what the hooks use."""

TIMEOUT = 1800.0
_MOUNTED = ("dev", "proc", "run", "sys", "tmp", "var")
"""Folders that are empty in the image, since something is mounted there."""

_MERGE = 'for name in bin sbin lib lib64; do mkdir -p "$1/usr/$name"; ln -s "usr/$name" "$1/$name"; done'


def modules(kind: str) -> list[str]:
    """The kernel modules that service-vm/modules lists for the initrd, or for an image with NVIDIA's driver."""
    lines = (line.split() for line in (RECIPE / "modules").read_text().splitlines() if line and line[0] != "#")
    return [name for group, name in lines if group == kind]


def make(
    source: str, packages: Sequence[str], stage: Tree, kept: Sequence[str], epoch: int, mode: str, target: Path
) -> None:
    """Write the root as a tar of any order; raises FmctlError."""
    hooks, staged = target.with_name("hooks.tar"), target.with_name("stage.tar")
    _hooks(kept).write_tar(hooks, epoch)
    stage.write_tar(staged, epoch)
    argv = [
        *("mmdebstrap", f"--mode={mode}", "--variant=extract", "--architectures=amd64", "--format=tar", "--quiet"),
        *(f"--include={','.join(packages)}", f"--setup-hook={_MERGE}", f"--setup-hook=tar-in {hooks} /"),
        f'--extract-hook=sh "$1/{SCRATCH}/prune" "$1"',
        f"--extract-hook=tar-in {staged} /",
        f'--extract-hook=chroot "$1" /usr/bin/sh /{SCRATCH}/finish',
        *("--skip=check/empty,cleanup", "bookworm", str(target), source),
    ]
    environment = {"SOURCE_DATE_EPOCH": str(epoch), "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"}
    try:
        process.run(
            ["env", *(f"{name}={value}" for name, value in environment.items()), *argv], timeout=TIMEOUT, grace=GRACE
        )
    except FmctlError as error:
        raise FmctlError(
            "the root file system cannot be made",
            why=error.why or error.what,
            fix="without root, install uidmap; see also `man mmdebstrap`, TMPDIR",
        ) from error


def _hooks(kept: Sequence[str]) -> Tree:
    made = Tree()
    for name in ("prune", "finish"):
        made.file(f"{SCRATCH}/{name}", (RECIPE / "hooks" / name).read_bytes())
    made.file(f"{SCRATCH}/modules", "".join(f"{name}\n" for name in kept).encode())
    return made


def squash(source: Path, epoch: int, target: Path, scratch: Path) -> None:
    """Make the squashfs of the root's tar, and keep kernel and initrd's files beside it; raises FmctlError."""
    ordered = scratch / "ordered.tar"
    with tarfile.open(ordered, "w", format=tarfile.GNU_FORMAT) as out:
        for info, content in tree.filtered(source, epoch):
            if info.name.startswith("boot/vmlinuz-") and content:
                tree.save(content, target.with_name("vmlinuz"))
            elif _in_image(info.name):
                out.addfile(info, content)
    compression = ("-comp", "zstd", "-b", "128K")
    times = ("-mkfs-time", str(epoch), "-all-time", str(epoch), "-root-mode", "0755")
    command = 'exec sqfstar -quiet -no-progress -no-xattrs -all-root "$@" <"$0"'
    process.run(["sh", "-ec", command, str(ordered), *compression, *times, str(target)], timeout=TIMEOUT)


def _in_image(path: str) -> bool:
    first, _, rest = path.partition("/")
    return first not in (SCRATCH, "boot", ".") and not (rest and first in _MOUNTED)


def initrd(source: Path, names: Sequence[str], epoch: int, target: Path) -> None:
    """Make the initial RAM disk of the root's tar: busybox, the modules in their order, and our init."""
    made = Tree()
    for folder in ("dev", "proc", "sys", "root"):
        made.folder(folder)
    with tarfile.open(source) as archive:
        members = {tree.normal(member.name): member for member in archive}

        def read(path: str) -> bytes:
            content = archive.extractfile(members[path])
            return content.read() if content else b""

        made.file("bin/busybox", read("usr/bin/busybox"), 0o755)
        (index,) = (path for path in members if path.endswith("/modules.dep"))
        folder = Path(index).parent.as_posix()
        paths = load_order(read(index).decode(), names)
        for path in paths:
            made.file(f"modules/{Path(path).name}", read(f"{folder}/{path}"))
    made.file("order", "".join(f"/modules/{Path(path).name}\n" for path in paths).encode())
    for applet in ("sh", "mount", "insmod", "mkdir", "chmod", "ln", "echo", "poweroff", "switch_root"):
        made.symlink(f"bin/{applet}", "busybox")
    made.file("init", (RECIPE / "initrd" / "init").read_bytes(), 0o755)
    made.write_cpio(target, epoch)


def load_order(index: str, names: Sequence[str]) -> list[str]:
    """The paths of these modules and of what they depend on, each after those it needs; from modules.dep."""
    needs = {_name(path): (path, rest.split()) for path, _, rest in (line.partition(": ") for line in _lines(index))}
    order: dict[str, None] = {}
    for name in names:
        if name not in needs:
            continue
        path, dependencies = needs[name]
        order.update(dict.fromkeys([*reversed(dependencies), path]))
    return list(order)


def _lines(text: str) -> list[str]:
    return [line if ": " in line else line.replace(":", ": ") for line in text.splitlines() if line]


def _name(path: str) -> str:
    return Path(path).name.split(".ko")[0].replace("-", "_")
