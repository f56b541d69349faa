# SPDX-License-Identifier: Apache-2.0
"""A flat repository of exactly the locked packages, so that mmdebstrap can install nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from fmctl import process
from imagebuild.lock import Package

_ALONE = ["Package", "Version", "Architecture", "Maintainer", "Description"]


def make(debs: Mapping[Package, Path], folder: Path, *, dependencies: bool) -> str:
    """Make it in `folder`, which anyone may read, and return its line for apt; raises FmctlError.

    Without dependencies each package stands alone, so that apt takes exactly those it is told to.
    """
    fields = [] if dependencies else _ALONE
    folder.mkdir(mode=0o755)
    index = []
    for package in sorted(debs):
        path = folder / f"{package.name}_{package.sha256[:16]}.deb"
        shutil.copyfile(debs[package], path)
        path.chmod(0o644)
        control = process.run(["dpkg-deb", "--field", str(path), *fields], timeout=60).rstrip("\n")
        size = path.stat().st_size
        index.append(f"{control}\nFilename: ./{path.name}\nSize: {size}\nSHA256: {package.sha256}\n")
    (folder / "Packages").write_text("\n".join(index))
    (folder / "Packages").chmod(0o644)
    return f"deb [trusted=yes] copy:{folder} ./"
