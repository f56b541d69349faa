# SPDX-License-Identifier: Apache-2.0
"""The simulator's libnvfm.so.1, compiled on demand and kept in the user's cache.

Programs find it as they find NVIDIA's: by SONAME, with the folder in LD_LIBRARY_PATH, or by path.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from fmctl import process
from fmctl.core.errors import FmctlError
from fmctl.process import CommandFailed

SONAME = "libnvfm.so.1"
LINK = "libnvfm.so"
"""The name that a linker's -lnvfm, and NVIDIA's Go binding, look for."""

UNITS = ("nvfm_shim.c", "nvfm_link.c", "nvfm_dial.c")
HEADERS = ("nvfm_abi.h", "nvfm_dial.h", "nvfm_link.h")
FLAGS = (
    "-std=c11",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-O2",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-pthread",
    f"-Wl,-soname,{SONAME}",
)
_TIMEOUT = 120.0


def build(cache: Path | None = None) -> Path:
    """The folder that holds the library, built first unless it was before; raises FmctlError.

    Any number of processes may build at once: each compiles in a folder of its own and the first to rename it wins.
    """
    sources = _sources()
    folder = (cache or cache_folder(os.environ)) / _digest(sources)
    if (folder / SONAME).is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".build-") as scratch:
            _publish(_compile(sources, Path(scratch)), folder)
    except OSError as error:
        raise FmctlError(
            f"the simulator's {SONAME} cannot be kept in {folder.parent}",
            why=error.strerror or str(error),
            fix="set XDG_CACHE_HOME to a folder that can be written",
        ) from error
    return folder


def cache_folder(environment: Mapping[str, str]) -> Path:
    """Where libraries are kept, after the XDG base directory specification; raises FmctlError."""
    given = environment.get("XDG_CACHE_HOME", "")
    if given.startswith("/"):
        return Path(given) / "fmctl"
    home = environment.get("HOME", "")
    if not home.startswith("/"):
        raise FmctlError(
            f"there is no place to keep the simulator's {SONAME}",
            why="neither XDG_CACHE_HOME nor HOME is set",
            fix="set XDG_CACHE_HOME to a folder that can be written",
        )
    return Path(home) / ".cache" / "fmctl"


def _sources() -> dict[str, bytes]:
    folder = resources.files(__package__)
    return {name: folder.joinpath(name).read_bytes() for name in (*UNITS, *HEADERS)}


def _digest(sources: Mapping[str, bytes]) -> str:
    parts = [platform.machine().encode(), *(flag.encode() for flag in FLAGS), *sources.values()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _compile(sources: Mapping[str, bytes], scratch: Path) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        raise FmctlError(f"the simulator's {SONAME} cannot be built", why="there is no C compiler", fix="install gcc")
    for name, content in sources.items():
        (scratch / name).write_bytes(content)
    built = scratch / "built"
    built.mkdir()
    units = [str(scratch / name) for name in UNITS]
    try:
        process.run([compiler, *FLAGS, "-o", str(built / SONAME), *units], timeout=_TIMEOUT)
    except CommandFailed as error:
        raise FmctlError(
            f"the simulator's {SONAME} cannot be built", why=str(error), fix="install gcc and the C library's headers"
        ) from error
    (built / LINK).symlink_to(SONAME)
    return built


def _publish(built: Path, folder: Path) -> None:
    try:
        built.rename(folder)
    except OSError:
        if not (folder / SONAME).is_file():
            raise
