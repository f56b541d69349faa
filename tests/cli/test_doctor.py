# SPDX-License-Identifier: Apache-2.0
"""`fmctl doctor`, over a daemon and without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fmctl import platforms
from fmctl.control.closedstore import ClosedStore
from fmctl.control.watch import WatchedStore
from fmctl.core.answers import GateStatus, HookLoad
from fmctl.core.book import Kind, Mark, MarkKind, of_mark
from fmctl.core.errors import StoreUnusable
from fmctl.host.hookfiles import HOOK
from fmctl.sim.sysfs import SimulatedBus
from tests import sysfs_tree
from tests.cli.conftest import Fmctl
from tests.rpc.leasing import Host
from tests.support import run

BOARD = ("--simulate", "hgx-h100-8")


def checks(text: str) -> dict[str, tuple[str, str, str]]:
    """The level of each check, what it says, and what to do."""
    plain: dict[str, Any] = json.loads(text)
    return {check["name"]: (check["level"], check["what"], check["fix"]) for check in plain["checks"]}


def test_a_host_that_is_well_ends_with_0(host: Host, fmctl: Fmctl) -> None:
    done = fmctl("doctor", *BOARD)
    assert (done.returncode, done.stderr) == (0, "")
    assert "ok       passthrough: this host can pass hgx-h100-8 on to VMs\n" in done.stdout
    assert "ok       fabric-manager: ready\n" in done.stdout
    assert done.stdout.endswith("ok       new-work: this host takes new work\n")
    assert json.loads(fmctl("doctor", *BOARD, "-o", "json").stdout)["level"] == "warning", "this daemon has no map"


def test_all_that_is_wrong_is_told_at_once_in_eighty_plain_columns(host: Host, fmctl: Fmctl) -> None:
    host.controller._lock = lambda: GateStatus(HookLoad.NOT_LOADED, "x", ("GPU 5 is held by qemu (process 7)",))
    mark = Mark(MarkKind.QUARANTINED, "its reset by bus did not end within 90 s", 1.0)
    host.controller.store.commit((of_mark(Kind.GPU, "8", mark),), at=1.0)
    host.controller.cordon("a memory bank", actor="a person")
    done = fmctl("doctor", *BOARD)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.isascii() and "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "warning  hook: not loaded; the gate is degraded" in done.stdout
    assert "         do: `systemctl restart libvirtd`\n" in done.stdout
    found = checks(fmctl("doctor", *BOARD, "-o", "json").stdout)
    assert found["alarm"][:2] == ("failed", "GPU 5 is held by qemu (process 7)")
    assert found["quarantine"][:2] == ("warning", "GPU 8 is quarantined: its reset by bus did not end within 90 s")
    assert found["new-work"] == (
        *("failed", "this host takes none: it is cordoned: a memory bank"),
        "`fmctl host uncordon`",
    )


def test_a_store_that_cannot_be_read_is_told_with_what_mends_it(host: Host, fmctl: Fmctl) -> None:
    closed = WatchedStore(ClosedStore(StoreUnusable("leases.db is damaged", why="it ends", fix="rebuild it"), 1.0))
    host.controller.store = host.controller.queries._store = closed
    assert checks(fmctl("doctor", *BOARD, "-o", "json").stdout)["store"] == (
        *("failed", "leases.db is damaged: it ends"),
        "rebuild it",
    )


def test_without_a_daemon_the_host_is_looked_at_all_the_same(folder: Path) -> None:
    sysfs_tree.write(SimulatedBus(platforms.load("hgx-h100-8")), folder / "sys")
    asked = ("doctor", "--root", str(folder), "-o", "json")

    def told() -> dict[str, tuple[str, str, str]]:
        done = run(*asked, env={"FMCTL_ADDRESS": f"unix:{folder}/d.sock"})
        assert (done.returncode, done.stderr) == (1, "")
        return checks(done.stdout)

    found = told()
    assert found["daemon"][0] == "failed" and "journalctl -u fmctld" in found["daemon"][2]
    assert found["iommu-off"][0] == "failed"
    assert found["hook"][:1] == ("failed",) and found["hook"][1].startswith("not installed")
    (folder / HOOK.parent).mkdir(parents=True)
    (folder / HOOK).touch()
    assert told()["hook"][0] == "warning"


@pytest.mark.parametrize("arguments", [("extra",), ("-o", "xml"), ("--simulate", "nope"), ("--config", "/nope")])
def test_wrong_arguments_are_usage_errors(arguments: tuple[str, ...]) -> None:
    done = run("doctor", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
