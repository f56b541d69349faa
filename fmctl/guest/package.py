# SPDX-License-Identifier: Apache-2.0
"""The archives that the agent may run from, in a folder of the guest's boot: the port `AgentPackage`.

What starts the agent reads the two files here. `current` names the archive to run, by its SHA-256. `trial` names one
to be tried once: unless the agent confirms it, the next start takes `current` again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from fmctl.core.errors import BadRequest, FmctlError

log = logging.getLogger(__name__)

MAX_UNPACKED = 64 * 1024 * 1024
MAX_MEMBERS = 10_000
ROOT = "fmctl"
"""The one folder that an archive has at its top."""
ENTRIES = (f"{ROOT}/__main__.py", f"{ROOT}/__main__.pyc")
"""What Python runs of it: an image's archive is compiled, and holds no sources."""


class Package:
    """The folder `where`, and the archive in it that this agent runs from."""

    def __init__(self, where: Path, digest: str, confirmed: Callable[[], None] = lambda: None) -> None:
        """`digest` is empty where the agent was installed otherwise; it can be replaced then, too.

        `confirmed` is called when the trial of this agent ends well.
        """
        self._where = where
        self.digest = digest
        self._confirmed = confirmed

    @property
    def on_trial(self) -> bool:
        """Whether the next start takes another archive unless this one is confirmed."""
        return bool(self.digest) and self._named("trial") == self.digest

    def put(self, archive: bytes, digest: str) -> None:
        """Unpack the archive beside the others, and name it for the next start; what is none of theirs goes."""
        found = hashlib.sha256(archive).hexdigest()
        if not re.fullmatch("[0-9a-f]{64}", digest) or found != digest:
            raise _refusal(f"its SHA-256 is {found}, not {digest!r}")
        try:
            self._where.mkdir(parents=True, exist_ok=True)
            if digest == self.digest:
                self.confirm()
            if digest == self._named("current"):
                (self._where / "trial").unlink(missing_ok=True)
            else:
                self._unpack(archive, digest)
                self._name("trial", digest)
            self._prune(digest)
        except OSError as error:
            raise FmctlError(
                "the agent is not replaced", why=f"{error.filename}: {error.strerror}", fix="see the guest's memory"
            ) from error
        log.info("the next start tries the agent %s", digest)

    def confirm(self) -> None:
        """Let later starts take what this agent runs from, if it is on trial."""
        if not self.on_trial:
            return
        try:
            self._name("current", self.digest)
            (self._where / "trial").unlink(missing_ok=True)
        except OSError as error:
            log.error("the trial of this agent cannot be ended: %s", error)
            return
        log.info("the trial of this agent is over: the daemon reached it")
        self._confirmed()

    def _prune(self, digest: str) -> None:
        """Remove the folders that no start takes any more: they lie in memory."""
        kept = {digest, self.digest, self._named("current")}
        for folder in self._where.iterdir():
            if folder.is_dir() and folder.name not in kept:
                shutil.rmtree(folder, ignore_errors=True)

    def _named(self, name: str) -> str:
        try:
            return (self._where / name).read_text().strip()
        except (OSError, UnicodeDecodeError):
            return ""

    def _name(self, name: str, digest: str) -> None:
        """Write the file so that at any time it names one archive, the old one or the new."""
        temporary = self._where / f".{name}.new"
        temporary.write_text(f"{digest}\n")
        temporary.replace(self._where / name)

    def _unpack(self, archive: bytes, digest: str) -> None:
        """Make the folder DIGEST appear whole, in the place of what an earlier trial of it left."""
        files = _checked(archive)
        with contextlib.ExitStack() as cleanup:
            temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=self._where))
            cleanup.callback(shutil.rmtree, temporary, ignore_errors=True)
            for path, content in files.items():
                target = temporary / path
                target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                target.write_bytes(content)
                target.chmod(0o644)
            temporary.chmod(0o755)
            shutil.rmtree(self._where / digest, ignore_errors=True)
            os.replace(temporary, self._where / digest)  # noqa: PTH105 (onto a name that is free)


def _checked(archive: bytes) -> dict[str, bytes]:
    """The files of an archive by path; raises BadRequest unless it holds plain files below `fmctl/` alone."""
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
