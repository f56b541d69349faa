# SPDX-License-Identifier: Apache-2.0
"""The command lines, and what they refuse before anything is built."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from imagebuild import RECIPE


def build(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/usr/bin/env", "--default-signal=INT", sys.executable, str(RECIPE / "build"), *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def tools(tmp_path: Path) -> str:
    """A PATH where the tools seem to be; none of the refusals gets as far as to run one."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("mmdebstrap", "sqfstar", "unsquashfs", "dpkg-deb", "apt-get"):
        (folder / name).write_text("#!/bin/sh\necho never >&2\nexit 99\n")
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_help_tells_everything() -> None:
    done = build("--help")
    assert done.returncode == 0
    for option in ("--simulated-fm", "--driver", "--packages", "--platform", "--extra", "--agent-only", "--lock"):
        assert option in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--output", "x"], "is required"),
        (["--simulated-fm"], "--output"),
        (["--simulated-fm", "--driver", "580", "--output", "x"], "not allowed"),
        (["--driver", "580", "--output", "x"], "--driver needs --packages"),
        (["--driver", "580", "--packages", "p", "--platform", "y", "--output", "x"], "--platform goes with"),
        (["--simulated-fm", "--packages", "p", "--output", "x"], "--packages goes with --driver"),
        (["--agent-only", "--output", "x"], "--agent-only needs --from"),
        (["--agent-only", "--from", "i", "--extra", "e", "--output", "x"], "--extra changes the root"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: list[str], said: str) -> None:
    done = build(*arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path, tools: str) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "file").touch()
    done = build("--simulated-fm", "--output", tmp_path / "output", PATH=tools)
    assert done.returncode == 2
    assert "is not an empty folder" in done.stderr
    assert [path.name for path in (tmp_path / "output").iterdir()] == ["file"]


def test_missing_tools_are_named(tmp_path: Path) -> None:
    done = build("--simulated-fm", "--output", tmp_path / "output", PATH=str(tmp_path))
    assert done.returncode == 1
    assert "mmdebstrap" in done.stderr and "tools/setup-image" in done.stderr


def test_an_image_that_was_changed_gets_no_new_agent(tmp_path: Path, tools: str) -> None:
    done = build("--agent-only", "--from", tmp_path, "--output", tmp_path / "output", PATH=tools)
    assert done.returncode == 2
    assert "is no image" in done.stderr


def test_what_cannot_be_had_makes_the_lock_stale(tmp_path: Path, tools: str) -> None:
    lock = tmp_path / "lock"
    lock.mkdir()
    (lock / "packages").write_text(f"epoch 1\nroot nosuchpackage 1.0-1 amd64 {'0' * 64}\n")
    (lock / "wheels").write_text("")
    done = build(
        *("--simulated-fm", "--lock", lock, "--output", tmp_path / "output"),
        PATH=tools,
        FMCTL_IMAGE_CACHE=str(tmp_path / "cache"),
    )
    assert done.returncode == 3
    assert "the lock is stale: nosuchpackage 1.0-1" in done.stderr
    assert "service-vm/update-lock" in done.stderr
    assert not (tmp_path / "output").exists()


def test_an_interrupted_build_ends_at_once_and_leaves_nothing(tmp_path: Path, tools: str) -> None:
    (tmp_path / "tools" / "apt-get").write_text("#!/bin/sh\nkill -INT $PPID\nexec sleep 60\n")
    done = build(
        *("--simulated-fm", "--output", tmp_path / "output"),
        PATH=tools,
        FMCTL_IMAGE_CACHE=str(tmp_path / "cache"),
        TMPDIR=str(tmp_path),
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
    assert {path.name for path in tmp_path.iterdir()} == {"tools", "cache"}
    assert not list((tmp_path / "cache").iterdir())


def test_an_unknown_platform_is_refused_with_those_there_are(tmp_path: Path, tools: str) -> None:
    done = build("--simulated-fm", "--platform", "nosuch", "--output", tmp_path / "output", PATH=tools)
    assert done.returncode == 2
    assert "there is no platform nosuch" in done.stderr and "hgx-h100-8" in done.stderr


def test_an_extra_that_is_no_folder_is_refused(tmp_path: Path, tools: str) -> None:
    done = build("--simulated-fm", "--extra", tmp_path / "none", "--output", tmp_path / "output", PATH=tools)
    assert done.returncode == 2
    assert "there is no folder" in done.stderr
