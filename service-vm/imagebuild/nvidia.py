# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's packages, from the operator's folder: what they are, whether they fit together, and their files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fmctl import process
from fmctl.core.errors import BadRequest, VersionMismatch
from imagebuild import apt, stage
from imagebuild.lock import Lock
from imagebuild.tree import Tree

_VERSION = re.compile(r"(?:\d+:)?(\d+\.\d+(?:\.\d+)*)")
_MODULE = re.compile(r"usr/lib/modules/([^/]+)/.*\.ko(\.xz|\.zst)?")
_LOADED = b"nvidia\nmlx5_ib\nib_umad\n"
"""What systemd loads at boot, since there is no udev that would."""

_NEEDED = ("nv-fabricmanager", "libnvfm.so.1")
_LEFT_OUT = ("usr/share/doc/", "usr/share/man/", "usr/share/lintian/", "usr/src/", "usr/share/bug/")


@dataclass(frozen=True)
class Deb:
    """One of the operator's packages."""

    path: Path
    name: str
    version: str

    @property
    def upstream(self) -> str:
        """Its version, without what Debian adds."""
        found = _VERSION.match(self.version)
        return found[1] if found else self.version

    @property
    def of_driver(self) -> bool:
        """Whether it must have the driver's version: all of NVIDIA's that are numbered with the driver."""
        return "nvidia" in self.name and not self.name.startswith("linux-") and not self.name.endswith("-keyring")

    @property
    def dkms(self) -> bool:
        """Whether it holds the kernel module's source."""
        return self.name.endswith("-dkms") or "-dkms-" in self.name


@dataclass(frozen=True)
class Debs:
    """All of the operator's packages, of one version."""

    debs: Sequence[Deb]
    driver: str

    @property
    def packages(self) -> dict[str, str]:
        """The packages, with their versions."""
        return {deb.name: deb.version for deb in self.debs}

    @property
    def versions(self) -> dict[str, str]:
        """What the manifest says of them."""
        said = {"driver": self.driver, "fabric_manager": self.driver}
        for deb in self.debs:
            if deb.name.startswith("nvlsm"):
                said["nvlsm"] = deb.upstream
        return said


def read(folder: Path, branch: str) -> Debs:
    """The packages of a folder, which must be of that branch and of one version; raises FmctlError."""
    if not (paths := sorted(folder.glob("*.deb"))):
        raise BadRequest(f"{folder} has no NVIDIA packages", why="it holds no *.deb", fix="see docs/image.md")
    return fitting([_deb(path) for path in paths], branch)


def _deb(path: Path) -> Deb:
    record = apt.parse_record(process.run(["dpkg-deb", "--field", str(path), "Package", "Version"], timeout=60))
    return Deb(path, record["Package"], record["Version"])


def fitting(debs: Sequence[Deb], branch: str) -> Debs:
    """These packages, if they have one version of that branch; raises FmctlError."""
    managers = [deb for deb in debs if deb.name.startswith("nvidia-fabricmanager") and "-dev" not in deb.name]
    if len(managers) != 1:
        raise BadRequest(
            "one package of Fabric Manager is needed",
            why=f"there is {', '.join(deb.path.name for deb in managers) or 'none'}",
            fix="put nvidia-fabricmanager of the branch into the folder",
        )
    wanted = managers[0].upstream
    if not f"{wanted}.".startswith(f"{branch}."):
        raise VersionMismatch(
            f"{managers[0].path.name} is not of branch {branch}", why=f"it has version {wanted}", fix="correct --driver"
        )
    if others := [deb for deb in debs if deb.of_driver and deb.upstream != wanted]:
        raise VersionMismatch(
            "NVIDIA's packages are not of one version",
            why=f"Fabric Manager has {wanted}, but " + ", ".join(f"{deb.name} has {deb.upstream}" for deb in others),
            fix=f"replace them by those of {wanted}",
        )
    return Debs(debs, wanted)


def add(theirs: Debs, made: Tree, kernel: str, locked: Lock, mode: str, scratch: Path) -> list[str]:
    """Add the packages' files to the root, and return the names of their kernel modules; raises FmctlError.

    The files are unpacked in `scratch`, and must stay there until the root is made.
    """
    files = Tree()
    for number, deb in enumerate(theirs.debs):
        if not deb.dkms:
            _unpack(deb.path, scratch / f"deb{number}", files)
    sources = [deb.path for deb in theirs.debs if deb.dkms]
    if sources and kernel not in _kernels(files):
        stage.add_modules(sources, kernel, locked, mode, scratch, files)
    check(files, kernel)
    for path in list(files):
        if path.startswith("usr/lib/systemd/system/") and path.endswith(".service"):
            files.symlink(f"etc/systemd/system/{path.rpartition('/')[2]}", "/dev/null")
    files.file("etc/modules-load.d/nvidia.conf", _LOADED)
    made.update(files)
    return sorted({path.rpartition("/")[2].split(".ko")[0] for path in files if _kernel(path) == kernel})


def _unpack(deb: Path, folder: Path, files: Tree) -> None:
    folder.mkdir(parents=True)
    process.run(["dpkg-deb", "--extract", str(deb), str(folder)], timeout=600)
    unpacked = Tree()
    unpacked.overlay(folder)
    files.update({path: entry for path, entry in unpacked.items() if not path.startswith(_LEFT_OUT)})


def _kernel(path: str) -> str:
    found = _MODULE.fullmatch(path)
    return found[1] if found else ""


def _kernels(files: Tree) -> set[str]:
    return {_kernel(path) for path in files} - {""}


def check(files: Tree, kernel: str) -> None:
    """Refuse packages that lack what Fabric Manager needs; raises BadRequest."""
    names = {path.rpartition("/")[2] for path in files}
    if lacking := [path for path in _NEEDED if path not in names]:
        raise BadRequest(
            "NVIDIA's packages are not complete",
            why=f"none of them has {', '.join(lacking)}",
            fix="see docs/image.md for what the folder must hold",
        )
    if kernel not in _kernels(files):
        others = ", ".join(sorted(_kernels(files)))
        raise BadRequest(
            f"NVIDIA's packages have no kernel module for {kernel}",
            why=f"there are modules for {others}" if others else "there is no nvidia.ko in them, nor a -dkms package",
            fix=f"add the -dkms package, or one with modules that were built for {kernel}",
        )
