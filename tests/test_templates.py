# SPDX-License-Identifier: Apache-2.0
"""Finding templates: ours in a checkout and in an installed package, and an operator's in the place of ours."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fmctl import templates
from fmctl.core.errors import InvalidDocument

ROOT = Path(__file__).parent.parent
NAMES = ["macros.xml.j2", "service-vm.xml.j2", "tenant-devices.xml.j2", "tenant-vm.xml.j2"]


def test_ours_are_those_beside_the_package() -> None:
    found = templates.read()
    assert list(found) == NAMES
    for name, template in found.items():
        assert template.path == str(ROOT / "vm-templates" / name)
        assert template.text == Path(template.path).read_text()


def test_an_operator_s_file_takes_the_place_of_ours_of_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "tenant-vm.xml.j2").write_text("theirs")
    (tmp_path / "other.xml.j2").write_text("not ours")
    found = templates.read(tmp_path)
    assert list(found) == NAMES
    assert (found["tenant-vm.xml.j2"].path, found["tenant-vm.xml.j2"].text) == (
        str(tmp_path / "tenant-vm.xml.j2"),
        "theirs",
    )
    assert found["service-vm.xml.j2"] == templates.read()["service-vm.xml.j2"]


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_a_folder_that_is_none_is_refused(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "templates"
    if kind == "file":
        folder.touch()
    with pytest.raises(InvalidDocument) as refusal:
        templates.read(folder)
    assert refusal.value.why == f"{folder} is no folder"


@pytest.mark.parametrize(("content", "why"), [(b"\xff", "it is not UTF-8 text"), (None, "Is a directory")])
def test_a_file_that_cannot_be_read_is_refused_and_not_passed_over(
    tmp_path: Path, content: bytes | None, why: str
) -> None:
    file = tmp_path / "service-vm.xml.j2"
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    with pytest.raises(InvalidDocument) as refusal:
        templates.read(tmp_path)
    assert (refusal.value.what, refusal.value.why) == (f"{file} cannot be read", why)


def test_a_link_that_leads_nowhere_is_refused_and_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "service-vm.xml.j2").symlink_to("nowhere")
    with pytest.raises(InvalidDocument):
        templates.read(tmp_path)


def test_an_installed_package_has_them_inside(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "fmctl", tmp_path / "fmctl", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "vm-templates", tmp_path / "fmctl" / "vm-templates")
    done = subprocess.run(
        [sys.executable, "-m", "fmctl", "service-vm", "render", "--simulate", "hgx-h100-8"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("<domain type='kvm'>"), done.stderr
    assert '"vm-templates" = "fmctl/vm-templates"' in (ROOT / "pyproject.toml").read_text()


def test_fabric_manager_s_configuration_is_found_in_a_checkout_and_installed(tmp_path: Path) -> None:
    ours = templates.fabric_manager_config()
    assert ours.path == str(ROOT / "service-vm" / "fabricmanager.cfg.j2")
    shutil.copytree(ROOT / "fmctl", tmp_path / "fmctl", ignore=shutil.ignore_patterns("__pycache__"))
    code = "from fmctl import templates; print(templates.fabric_manager_config().text, end='')"

    def found() -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-c", code]
        env = {**os.environ, "PYTHONPATH": str(tmp_path)}
        return subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    assert "fmctl's templates are missing" in found().stderr
    shutil.copytree(ROOT / "service-vm", tmp_path / "fmctl" / "service-vm")
    assert found().stdout == ours.text
    project = (ROOT / "pyproject.toml").read_text()
    assert '"service-vm/fabricmanager.cfg.j2" = "fmctl/service-vm/fabricmanager.cfg.j2"' in project
    dependencies = project.partition("[project.optional-dependencies]")[0]
    assert '"jinja2>=' in dependencies


def test_a_package_without_them_says_so(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "fmctl", tmp_path / "fmctl", ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [sys.executable, "-m", "fmctl", "service-vm", "render", "--simulate", "hgx-h100-8"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("fmctl: fmctl's templates are missing\n")
