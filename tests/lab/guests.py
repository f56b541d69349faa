# SPDX-License-Identifier: Apache-2.0
"""The images that the emulated host's Service VM may boot, signed: the built one with the checkout's agent, and others.

They share their large files by hard links, as far as they are the same.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
from pathlib import Path

from fmctl import process
from tests.lab.images import ROOT, Images

FIRST = "first"
"""The built image."""
SECOND = "second"
"""Another root: the same files in a file that is longer."""
BROKEN = "broken"
"""A root that cannot be mounted, so that the guest powers off as it boots."""
AGENT = "agent"
"""Another agent, and nothing else."""
MUTE_AGENT = "mute-agent"
"""An agent that never answers, and nothing else."""

_MUTE = b"import time\ntime.sleep(1e9)\n"


def make(images: Images, folder: Path, public: Path, scratch: Path) -> None:
    """Make all of them below `folder`, and put the key that vouches for them at `public`."""
    key = scratch / "image.key"
    _fmctl("image", "keygen", "--output", str(key))
    shutil.copyfile(key.with_name("image.key.pub"), public)
    folder.mkdir()
    first = folder / FIRST
    build = [str(ROOT / "service-vm/build"), "--agent-only", "--from", str(images.service_vm), "--output", str(first)]
    process.run(build, timeout=120)
    root = (first / "root.squashfs").read_bytes()
    for name, data in ((SECOND, root + bytes(4096)), (BROKEN, bytes(4096))):
        image = _like(first, name)
        (image / "root.squashfs").unlink()
        (image / "root.squashfs").write_bytes(data)
    _append(_like(first, AGENT) / "agent.tar", "fmctl/lab", b"")
    _append(_like(first, MUTE_AGENT) / "agent.tar", "fmctl/__main__.py", _MUTE)
    for image in folder.iterdir():
        _describe(image)
        _fmctl("image", "sign", str(image), "--key", str(key))


def _like(image: Path, name: str) -> Path:
    """A copy of an image, by hard links."""
    shutil.copytree(image, image.parent / name, copy_function=os.link)
    return image.parent / name


def _append(archive: Path, name: str, data: bytes) -> None:
    """A later entry of a tar takes the place of an earlier one."""
    whole = archive.read_bytes()
    archive.unlink()
    archive.write_bytes(whole)
    with tarfile.open(archive, "a") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        entry.mode = 0o644
        tar.addfile(entry, io.BytesIO(data))


def _describe(image: Path) -> None:
    """Let the manifest say what the files are."""
    manifest = image / "manifest.json"
    said = json.loads(manifest.read_text())
    for name in said["files"]:
        said["files"][name] = hashlib.sha256((image / name).read_bytes()).hexdigest()
    manifest.unlink()
    manifest.write_text(json.dumps(said, indent=2, sort_keys=True) + "\n")


def _fmctl(*arguments: str) -> None:
    process.run(process.python("fmctl", *arguments), timeout=60)
