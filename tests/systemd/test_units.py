# SPDX-License-Identifier: Apache-2.0
"""The units as systemd itself reads them, below a root where what they start is there."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fmctl.rpc.endpoints import LAST_RESERVED_PORT

SYSTEMD = Path(__file__).parent.parent.parent / "systemd"
UNITS = sorted(path.name for path in SYSTEMD.glob("fmctl*") if path.suffix in (".service", ".target"))
PROGRAMS = ("usr/bin/fmctl", "usr/lib/fmctl/start-agent")
Record = Callable[[str, object], None]
EXPOSURE = 3.0
"""At most, of ten: what issue 4 asks for."""


def run(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    assert shutil.which(str(argv[0])), "make venv installs systemd's tools"
    return subprocess.run(argv, capture_output=True, text=True, check=False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with our units as they are installed, and systemd's own."""
    units = tmp_path / "usr/lib/systemd/system"
    shutil.copytree("/usr/lib/systemd/system", units, symlinks=True)
    for name in UNITS:
        (units / name).write_text((SYSTEMD / name).read_text().replace("@PREFIX@", "/usr"))
    for program in PROGRAMS:
        path = tmp_path / program
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(0o755)
    return tmp_path


def keys(name: str) -> dict[str, list[str]]:
    """Every key of a unit, with all its values."""
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"^([A-Z]\w+)=(.*)$", (SYSTEMD / name).read_text(), re.MULTILINE):
        found.setdefault(key, []).append(value)
    return found


def test_every_unit_is_known() -> None:
    assert UNITS == ["fmctl-agent.service", "fmctl-ready.service", "fmctl-ready.target", "fmctld.service"]


@pytest.mark.parametrize("name", UNITS)
def test_systemd_finds_no_fault(root: Path, name: str) -> None:
    done = run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", f"--root={root}", name)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_fault_would_be_found(root: Path) -> None:
    unit = root / "usr/lib/systemd/system/fmctld.service"
    unit.write_text(unit.read_text() + "\n[Service]\nRestart=sometimes\n")
    done = run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", f"--root={root}", unit.name)
    assert "restart specifier" in done.stderr


@pytest.mark.parametrize(("name", "exposure"), [("fmctld.service", EXPOSURE), ("fmctl-ready.service", 2.0)])
def test_little_is_left_open(
    root: Path, name: str, exposure: float, record_property: Callable[[str, object], None]
) -> None:
    unit = root / "usr/lib/systemd/system" / name
    done = run("systemd-analyze", "security", "--offline=true", f"--threshold={exposure * 10:.0f}", "--no-pager", unit)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    record_property("exposure", found[1])
    print(f"{name}: {found[1]}")  # noqa: T201
    assert done.returncode == 0, done.stdout
    assert float(found[1]) <= exposure


def test_what_the_program_relies_on_is_in_its_unit() -> None:
    unit = keys("fmctld.service")
    assert unit["Type"] == ["notify"]
    assert unit["NotifyAccess"] == ["main"]
    assert unit["RuntimeDirectoryPreserve"] == ["yes"], "the socket's folder stays"
    assert unit["StartLimitIntervalSec"] == ["0"], "it is started again for ever"
    assert "AF_VSOCK" in unit["RestrictAddressFamilies"][0]
    assert LAST_RESERVED_PORT < 1024
    assert "CAP_NET_BIND_SERVICE" in unit["CapabilityBoundingSet"][0]


def test_nothing_stops_with_the_daemon() -> None:
    for name in UNITS:
        for key in ("PartOf", "BindsTo", "PropagatesStopTo"):
            assert key not in keys(name), name
    assert not {"Requires", "Requisite"} & keys("fmctld.service").keys(), "libvirt may go away under the daemon"
    assert not {"Requires", "Requisite"} & keys("fmctl-ready.service").keys(), "the daemon may go away"


def test_the_agent_s_unit_leaves_fabric_manager_alive() -> None:
    unit = keys("fmctl-agent.service")
    assert unit["KillMode"] == ["process"]
    assert unit["OOMPolicy"] == ["continue"]
    assert unit["TimeoutStartSec"] == ["90"], "a trial agent that nobody confirms is ended"


def test_accounts_and_folders_are_well_formed(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    done = run("systemd-sysusers", f"--root={tmp_path}", SYSTEMD / "fmctl.sysusers")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert re.search("^fmctl:", (tmp_path / "etc" / "group").read_text(), re.MULTILINE)
    done = run("systemd-tmpfiles", "--create", f"--root={tmp_path}", SYSTEMD / "fmctl.tmpfiles")
    assert done.returncode == 0, done.stderr
    images = tmp_path / "var/lib/fmctl/images"
    assert images.stat().st_mode & 0o777 == 0o755, "libvirt's QEMU reads them"
    assert (tmp_path / "run/fmctl").stat().st_mode & 0o777 == 0o750


def test_folders_have_one_owner() -> None:
    """Where systemd finds another owner than its unit has, it gives the whole tree away at each start."""
    unit = keys("fmctld.service")
    lines = [line.split() for line in (SYSTEMD / "fmctl.tmpfiles").read_text().splitlines() if line.startswith("d ")]
    folders = {path: (mode, user, group) for _, path, mode, user, group, _ in lines}
    group = unit["Group"][0]
    assert folders["/run/fmctl"] == (unit["RuntimeDirectoryMode"][0], "root", group)
    assert folders["/var/lib/fmctl"] == (unit["StateDirectoryMode"][0], "root", group)


def test_run_is_closed_but_for_what_is_ours() -> None:
    """systemd 252 leaves it open under ProtectSystem=strict with ProtectKernelTunables, as seen."""
    assert "/run" in keys("fmctld.service")["ReadOnlyPaths"]


def test_a_newer_systemd_s_drop_in_is_read_as_such() -> None:
    parser = configparser.ConfigParser()
    parser.read(SYSTEMD / "10-systemd-254.conf")
    assert parser.sections() == ["Service"]
    assert not set(parser["Service"]) & {key.lower() for key in keys("fmctld.service")}
