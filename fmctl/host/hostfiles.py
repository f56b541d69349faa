# SPDX-License-Identifier: Apache-2.0
"""Files of the host's configuration that fmctl writes whole. `core.hostprep` says what stands in them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fmctl.core.errors import FmctlError
from fmctl.core.hostprep import FileState, HostFile, compare

_MODE = 0o644


class HostFiles:
    """Reads and writes below `root`, which is / on a host."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def states(self, files: Sequence[HostFile]) -> tuple[FileState, ...]:
        """What lies in each file's place; raises FmctlError where that cannot be read."""
        return tuple(compare(file, _text(self._root / file.path)) for file in files)

    def write(self, files: Sequence[HostFile], *, force: bool = False) -> tuple[FileState, ...]:
        """Write those that are not the same, and return what lay in each one's place before.

        What somebody else wrote or changed is replaced with `force` alone: otherwise FmctlError is raised, and nothing
        is written. Each file is there whole, and on the disk, or is as it was.
        """
        before = self.states(files)
        pairs = list(zip(files, before, strict=True))
        foreign = [f"/{file.path}" for file, state in pairs if state is FileState.FOREIGN]
        if foreign and not force:
            raise FmctlError(
                f"nothing was written, since somebody else wrote or changed {' and '.join(foreign)}",
                why="fmctl replaces what it wrote itself, and nothing else",
                fix="compare with `fmctl host prepare --dry-run`, then keep what is there, or add --force",
            )
        for file, state in pairs:
            if state is not FileState.SAME:
                _replace(self._root / file.path, file.text)
        return before


def _text(path: Path) -> str | None:
    """What stands in a file; None where there is none. A link is somebody's own doing, whatever it leads to."""
    try:
        return f"-> {path.readlink()}" if path.is_symlink() else path.read_text("utf-8", "surrogateescape")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _refusal(path, "read", error) from error


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fchmod(stream.fileno(), _MODE)
            os.fsync(stream.fileno())
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise _refusal(path, "written", error) from error


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refusal(path: Path, verb: str, error: OSError) -> FmctlError:
    return FmctlError(
        f"{path} cannot be {verb}", why=error.strerror or str(error), fix="run this as root, or mend its folder"
    )
