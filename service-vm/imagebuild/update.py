# SPDX-License-Identifier: Apache-2.0
"""Making the lock anew: service-vm/packages and service-vm/requirements, as today's repositories have them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from fmctl.core.errors import FmctlError, InvalidDocument
from imagebuild import CHECKOUT, RECIPE, lock, pip
from imagebuild.apt import Apt
from imagebuild.lock import Lock, Package

_DAY = 86400
_ESSENTIAL = ("?essential", "apt")
"""What mmdebstrap puts into every system that it installs."""


def run(folder: Path) -> Lock:
    """Write a new lock into `folder`, and return it; raises FmctlError."""
    wanted = _lines(RECIPE / "packages")
    with tempfile.TemporaryDirectory() as scratch:
        apt = Apt(Path(scratch))
        apt.update()
        packages = tuple(package for group in lock.GROUPS for package in _group(apt, group, wanted))
    wheels = pip.resolve(_lines(RECIPE / "requirements"), CHECKOUT / "tools" / "constraints.txt")
    made = Lock(int(time.time()) // _DAY * _DAY, packages, tuple(wheels))
    lock.write(made, folder)
    return made


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


def _group(apt: Apt, group: str, lines: list[str]) -> Iterator[Package]:
    names = [words[1] for words in (line.split() for line in lines) if words[0] == group]
    if group == lock.STAGE:
        names = sorted(apt.needed([*_ESSENTIAL, *names]))
    for record in apt.records(names):
        name = record["Package"]
        if name == "linux-image-amd64":
            record = apt.records([_kernel(record)])[0]
        yield Package(group, record["Package"], record["Version"], record["Architecture"], record["SHA256"])
    if unknown := set(names) - {record["Package"] for record in apt.records(names)}:
        raise InvalidDocument("the lock cannot be made", why=f"Debian has no {', '.join(sorted(unknown))}")


def _kernel(record: dict[str, str]) -> str:
    """The kernel's own package, which the package that always depends on the newest one names."""
    for dependency in record["Depends"].split(", "):
        if dependency.startswith("linux-image-"):
            return dependency.split()[0]
    raise FmctlError("the kernel's package is not found", why=f"linux-image-amd64 depends on {record['Depends']}")
