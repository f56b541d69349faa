# SPDX-License-Identifier: Apache-2.0
"""agent.tar: what the agent needs of this checkout's package fmctl, compiled by the Python of the image's root."""

from __future__ import annotations

import ast
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from fmctl import process
from fmctl.core.errors import FmctlError
from imagebuild import CHECKOUT
from imagebuild.tree import Tree

PYTHON = "3.11"
_PATHS = (f"usr/bin/python{PYTHON}", f"usr/lib/python{PYTHON}", "usr/lib/x86_64-linux-gnu", "usr/lib64")
_BEGINS = ("fmctl.__main__", "fmctl.cli.agent")
_SIMULATES = "fmctl.cli.sim"
_TEMPLATE = "service-vm/fabricmanager.cfg.j2"


def sources(checkout: Path, *, simulated: bool) -> Tree:
    """The modules that the agent imports, at its start or later, and its template, as they are installed.

    Where Fabric Manager is `simulated` its modules are among them.
    """
    made, seen = Tree(), set[Path]()
    waiting = [*_BEGINS, *([_SIMULATES] if simulated else ())]
    while waiting:
        name = waiting.pop()
        path = _file(checkout, name)
        if path is not None and path not in seen:
            seen.add(path)
            waiting += [*_imports(path), name.rpartition(".")[0]]
    for path in sorted(seen):
        made.file(path.relative_to(checkout).as_posix(), path)
    made.file(f"fmctl/{_TEMPLATE}", checkout / _TEMPLATE)
    return made


def _file(checkout: Path, module: str) -> Path | None:
    """Where a module of fmctl lies; None for another one, and for what is none."""
    if module.split(".")[0] != "fmctl":
        return None
    path = checkout / module.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _imports(path: Path) -> Iterator[str]:
    """The names in a module's imports, those inside of functions included."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def version(checkout: Path = CHECKOUT) -> str:
    """The version of the package; raises FmctlError."""
    for line in (checkout / "fmctl" / "__init__.py").read_text().splitlines():
        if line.startswith("__version__"):
            return line.split('"')[1]
    raise FmctlError("the agent has no version", why="fmctl/__init__.py does not say __version__")


def make(root: Path, epoch: int, target: Path, *, simulated: bool) -> None:
    """Write agent.tar for the root image `root`; raises FmctlError."""
    with tempfile.TemporaryDirectory(prefix="fmctl-agent-") as scratch:
        compiled(_unpack_python(root, Path(scratch)), epoch, target, simulated=simulated)


def compiled(
    python: Sequence[str], epoch: int, target: Path, checkout: Path = CHECKOUT, *, simulated: bool = False
) -> None:
    """Write agent.tar by the command that runs a Python; raises FmctlError."""
    with tempfile.TemporaryDirectory(prefix="fmctl-agent-") as scratch:
        folder = Path(scratch)
        _write(sources(checkout, simulated=simulated), folder)
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
