# SPDX-License-Identifier: Apache-2.0
"""The whole image, from the lock to manifest.json."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fmctl.core.errors import BadRequest
from imagebuild import agent, cache, contents, lock, manifest, nvidia, repository, root
from imagebuild.lock import Lock, Package


@dataclass(frozen=True)
class Request:
    """What image is wanted: with NVIDIA's packages of a branch, or with a simulated Fabric Manager of a platform."""

    output: Path
    lock: Path
    mode: str
    platform: str = ""
    branch: str = ""
    packages: Path | None = None
    extra: Sequence[Path] = ()


def build(request: Request) -> None:
    """Make the image; raises FmctlError."""
    _check_output(request.output)
    for folder in request.extra:
        if not folder.is_dir():
            raise BadRequest(f"there is no folder {folder}", why="--extra names one", fix="correct it")
    theirs = nvidia.read(request.packages, request.branch) if request.packages else None
    platform = None if theirs else contents.platform_file(request.platform)
    locked = lock.read(request.lock)
    kept = cache.folder(os.environ)
    debian = locked.group(lock.ROOT, lock.DRIVER) if theirs else locked.group(lock.ROOT)
    debs = cache.debs(debian, kept)
    stage = contents.ours(cache.wheels(locked.wheels, kept).values())
    modules = [*root.modules("initrd"), *root.modules("root")]
    with tempfile.TemporaryDirectory(prefix="fmctl-image-") as name:
        scratch = Path(name)
        scratch.chmod(0o755)
        if theirs:
            modules += root.modules("driver")
            modules += nvidia.add(theirs, stage, _kernel(debian), locked, request.mode, scratch)
        elif platform:
            contents.simulated(platform, stage)
        extra = contents.add_extra(request.extra, stage)
        source = repository.make(debs, scratch / "repository", dependencies=False)
        tar = scratch / "root.tar"
        root.make(source, [package.name for package in debian], stage, modules, locked.epoch, request.mode, tar)
        made = _files(tar, locked, scratch, simulated=theirs is None)
        packages = {package.name: package.version for package in debian} | (theirs.packages if theirs else {})
        versions = _versions(debian) | (theirs.versions if theirs else {})
        document = manifest.document(manifest.digests(made), packages, versions, extra, simulated=theirs is None)
        _publish(made, manifest.text(document), request.output)


def _files(tar: Path, locked: Lock, scratch: Path, *, simulated: bool) -> Path:
    """The folder of the image's files, made of the root's tar."""
    made = scratch / "image"
    made.mkdir()
    root.squash(tar, locked.epoch, made / "root.squashfs", scratch)
    root.initrd(tar, root.modules("initrd"), locked.epoch, made / "initrd")
    agent.make(made / "root.squashfs", locked.epoch, made / "agent.tar", simulated=simulated)
    return made


def replace_agent(image: Path, output: Path, locked: Lock) -> None:
    """Make an image that differs from another in its agent alone; raises FmctlError."""
    _check_output(output)
    document = manifest.read(image)
    with tempfile.TemporaryDirectory(prefix="fmctl-image-") as scratch:
        made = Path(scratch) / "image"
        made.mkdir()
        for name in manifest.FILES:
            if name != "agent.tar":
                shutil.copyfile(image / name, made / name)
        agent.make(made / "root.squashfs", locked.epoch, made / "agent.tar", simulated=document["simulated"])
        digest = cache.sha256(made / "agent.tar")
        _publish(made, manifest.text(manifest.with_agent(document, digest, agent.version())), output)


def _check_output(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadRequest(
            f"{folder} is not an empty folder", why="an image is never made over another", fix="name a new one"
        )


def _publish(made: Path, text: str, output: Path) -> None:
    """Put the files where they belong, the manifest last: a folder without it is no image."""
    output.mkdir(parents=True, exist_ok=True)
    for name in manifest.FILES:
        shutil.copyfile(made / name, output / name)
        (output / name).chmod(0o644)
    (output / manifest.NAME).write_text(text)


def _kernel(debian: Sequence[Package]) -> str:
    return next(p.name for p in debian if p.name.startswith("linux-image-")).removeprefix("linux-image-")


def _versions(debian: Sequence[Package]) -> dict[str, str]:
    python = next(p.version for p in debian if p.name == f"python{agent.PYTHON}-minimal")
    base = next(p.version for p in debian if p.name == "base-files")
    return {
        "agent": agent.version(),
        "debian": base.split(".")[0],
        "kernel": _kernel(debian),
        "python": python.split("-")[0],
    }
