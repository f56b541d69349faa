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


def test_it_holds_what_the_agent_needs_of_the_package_alone(archive: Path) -> None:
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
    names = {member.name for member in members}
    assert {name.split("/")[0] for name in names} == {"fmctl"}
    assert {"fmctl/__main__.pyc", "fmctl/guest/worker.pyc", "fmctl/service-vm/fabricmanager.cfg.j2"} <= names
    assert {path.suffix for path in map(Path, names)} <= {"", ".pyc", ".j2"}
    assert {(m.uid, m.gid, m.mtime, m.mode) for m in members if m.isfile()} == {(0, 0, 86400, 0o644)}
    others = ("fmctl/daemon", "fmctl/local", "fmctl/host/", "fmctl/sim/", "fmctl/control/reconciler")
    assert not [name for name in names if name.startswith(others)]


def test_a_simulated_fabric_manager_is_in_it_where_the_image_has_one(tmp_path: Path) -> None:
    agent.compiled(PYTHON, 86400, tmp_path / "agent.tar", simulated=True)
    subprocess.run(["/bin/tar", "-xf", str(tmp_path / "agent.tar"), "-C", str(tmp_path)], check=True)
    done = _started(tmp_path, "sim", "nv-fabricmanager", "--help")
    assert done.returncode == 0, done.stderr


def test_its_agent_starts_from_compiled_modules_alone(archive: Path, tmp_path: Path) -> None:
    subprocess.run(["/bin/tar", "-xf", str(archive), "-C", str(tmp_path)], check=True)
    done = _started(tmp_path, "agent", "--help")
    assert done.returncode == 0, done.stderr
    assert agent.version() == __version__


def test_no_module_of_it_lacks_another(archive: Path, tmp_path: Path) -> None:
    subprocess.run(["/bin/tar", "-xf", str(archive), "-C", str(tmp_path)], check=True)
    modules = sorted(path.relative_to(tmp_path).with_suffix("") for path in tmp_path.rglob("*.pyc"))
    names = [".".join(path.parts).removesuffix(".__init__") for path in modules if path.name != "__main__"]
    asked = f"import importlib; [importlib.import_module(name) for name in {names!r}]"
    done = _python(tmp_path, "-c", asked)
    assert done.returncode == 0, done.stderr


def _started(where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return _python(where, "-m", "fmctl", *arguments)


def _python(where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(where)},
        cwd=where,
        capture_output=True,
        text=True,
        check=False,
    )
