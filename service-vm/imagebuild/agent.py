# SPDX-License-Identifier: Apache-2.0
"""agent.tar: the package fmctl of this checkout, compiled by the Python of the image's root."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fmctl import process
from fmctl.core.errors import FmctlError
from imagebuild import CHECKOUT
from imagebuild.tree import Tree

PYTHON = "3.11"
_PATHS = (f"usr/bin/python{PYTHON}", f"usr/lib/python{PYTHON}", "usr/lib/x86_64-linux-gnu", "usr/lib64")
_LEFT_OUT = (".c", ".h", ".pyi", ".proto", ".pyc", ".tmp")
_TEMPLATES = {"vm-templates": "fmctl/vm-templates", "service-vm": "fmctl/service-vm"}
"""Folders of the checkout whose templates lie in the package once it is installed."""


def sources(checkout: Path) -> Tree:
    """The package as it is installed, with its sources."""
    made = Tree()
    for path in sorted((checkout / "fmctl").rglob("*")):
        if path.is_file() and path.suffix not in _LEFT_OUT and "__pycache__" not in path.parts:
            made.file(path.relative_to(checkout).as_posix(), path)
    for folder, target in _TEMPLATES.items():
        for path in sorted((checkout / folder).glob("*.j2")):
            made.file(f"{target}/{path.name}", path)
    return made


def version(checkout: Path = CHECKOUT) -> str:
    """The version of the package; raises FmctlError."""
    for line in (checkout / "fmctl" / "__init__.py").read_text().splitlines():
        if line.startswith("__version__"):
            return line.split('"')[1]
    raise FmctlError("the agent has no version", why="fmctl/__init__.py does not say __version__")


def make(root: Path, epoch: int, target: Path) -> None:
    """Write agent.tar for the root image `root`; raises FmctlError."""
    with tempfile.TemporaryDirectory(prefix="fmctl-agent-") as scratch:
        compiled(_unpack_python(root, Path(scratch)), epoch, target)


def compiled(python: Sequence[str], epoch: int, target: Path, checkout: Path = CHECKOUT) -> None:
    """Write agent.tar by the command that runs a Python; raises FmctlError."""
    with tempfile.TemporaryDirectory(prefix="fmctl-agent-") as scratch:
        folder = Path(scratch)
        _write(sources(checkout), folder)
        compileall = ("-m", "compileall", "-q", "-b", "--invalidation-mode", "unchecked-hash", "-s", scratch)
        process.run([*python, *compileall, str(folder / "fmctl")], timeout=300)
        made = Tree()
        for path in folder.rglob("*"):
            if path.is_file() and path.suffix != ".py":
                made.file(path.relative_to(folder).as_posix(), path)
        made.write_tar(target, epoch)


def _write(tree: Tree, folder: Path) -> None:
    for path, entry in tree.items():
        where = folder / path
        if isinstance(entry.content, Path):
            where.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(entry.content, where)


def _unpack_python(image: Path, folder: Path) -> list[str]:
    """The command that runs the image's own Python outside of it."""
    process.run(["unsquashfs", "-quiet", "-no-progress", "-force", "-d", str(folder), str(image), *_PATHS], timeout=300)
    libraries = folder / "usr/lib/x86_64-linux-gnu"
    loader = (libraries / "ld-linux-x86-64.so.2", "--library-path", libraries, folder / f"usr/bin/python{PYTHON}")
    environment = (f"PYTHONHOME={folder / 'usr'}", "PYTHONHASHSEED=0", "LC_ALL=C.UTF-8")
    return ["env", "-i", *environment, *map(str, loader)]
