# SPDX-License-Identifier: Apache-2.0
"""The lock: which Debian packages and Python wheels go into an image, each by version and SHA-256.

A folder with two files. `packages` is ours, one package a line; `wheels` is in pip's own format.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fmctl.core.errors import InvalidDocument

ROOT, DRIVER, STAGE = GROUPS = ("root", "driver", "stage")
"""What is always in the root, what NVIDIA's packages need beside it, and what the throw-away stage is made of."""

_HEADER = "# Made by service-vm/update-lock: group, package, version, architecture, SHA-256.\n"
_WHEELS_HEADER = "# Made by service-vm/update-lock.\n"
_WHEEL = re.compile(r"([A-Za-z0-9._-]+)==(\S+) --hash=sha256:([0-9a-f]{64})")


@dataclass(frozen=True, order=True)
class Package:
    """One Debian package of one group."""

    group: str
    name: str
    version: str
    architecture: str
    sha256: str


@dataclass(frozen=True, order=True)
class Wheel:
    """One Python wheel."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True)
class Lock:
    """All that an image is made of, but for this checkout and NVIDIA's packages."""

    epoch: int
    packages: tuple[Package, ...]
    wheels: tuple[Wheel, ...]

    def group(self, *groups: str) -> tuple[Package, ...]:
        """The packages of these groups, each once."""
        unique = {package.name: package for package in self.packages if package.group in groups}
        return tuple(unique[name] for name in sorted(unique))


def read(folder: Path) -> Lock:
    """Read a lock; raises InvalidDocument."""
    try:
        return Lock(*parse_packages((folder / "packages").read_text()), parse_wheels((folder / "wheels").read_text()))
    except (OSError, ValueError) as error:
        raise InvalidDocument(
            f"the lock {folder} cannot be read", why=str(error), fix="make it again: service-vm/update-lock"
        ) from error


def write(lock: Lock, folder: Path) -> None:
    """Write a lock."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "packages").write_text(_HEADER + format_packages(lock.epoch, lock.packages))
    (folder / "wheels").write_text(_WHEELS_HEADER + format_wheels(lock.wheels))


def parse_packages(text: str) -> tuple[int, tuple[Package, ...]]:
    """The date and the packages; raises ValueError."""
    (keyword, epoch), *rest = (line.split() for line in _lines(text))
    if keyword != "epoch":
        raise ValueError("the first line of packages is not its epoch")
    packages = tuple(Package(*words) for words in rest if _is_package(words))
    return int(epoch), packages


def _is_package(words: list[str]) -> bool:
    if len(words) != 5 or words[0] not in GROUPS or not re.fullmatch("[0-9a-f]{64}", words[4]):
        raise ValueError(f"this is no package: {' '.join(words)}")
    return True


def parse_wheels(text: str) -> tuple[Wheel, ...]:
    """The wheels; raises ValueError."""
    wheels = []
    for line in _lines(text):
        if not (found := _WHEEL.fullmatch(line)):
            raise ValueError(f"this is no wheel: {line}")
        wheels.append(Wheel(*found.groups()))
    return tuple(wheels)


def format_packages(epoch: int, packages: Iterable[Package]) -> str:
    """What `parse_packages` reads."""
    lines = [f"{p.group} {p.name} {p.version} {p.architecture} {p.sha256}\n" for p in sorted(packages)]
    return "".join([f"epoch {epoch}\n", *lines])


def format_wheels(wheels: Iterable[Wheel]) -> str:
    """What `parse_wheels` and pip read."""
    return "".join(f"{w.name}=={w.version} --hash=sha256:{w.sha256}\n" for w in sorted(wheels))


def _lines(text: str) -> Iterator[str]:
    return (line for line in text.splitlines() if line and not line.startswith("#"))
