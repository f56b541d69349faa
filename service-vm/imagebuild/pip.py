# SPDX-License-Identifier: Apache-2.0
"""Python's wheels through pip, for the Python of the image, by the pip settings of the machine."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fmctl import process
from fmctl.core.errors import FmctlError
from imagebuild import CHECKOUT
from imagebuild.lock import Wheel

_TARGET = (
    *("--only-binary=:all:", "--implementation", "cp", "--python-version", "3.11"),
    *("--platform", "manylinux2014_x86_64", "--platform", "manylinux_2_28_x86_64", "--platform", "linux_x86_64"),
)
_TIMEOUT = 900.0


def resolve(requirements: Sequence[str], constraints: Path) -> list[Wheel]:
    """The wheels that these requirements come to; raises FmctlError."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report"
        command = ["install", "--quiet", "--dry-run", "--ignore-installed", "--report", str(report), *_TARGET]
        process.run(
            [*_pip(), *command, "--target", scratch, "--constraint", str(constraints), *requirements], timeout=_TIMEOUT
        )
        return [_wheel(item) for item in json.loads(report.read_text())["install"]]


def _wheel(item: dict[str, dict[str, dict[str, dict[str, str]]]]) -> Wheel:
    metadata, archive = item["metadata"], item["download_info"]["archive_info"]
    return Wheel(str(metadata["name"]).lower(), str(metadata["version"]), archive["hashes"]["sha256"])


def download(requirements: Path, folder: Path) -> None:
    """Fetch the wheels of a file of requirements with hashes; raises FmctlError."""
    command = ["download", "--quiet", "--no-deps", "--require-hashes", *_TARGET]
    process.run([*_pip(), *command, "--dest", str(folder), "--requirement", str(requirements)], timeout=_TIMEOUT)


def _pip() -> list[str]:
    for python in (sys.executable, str(CHECKOUT / ".venv/bin/python"), "/usr/bin/python3"):
        try:
            process.run([python, "-m", "pip", "--version"], timeout=60)
        except FmctlError:
            continue
        return [python, "-m", "pip", "--disable-pip-version-check"]
    raise FmctlError("wheels cannot be fetched", why="this Python has no pip", fix="run tools/setup-image")
