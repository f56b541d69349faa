# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from fmctl import platforms
from fmctl.core.acs import NONE
from fmctl.core.kernel import AMD
from fmctl.sim.kernel import SimulatedKernel
from fmctl.sim.sysfs import SimulatedBus
from tests import kernel_tree, sysfs_tree
from tests.support import run


class Host:
    """A pretended host as files, and `fmctl host` on it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.bus = SimulatedBus(platforms.load("hgx-h100-8"))
        self.kernel = SimulatedKernel()

    def lay_out(self) -> None:
        sysfs_tree.write(self.bus, self._root / "sys")
        kernel_tree.write(self.kernel.facts(), self._root)

    def run(self, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run("host", command, "--root", str(self._root), *arguments)

    def file(self, name: str) -> Path:
        return self._root / "etc" / name / "fmctl.conf"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.mark.parametrize("board", platforms.names())
def test_nothing_is_found_on_a_pretended_host(board: str) -> None:
    done = run("host", "check", "--simulate", board)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"nothing found: this host can pass {board} on to VMs\n"


def test_nothing_is_found_on_a_host_of_files_that_is_set_up_well(host: Host) -> None:
    host.lay_out()
    done = host.run("check", "-o", "json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"platform": "hgx-h100-8", "findings": []}


def test_each_finding_says_what_why_and_what_to_do(host: Host) -> None:
    host.kernel.boot_with("pci=noaer,noacs")
    host.bus.behave(host.bus.functions()[20].ports[0], access=NONE)
    host.lay_out()
    done = host.run("check")
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    assert [line.split(":")[0].strip() for line in lines] == ["pci-noacs", "why", "do", "acs-cleared", "why", "do"]
    assert lines[0].endswith(": pci=noacs")
    assert lines[2] == "  do:  take it off the kernel's command line, and reboot"
    assert "setpci" in lines[5]


@pytest.mark.parametrize(("style", "load"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_findings_as_data(host: Host, style: str, load: object) -> None:
    host.kernel.change(iommus=())
    host.lay_out()
    done = host.run("check", "-o", style)
    assert done.returncode == 1
    assert callable(load)
    document = load(done.stdout)
    assert document["platform"] == "hgx-h100-8"
    (finding,) = document["findings"]
    assert sorted(finding) == ["fix", "name", "what", "why"]
    assert finding["name"] == "iommu-off"


def test_a_host_without_a_board_is_a_failure_with_what_to_do(tmp_path: Path) -> None:
    done = run("host", "check", "--root", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("fmctl: there is no HGX board here\n  why: ")


def test_the_board_can_be_named(host: Host) -> None:
    host.lay_out()
    done = host.run("check", "--platform", "hgx-a100-8", "-o", "json")
    assert json.loads(done.stdout)["platform"] == "hgx-a100-8"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("check", "--simulate", "hgx-h100-8", "--platform", "hgx-h100-8"), "--simulate brings its own --platform"),
        (("prepare",), "Give --dry-run or --write"),
        (("prepare", "--dry-run", "--write"), "Give --dry-run or --write"),
        (("prepare", "--write", "--simulate", "hgx-h100-8"), "--write does not go with --simulate"),
        (("prepare", "--dry-run", "--force"), "--force goes with --write"),
        (("prepare", "--dry-run", "--simulate", "hgx-h100"), "did you mean hgx-h100-8"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_does_not_go_together_is_refused(arguments: tuple[str, ...], said: str) -> None:
    done = run("host", *arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_dry_run_shows_everything_and_writes_nothing(host: Host) -> None:
    host.kernel.change(iommus=(), command_line=("ro", "pcie_acs_override=downstream"))
    host.lay_out()
    done = host.run("prepare", "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Switch VT-d on in the firmware's setup." in done.stdout
    assert "/etc/default/grub" in done.stdout and "reboot" in done.stdout
    assert "\n  add       intel_iommu=on\n  take off  pcie_acs_override=downstream\n" in done.stdout
    assert "/etc/modules-load.d/fmctl.conf would be written:\n  # " in done.stdout
    assert "\n  vfio-pci\n  vhost_vsock\n" in done.stdout
    assert "\n  blacklist nouveau\n" in done.stdout
    assert "modprobe -a vfio-pci vhost_vsock" in done.stdout and "update-initramfs" in done.stdout
    assert not host.file("modprobe.d").exists()


def test_a_pretended_host_can_be_prepared_as_far_as_showing_goes() -> None:
    done = run("host", "prepare", "--dry-run", "--simulate", "hgx-b200-8")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("The kernel's command line needs no change.\n")
    assert "/etc/modprobe.d/fmctl.conf would be written:" in done.stdout


def test_an_amd_host_without_iommu_is_sent_to_its_firmware(host: Host) -> None:
    host.kernel = SimulatedKernel(AMD)
    host.kernel.change(iommus=())
    host.lay_out()
    done = host.run("prepare", "--dry-run")
    assert done.stdout.startswith(
        "The IOMMU is off. Switch the IOMMU (AMD-Vi) on in the firmware's setup.\n"
        "The kernel's command line needs no change.\n"
    )


def test_files_are_written_once_and_the_command_line_never(host: Host) -> None:
    host.kernel.change(iommus=(), command_line=("ro",))
    host.lay_out()
    kernel_tree.put(host.file("x").parent.parent / "default" / "grub", "GRUB_CMDLINE_LINUX=")
    done = host.run("prepare", "--write")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\n/etc/modules-load.d/fmctl.conf was written.\n/etc/modprobe.d/fmctl.conf was written.\n" in done.stdout
    assert "  add       intel_iommu=on\n" in done.stdout
    assert "blacklist nvidia\n" in host.file("modprobe.d").read_text()
    assert (host.file("x").parent.parent / "default" / "grub").read_text() == "GRUB_CMDLINE_LINUX=\n"
    again = host.run("prepare", "--write")
    assert "/etc/modprobe.d/fmctl.conf is as it should be.\n" in again.stdout
    shown = host.run("prepare", "--dry-run")
    assert "/etc/modprobe.d/fmctl.conf is as it should be.\n" in shown.stdout and "blacklist" not in shown.stdout


def test_a_changed_file_is_kept_unless_it_is_forced(host: Host) -> None:
    host.lay_out()
    host.run("prepare", "--write")
    changed = host.file("modprobe.d").read_text() + "options kvm_intel nested=1\n"
    host.file("modprobe.d").write_text(changed)
    assert "only --force replaces it. It would be:\n  # " in host.run("prepare", "--dry-run").stdout
    refused = host.run("prepare", "--write")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("fmctl: nothing was written, since somebody else wrote or changed /etc/modprobe.d")
    assert "add --force" in refused.stderr
    assert host.file("modprobe.d").read_text() == changed
    forced = host.run("prepare", "--write", "--force")
    assert "/etc/modprobe.d/fmctl.conf was replaced, with what somebody else had written or changed." in forced.stdout
    assert "nested" not in host.file("modprobe.d").read_text()


def test_what_another_version_of_fmctl_wrote_is_replaced(host: Host) -> None:
    host.lay_out()
    host.run("prepare", "--write")
    host.file("modprobe.d").write_text(host.file("modules-load.d").read_text())
    assert "/etc/modprobe.d/fmctl.conf would be replaced:\n  # " in host.run("prepare", "--dry-run").stdout
    done = host.run("prepare", "--write")
    assert "/etc/modprobe.d/fmctl.conf was replaced.\n" in done.stdout
    assert "blacklist nvidia\n" in host.file("modprobe.d").read_text()
