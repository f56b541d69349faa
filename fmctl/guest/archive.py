# SPDX-License-Identifier: Apache-2.0
"""Unpacks the archive of another agent, which `guest.package` was sent, where it is what its sender says."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from fmctl.core.errors import BadRequest

MAX_UNPACKED = 64 * 1024 * 1024
MAX_MEMBERS = 10_000
ROOT = "fmctl"
"""The one folder that an archive has at its top."""
ENTRIES = (f"{ROOT}/__main__.py", f"{ROOT}/__main__.pyc")
"""What Python runs of it: an image's archive is compiled, and holds no sources."""


def check(archive: bytes, digest: str) -> None:
    """Raise BadRequest unless that is the archive's SHA-256."""
    found = hashlib.sha256(archive).hexdigest()
    if not re.fullmatch("[0-9a-f]{64}", digest) or found != digest:
        raise _refusal(f"its SHA-256 is {found}, not {digest!r}")


def unpack(archive: bytes, target: Path) -> None:
    """Make the folder appear whole, in the place of what an earlier trial of it left.

    Raises BadRequest unless the archive holds plain files below `fmctl/` alone, and OSError.
    """
    files = _checked(archive)
    with contextlib.ExitStack() as cleanup:
        temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
        cleanup.callback(shutil.rmtree, temporary, ignore_errors=True)
        for path, content in files.items():
            file = temporary / path
            file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            file.write_bytes(content)
            file.chmod(0o644)
        temporary.chmod(0o755)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)  # noqa: PTH105 (onto a name that is free)


def prune(where: Path, kept: Collection[str]) -> None:
    """Remove the folders that no start takes any more: they lie in memory."""
    for folder in where.iterdir():
        if folder.is_dir() and folder.name not in kept:
            shutil.rmtree(folder, ignore_errors=True)


def _checked(archive: bytes) -> dict[str, bytes]:
    """The files of an archive by path; raises BadRequest."""
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
            return _files(tar)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise _refusal(f"it is no tar: {error}") from error


def _files(tar: tarfile.TarFile) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    left = MAX_UNPACKED
    for count, member in enumerate(tar):
        left -= member.size
        if count >= MAX_MEMBERS or left < 0:
            raise _refusal(f"it is larger than {MAX_UNPACKED >> 20} MiB or {MAX_MEMBERS} files")
        if wrong := _unsafe(member):
            raise _refusal(f"{member.name!r} {wrong}")
        stream = tar.extractfile(member)
        if stream is not None:
            files[str(PurePosixPath(member.name))] = stream.read()
    if not any(entry in files for entry in ENTRIES):
        raise _refusal(f"it has no {ENTRIES[0]}")
    return files


def _unsafe(member: tarfile.TarInfo) -> str:
    """Why a member may not be unpacked; empty where it may."""
    path = PurePosixPath(member.name)
    if not (member.isreg() or member.isdir()):
        return "is neither a file nor a folder"
    if path.is_absolute() or ".." in path.parts:
        return "lies outside"
    return "" if path.parts[:1] == (ROOT,) else f"lies outside {ROOT}/"


def _refusal(why: str) -> BadRequest:
    return BadRequest("the agent is not replaced", why=why, fix="send the agent.tar of an image, with its SHA-256")
