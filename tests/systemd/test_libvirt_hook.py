# SPDX-License-Identifier: Apache-2.0
"""The script that libvirt calls, with a program in fmctl's place."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "systemd" / "libvirt-hook"
FMCTL = '#!/bin/sh\necho "$@"\ncat\nexit 7\n'


@pytest.fixture
def hook(tmp_path: Path) -> Path:
    """The script as it is installed below a folder, where fmctl refuses everything."""
    fmctl = tmp_path / "bin" / "fmctl"
    fmctl.parent.mkdir()
    fmctl.write_text(FMCTL)
    fmctl.chmod(0o755)
    script = tmp_path / "hook"
    script.write_text(SCRIPT.read_text().replace("@PREFIX@", str(tmp_path)))
    script.chmod(0o755)
    return script


def call(hook: Path, operation: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [hook, "-a name", operation, "begin", "-"], input="<domain/>", capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("operation", ["prepare", "migrate", "restore", "release", "reconnect", "unheard-of"])
def test_fmctl_is_asked_and_its_answer_is_libvirt_s(hook: Path, operation: str) -> None:
    done = call(hook, operation)
    assert (done.returncode, done.stdout) == (7, f"hook qemu -- -a name {operation} begin -\n<domain/>")


@pytest.mark.parametrize("operation", ["start", "started", "stopped"])
def test_libvirt_does_not_wait_where_nothing_is_decided(hook: Path, operation: str) -> None:
    done = call(hook, operation)
    assert (done.returncode, done.stdout) == (0, "")
