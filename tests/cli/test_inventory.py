# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

from fmctl import platforms
from fmctl.core.pci import Bdf
from fmctl.sim.sysfs import SimulatedBus
from tests import sysfs_tree
from tests.support import run

GPU = Bdf.parse("0000:17:00.0")


@pytest.mark.parametrize("board", platforms.names())
def test_a_pretended_host_is_whole(board: str) -> None:
    done = run("inventory", "--simulate", board)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("ROLE ")
    assert done.stdout.count("\ngpu ") == len(platforms.load(board).physical_ids)


def test_a_host_is_read_below_its_root_and_its_differences_are_drift(tmp_path: Path) -> None:
    host = SimulatedBus(platforms.load("hgx-h100-8"))
    host.kill(GPU)
    sysfs_tree.write(host, tmp_path / "sys")
    done = run("inventory", "--root", str(tmp_path), "-o", "json")
    assert done.returncode == 6
    assert done.stderr == f"fmctl: dead: gpu {GPU} does not answer: its registers read as all ones\n"
    document = json.loads(done.stdout)
    assert document["platform"] == "hgx-h100-8"
    (gpu,) = (device for device in document["devices"] if device["address"] == str(GPU))
    assert (gpu["answers"], gpu["iommu_group"], gpu["id"]) == (False, 11, "10de:2330")
    assert document["problems"] == [
        {"fault": "dead", "text": f"gpu {GPU} does not answer: its registers read as all ones"}
    ]


def test_names_and_wide() -> None:
    names = run("inventory", "--simulate", "hgx-h100-8", "-o", "name").stdout.splitlines()
    assert names[0] == f"gpu/{GPU}"
    assert "memory-controller/0000:02:00.0" in names
    wide = run("inventory", "--simulate", "hgx-h100-8", "-o", "wide").stdout.splitlines()
    assert wide[2].split()[-6:] == ["10de:2330", "32", "GT/s", "x16", "flr,bus", "0000:00:02.2"]


def test_a_host_without_a_board_is_a_failure_with_what_to_do(tmp_path: Path) -> None:
    done = run("inventory", "--root", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("fmctl: there is no HGX board here\n  why: ")
