# SPDX-License-Identifier: Apache-2.0
"""`fmctl gpu` and `fmctl partition`, each command a process of its own."""

from __future__ import annotations

import json

from fmctl.core.book import Kind, Mark, MarkKind, of_mark
from tests.cli.conftest import Fmctl
from tests.rpc.leasing import TIMEOUT, Host, pair


def test_gpus_are_listed_with_who_has_them_and_why_they_are_set_aside(host: Host, fmctl: Fmctl) -> None:
    lease = host.client.allocate(pair(), timeout=TIMEOUT).lease
    host.vm(*lease.gpus)
    assert fmctl("gpu", "cordon", "8", "--reason", "its fan is loud").stdout == "GPU 8 is cordoned\n"
    lines = fmctl("gpu", "list").stdout.splitlines()
    assert lines[0].split() == ["GPU", "PCI", "ADDRESS", "DRIVER", "HELD", "BY", "OWNER", "SET", "ASIDE"]
    rows = {line.split()[0]: line for line in lines[2:]}
    assert len(rows) == 8
    assert " vfio-pci " in rows[str(lease.gpus[0])]
    assert "qemu" in rows[str(lease.gpus[0])]
    assert rows["8"].endswith("cordoned")
    assert "its fan is loud (since 20" in fmctl("gpu", "list", "-o", "wide").stdout
    listed = json.loads(fmctl("gpu", "list", "-o", "json").stdout)
    (mine,) = [each for each in listed["gpus"] if each["physical_id"] == lease.gpus[0]]
    assert (mine["lease"], mine["owner"], mine["spare"], mine["marks"]) == (lease.id, "a", False, [])
    assert mine["address"].startswith("0000:")
    assert isinstance(mine["iommu_group"], int)
    (marked,) = [each["marks"] for each in listed["gpus"] if each["physical_id"] == 8]
    assert (marked[0]["kind"], marked[0]["reason"]) == ("cordoned", "its fan is loud")

    shown = fmctl("gpu", "show", "8").stdout
    assert "cordoned     its fan is loud (since 20" in shown
    assert "numa node" in shown
    assert fmctl("gpu", "uncordon", "8").returncode == 0
    assert json.loads(fmctl("gpu", "show", "8", "-o", "json").stdout)["marks"] == []


def test_a_quarantine_ends_by_a_person_with_a_reason(host: Host, fmctl: Fmctl) -> None:
    mark = Mark(MarkKind.QUARANTINED, "its memory was not clean", 1.0)
    host.controller.store.commit((of_mark(Kind.GPU, "3", mark),), at=1.0)
    vm = host.vm(3)
    refused = fmctl("gpu", "unquarantine", "3", "--reason", "tested")
    assert (refused.returncode, "has it open" in refused.stderr) == (4, True)
    host.machine.hypervisor.kill(vm.uuid)
    assert fmctl("gpu", "unquarantine", "3").returncode == 2
    assert fmctl("gpu", "unquarantine", "3", "--reason", "tested").stdout == "GPU 3 is not in quarantine\n"
    assert json.loads(fmctl("capacity", "-o", "json").stdout)["gpus"]["quarantined"] == 0


def test_partitions_are_cordoned_and_shown_with_what_is_in_the_way(host: Host, fmctl: Fmctl) -> None:
    assert fmctl("partition", "cordon", "3", "--reason", "a bad trunk").returncode == 0
    assert fmctl("activate", "3").returncode == 4
    lines = fmctl("partition", "list").stdout.splitlines()
    (row,) = [line for line in lines if line.startswith("3 ")]
    assert row.split() == ["3", "Inactive", "1,3", "-", "cordoned"]
    assert "the partition is cordoned (a bad trunk)" in fmctl("partition", "list", "-o", "wide").stdout
    assert "in the way   the partition is cordoned (a bad trunk)" in fmctl("partition", "show", "3").stdout
    assert fmctl("partition", "uncordon", "3", "--reason", "a new board").returncode == 0
    assert json.loads(fmctl("partition", "show", "3", "-o", "json").stdout)["blocks"] == []
    assert fmctl("activate", "3").returncode == 0
    entry = host.store.entries(0, limit=99)[1]
    assert (entry.what, entry.detail) == ("no longer cordoned", "a new board")


def test_what_is_not_there_is_not_found(host: Host, fmctl: Fmctl) -> None:
    for command in (("show", "99"), ("cordon", "99", "--reason", "x"), ("unquarantine", "99", "--reason", "x")):
        assert fmctl("gpu", *command).returncode == 3
    for command in (("show", "99"), ("uncordon", "99")):
        assert fmctl("partition", *command).returncode == 3
    assert fmctl("gpu", "cordon", "1", "--reason", " ").returncode == 2
