# SPDX-License-Identifier: Apache-2.0
"""Debian's packages through apt, with a state of its own: nothing of the machine's installation is read or changed.

The machine's sources and keys are used, or those of a file that the operator names; of them only Debian's suites of
this release.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from fmctl import process
from fmctl.core.errors import FmctlError

RELEASE = "bookworm"
SOURCES = "FMCTL_IMAGE_SOURCES"
"""Environment variable that names another file of apt sources than the machine's."""

_PREFERENCES = f"""\
Package: *
Pin: release o=Debian, n={RELEASE}*
Pin-Priority: 500

Package: *
Pin: release a=*
Pin-Priority: -1
"""


class Apt:
    """Apt in a scratch folder."""

    def __init__(self, folder: Path, environment: Mapping[str, str] = os.environ) -> None:
        self._options = _options(folder, environment)
        self._folder = folder

    def update(self) -> None:
        """Fetch the lists of packages; raises FmctlError."""
        try:
            process.run(["apt-get", *self._options, "--error-on=any", "-qq", "update"], timeout=600)
        except FmctlError as error:
            raise FmctlError(
                "the lists of Debian's packages cannot be fetched",
                why=error.why,
                fix=f"see `apt-get update`, or name a file of Debian {RELEASE}'s sources in {SOURCES}",
            ) from error

    def records(self, names: Sequence[str]) -> list[dict[str, str]]:
        """What the lists say of these packages, of each the newest version; raises FmctlError."""
        text = process.run(["apt-cache", *self._options, "show", "--no-all-versions", *names], timeout=120)
        return [parse_record(paragraph) for paragraph in text.split("\n\n") if paragraph.strip()]

    def needed(self, names: Sequence[str]) -> list[str]:
        """All packages that an empty system gets when these are installed; raises FmctlError."""
        text = process.run(
            ["apt-get", *self._options, "--simulate", "--no-install-recommends", "install", *names], timeout=120
        )
        return [line.split()[1] for line in text.splitlines() if line.startswith("Inst ")]

    def download(self, wanted: Sequence[str], folder: Path) -> None:
        """Fetch packages, given as name:architecture=version, into a folder; raises FmctlError."""
        scratch = self._folder / "download"
        scratch.mkdir(exist_ok=True)
        command = 'cd "$1" && shift && exec apt-get "$@"'
        process.run(
            ["sh", "-ec", command, "sh", str(scratch), *self._options, "-qq", "download", *wanted], timeout=3600
        )
        for path in scratch.iterdir():
            shutil.move(path, folder / path.name)


def parse_record(paragraph: str) -> dict[str, str]:
    """The single-line fields of a control paragraph."""
    lines = (line.partition(": ") for line in paragraph.splitlines() if line[:1].strip())
    return {name: value.strip() for name, _, value in lines}


def _options(folder: Path, environment: Mapping[str, str]) -> list[str]:
    for name in ("state/lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    (folder / "preferences").write_text(_PREFERENCES)
    settings = [
        f"Dir::State={folder / 'state'}",
        f"Dir::State::status={folder / 'status'}",
        f"Dir::Cache={folder / 'cache'}",
        f"Dir::Etc::preferences={folder / 'preferences'}",
        "Dir::Etc::preferencesparts=/dev/null",
        "APT::Architecture=amd64",
        "APT::Architectures=amd64",
        "APT::Sandbox::User=root",
        "Acquire::Languages=none",
    ]
    if sources := environment.get(SOURCES):
        settings += [f"Dir::Etc::sourcelist={sources}", "Dir::Etc::sourceparts=/dev/null"]
    return [word for setting in settings for word in ("-o", setting)]
