# SPDX-License-Identifier: Apache-2.0
"""agent.tar: what is in it, and that it is the same each time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from fmctl import __version__
from imagebuild import CHECKOUT, agent

PYTHON = ("env", "PYTHONHASHSEED=0", sys.executable)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("agent") / "agent.tar"
    agent.compiled(PYTHON, 86400, target)
    return target


def test_it_is_the_same_from_another_folder_at_another_time(archive: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    for folder in ("fmctl", "vm-templates", "service-vm"):
        shutil.copytree(CHECKOUT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path in copy.rglob("*.py"):
        os.utime(path, (7, 7))
    agent.compiled(PYTHON, 86400, tmp_path / "agent.tar", copy)
    assert (tmp_path / "agent.tar").read_bytes() == archive.read_bytes()


def test_it_is_a_disk(archive: Path) -> None:
    assert archive.stat().st_size % 512 == 0


def test_it_holds_the_package_alone(archive: Path) -> None:
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
    names = {member.name for member in members}
    assert {name.split("/")[0] for name in names} == {"fmctl"}
    assert {"fmctl/__main__.pyc", "fmctl/platforms/hgx-h100-8.yaml"} <= names
    assert {path.suffix for path in map(Path, names)} <= {"", ".pyc", ".yaml", ".j2"}
    assert {(m.uid, m.gid, m.mtime, m.mode) for m in members if m.isfile()} == {(0, 0, 86400, 0o644)}


def test_it_holds_every_template_that_an_installed_package_has(archive: Path) -> None:
    templates = {f"fmctl/{path.relative_to(CHECKOUT)}" for path in CHECKOUT.glob("*vm*/*.j2")}
    with tarfile.open(archive) as tar:
        assert templates <= set(tar.getnames())
    assert templates


def test_its_agent_starts_from_compiled_modules_alone(archive: Path, tmp_path: Path) -> None:
    subprocess.run(["/bin/tar", "-xf", str(archive), "-C", str(tmp_path)], check=True)
    done = subprocess.run(
        [sys.executable, "-m", "fmctl", "agent", "--help"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert agent.version() == __version__
