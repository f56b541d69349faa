# SPDX-License-Identifier: Apache-2.0
"""`fmctl service-vm render`."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmctl import platforms
from fmctl.cli.main import cli
from fmctl.core.domain import Domain
from fmctl.core.pci import Bdf
from fmctl.core.settings import DaemonSettings
from fmctl.sim.sysfs import SimulatedBus
from tests import images, sysfs_tree
from tests.domains import GOLDEN, LAB
from tests.support import run

KERNEL = "service_vm: {kernel: /boot/fmctl/vmlinuz, initrd: /boot/fmctl/initrd.img}\n"


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    file = tmp_path / "fmctld.yaml"
    file.write_text(KERNEL)
    return file


def test_a_pretended_host_has_a_kernel_for_it_unless_one_is_set(settings: Path) -> None:
    done = run("service-vm", "render", "--simulate", "hgx-b200-8")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(Domain.from_xml(done.stdout).hostdevs) == platforms.load("hgx-b200-8").nvswitches.count
    assert "<kernel>/boot/simulated-service-vm</kernel>" in done.stdout
    done = run("service-vm", "render", "--simulate", "hgx-h100-8", "--config", str(settings))
    assert done.stdout == (GOLDEN / "service-vm-h100.xml").read_text()


def test_a_host_is_read_below_its_root_and_settings_are_followed(tmp_path: Path, settings: Path) -> None:
    sysfs_tree.write(SimulatedBus(platforms.load("hgx-h100-8")), tmp_path / "sys")
    done = run("service-vm", "render", "--config", str(settings), "--root", str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (GOLDEN / "service-vm-h100.xml").read_text()


def test_a_missing_nvswitch_is_told(tmp_path: Path, settings: Path) -> None:
    bus = SimulatedBus(platforms.load("hgx-h100-8"))
    bus.remove(Bdf.parse("0000:05:00.0"))
    bus.remove(Bdf.parse("0000:17:00.0"))
    sysfs_tree.write(bus, tmp_path / "sys")
    done = run("service-vm", "render", "--config", str(settings), "--root", str(tmp_path))
    assert done.returncode == 0
    assert done.stderr == "fmctl: missing: 3 of 4 nvswitch functions are there\n"
    assert len(Domain.from_xml(done.stdout).hostdevs) == 4


def test_the_platform_is_that_of_the_option_or_of_the_settings(tmp_path: Path, settings: Path) -> None:
    sysfs_tree.write(SimulatedBus(platforms.read(LAB)), tmp_path / "sys")
    with_option = ("--config", str(settings), "--root", str(tmp_path), "--platform", str(LAB))
    assert run("service-vm", "render", *with_option).stdout == (GOLDEN / "service-vm-lab-kernel.xml").read_text()
    settings.write_text(f"{KERNEL}platform: {LAB}\n")
    assert run("service-vm", "render", *with_option[:4]).stdout == (GOLDEN / "service-vm-lab-kernel.xml").read_text()


def test_what_is_not_set_is_a_usage_error_that_says_what_to_set(tmp_path: Path) -> None:
    sysfs_tree.write(SimulatedBus(platforms.load("hgx-h100-8")), tmp_path / "sys")
    (tmp_path / "empty.yaml").touch()
    done = run("service-vm", "render", "--config", str(tmp_path / "empty.yaml"), "--root", str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "fmctl: no image is in use\n  why: none was chosen in the store yet\n  do:  name one with --image\n"
    )


def test_an_image_that_is_not_in_use_yet_can_be_looked_at(tmp_path: Path) -> None:
    folder = images.write(tmp_path / "580.95.05-1", images.files())
    done = run("service-vm", "render", "--simulate", "hgx-h100-8", "--image", str(folder))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"<kernel>{folder}/vmlinuz</kernel>" in done.stdout
    assert Domain.from_xml(done.stdout).image == str(folder)


def test_the_platform_of_the_settings_is_that_of_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sysfs_tree.write(SimulatedBus(platforms.read(LAB)), tmp_path / "sys")
    (tmp_path / "fmctld.yaml").write_text(f"platform: {LAB}\n")
    monkeypatch.setattr(DaemonSettings, "FILE", str(tmp_path / "fmctld.yaml"))
    cli.main(["inventory", "--root", str(tmp_path), "-o", "name"], standalone_mode=False)
    assert len(capsys.readouterr().out.splitlines()) == 7


def test_an_operator_s_template_is_used_and_what_is_wrong_with_it_is_told(tmp_path: Path, settings: Path) -> None:
    settings.write_text(f"{KERNEL}template_dir: {tmp_path}\n")
    template = tmp_path / "service-vm.xml.j2"
    template.write_text("<domain>\n{{ vm.nam }}\n</domain>\n")
    done = run("service-vm", "render", "--config", str(settings), "--simulate", "hgx-h100-8")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"fmctl: the template {template} cannot be filled\n"
        f"  why: {template}, line 2: 'fmctl.core.domain_xml.ServiceVm object' has no attribute 'nam'\n"
        "  do:  correct it, or remove it to use fmctl's own\n"
    )


def test_a_pretended_host_brings_its_own_platform() -> None:
    done = run("service-vm", "render", "--simulate", "hgx-h100-8", "--platform", "hgx-b200-8")
    assert done.returncode == 2
    assert "--simulate brings its own --platform." in done.stderr
