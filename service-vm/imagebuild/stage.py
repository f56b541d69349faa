# SPDX-License-Identifier: Apache-2.0
"""The throw-away stage: a second system with a compiler, out of which the kernel modules alone are taken."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

from fmctl import process
from fmctl.core.errors import FmctlError
from imagebuild import GRACE, RECIPE, cache, lock, repository
from imagebuild.lock import Lock
from imagebuild.tree import Tree

FOLDER = ".stage"
"""Folder of the stage where the packages go in, and the modules come out."""

TIMEOUT = 3600.0


def add_modules(sources: Sequence[Path], kernel: str, locked: Lock, mode: str, scratch: Path, files: Tree) -> None:
    """Build the modules of these DKMS packages for that kernel, and add them; raises FmctlError."""
    debs = cache.debs(locked.group(lock.STAGE), cache.folder(os.environ))
    source = repository.make(debs, scratch / "stage-repository", dependencies=True)
    brought, built = scratch / "brought.tar", scratch / "built.tar"
    _bring(sources, kernel).write_tar(brought, locked.epoch)
    argv = [
        *("mmdebstrap", f"--mode={mode}", "--variant=apt", "--architectures=amd64", "--format=null", "--quiet"),
        f"--include={','.join(package.name for package in debs)}",
        f"--customize-hook=tar-in {brought} /",
        f'--customize-hook=chroot "$1" sh /{FOLDER}/modules',
        f"--customize-hook=tar-out /{FOLDER}/built {built}",
        *("bookworm", "-", source),
    ]
    try:
        process.run(["env", f"SOURCE_DATE_EPOCH={locked.epoch}", *argv], timeout=TIMEOUT, grace=GRACE)
    except FmctlError as error:
        raise FmctlError("the kernel modules cannot be built", why=error.why or error.what) from error
    with tarfile.open(built) as archive:
        for member in archive:
            name = member.name.rpartition("/")[2]
            if (content := archive.extractfile(member) if member.isfile() else None) and ".ko" in name:
                files.file(f"usr/lib/modules/{kernel}/updates/dkms/{name}", content.read())


def _bring(sources: Sequence[Path], kernel: str) -> Tree:
    made = Tree()
    made.file(f"{FOLDER}/modules", (RECIPE / "hooks" / "modules").read_bytes())
    made.file(f"{FOLDER}/kernel", f"{kernel}\n".encode())
    made.file("etc/dkms/framework.conf.d/image.conf", b"sign_file=/nonexistent\n")
    for path in sources:
        made.file(f"{FOLDER}/{path.name}", path)
    return made
