# SPDX-License-Identifier: Apache-2.0
"""What the lock names, fetched once and kept by its SHA-256; nothing else ever leaves this module."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from fmctl.core.errors import FmctlError
from imagebuild import lock as locks
from imagebuild import pip
from imagebuild.apt import Apt
from imagebuild.lock import Package, Wheel


class StaleLock(FmctlError):
    """What the lock names is no longer to be had."""


def folder(environment: Mapping[str, str]) -> Path:
    """Where downloads are kept: FMCTL_IMAGE_CACHE, or fmctl/image in the user's cache."""
    if named := environment.get("FMCTL_IMAGE_CACHE"):
        return Path(named)
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fmctl" / "image"


def sha256(path: Path) -> str:
    """The SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def debs(packages: Sequence[Package], cache: Path) -> dict[Package, Path]:
    """The packages' files; raises FmctlError."""

    def fetch(missing: list[str], into: Path) -> None:
        names = [f"{p.name}:{p.architecture}={p.version}" for p in packages if p.sha256 in missing]
        with tempfile.TemporaryDirectory() as scratch:
            apt = Apt(Path(scratch))
            apt.update()
            apt.download([name.replace(":all=", "=") for name in names], into)

    _fill({package.sha256: f"{package.name} {package.version}" for package in packages}, cache, fetch)
    return {package: cache / package.sha256 for package in packages}


def wheels(wanted: Sequence[Wheel], cache: Path) -> dict[Wheel, Path]:
    """The wheels' files; raises FmctlError."""

    def fetch(missing: list[str], into: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            requirements = Path(scratch) / "requirements"
            requirements.write_text(locks.format_wheels(wheel for wheel in wanted if wheel.sha256 in missing))
            pip.download(requirements, into)

    _fill({wheel.sha256: f"{wheel.name} {wheel.version}" for wheel in wanted}, cache, fetch)
    return {wheel: cache / wheel.sha256 for wheel in wanted}


def _fill(wanted: Mapping[str, str], cache: Path, fetch: Callable[[list[str], Path], None]) -> None:
    missing = [digest for digest in wanted if not _is_kept(cache / digest)]
    if not missing:
        return
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as scratch:
        try:
            fetch(missing, Path(scratch))
        except StaleLock:
            raise
        except FmctlError as error:
            raise _stale([wanted[digest] for digest in missing], error.why or error.what) from error
        _keep(Path(scratch).iterdir(), cache)
    if lost := [wanted[digest] for digest in missing if not _is_kept(cache / digest)]:
        raise _stale(lost, "what came instead has another SHA-256")


def _is_kept(path: Path) -> bool:
    return path.is_file() and sha256(path) == path.name


def _keep(paths: Iterable[Path], cache: Path) -> None:
    for path in paths:
        path.replace(cache / sha256(path))


def _stale(names: Sequence[str], why: str) -> StaleLock:
    some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return StaleLock(
        f"the lock is stale: {some} cannot be had",
        why=why,
        fix="see that the network is there; if it is, make a new lock: service-vm/update-lock",
    )
