# SPDX-License-Identifier: Apache-2.0
"""`fmctl layout`, and what rules look like on the command line, over a daemon with a host in memory behind it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from fmctl.core.layout import Layout
from fmctl.core.policy import Policy
from fmctl.core.request import Request
from tests.cli.conftest import Fmctl
from tests.rpc.leasing import TIMEOUT, Host
from tests.support import run


def test_a_layout_is_applied_shown_compared_and_ended(host: Host, fmctl: Fmctl) -> None:
    host.wake = lambda: host.controller.reconciler.reconcile()
    done = fmctl("layout", "show")
    assert (done.returncode, done.stdout) == (0, "layout      none\n")
    done = fmctl("layout", "diff", "4+2+1+1", "--keep-active")
    assert (done.returncode, done.stderr) == (6, "")
    assert done.stdout.splitlines()[0] == ("the layout 4+2+1+1 on 1,5,12,14, kept active is not applied, but none")
    assert host.store.book.revision == 0
    done = fmctl("layout", "apply", "1+1+2+4", "--keep-active")
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        "this host is as the layout 4+2+1+1 on 1,5,12,14, kept active has it\n",
        "",
    )
    assert host.active == {1, 5, 12, 14}
    assert fmctl("layout", "diff").returncode == 0
    shown = fmctl("layout", "show").stdout.splitlines()
    assert (shown[0], shown[4]) == (
        "layout      4+2+1+1 on 1,5,12,14, kept active",
        "1          Active  1,2,3,4  system:layout",
    )
    assert "system:layout" in fmctl("list", "-o", "wide").stdout
    done = fmctl("layout", "apply", "none")
    assert (done.returncode, done.stdout, host.active) == (0, "this host has no layout\n", set())


def test_what_tenants_hold_is_told_by_exit_6_and_a_dry_run_changes_nothing(host: Host, fmctl: Fmctl) -> None:
    lease = host.client.allocate(Request("a", "r", partition_id=7), timeout=TIMEOUT).lease.id
    before = host.store.book.revision
    done = fmctl("layout", "apply", "4x2", "--dry-run", "-o", "json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["applied"], found["shown"]) == (6, "", "4x2 on 3,4,5,6")
    assert host.store.book.revision == before
    done = fmctl("layout", "apply", "4x2")
    assert (done.returncode, done.stdout) == (
        6,
        f"lease {lease} of a holds partition 7, which is not in the layout 4x2\n",
    )
    assert [row["partition"] for row in json.loads(fmctl("layout", "show", "-o", "json").stdout)["rows"]] == [
        3,
        4,
        5,
        6,
    ]
    assert f"left alone: lease {lease} of a holds partition 7" in fmctl("reconcile").stdout


def test_what_is_no_layout_is_a_matter_of_usage(host: Host, fmctl: Fmctl) -> None:
    assert fmctl("layout", "apply", "4y2").returncode == 2
    assert fmctl("layout", "diff", "--keep-active").returncode == 2
    done = fmctl("layout", "apply")
    assert (done.returncode, "policy.layout is not set" in done.stderr) == (2, True)
    done = fmctl("layout", "apply", "2x3")
    assert (done.returncode, "the board has no partition of 3 GPUs" in done.stderr) == (3, True)


def test_a_refusal_names_the_layout(host: Host, fmctl: Fmctl) -> None:
    assert fmctl("layout", "apply", "4+2").returncode == 0
    done = fmctl("activate", "7")
    assert (done.returncode, "it is not in its layout 4+2" in done.stderr) == (1, True)
    done = fmctl("allocate", "--count", "1")
    assert (done.returncode, "the layout 4+2 of this host has no partition of 1 GPU" in done.stderr) == (3, True)
    assert "not in the layout 4+2" in fmctl("explain", "--count", "4").stdout
    capacity = fmctl("capacity").stdout
    assert "8 GPUs: 6 free, 2 outside the layout\nrule: the layout is 4+2 on 1,5\n" in capacity


def test_a_drain_leaves_the_layout_s_own_leases(host: Host, fmctl: Fmctl) -> None:
    host.wake = lambda: host.controller.reconciler.reconcile()
    assert fmctl("layout", "apply", "4x2", "--keep-active").returncode == 0
    done = fmctl("host", "drain", "--timeout", "30")
    assert (done.returncode, len(host.store.book.leases)) == (0, 4)
    assert fmctl("host", "uncordon").returncode == 0
    lease = host.client.allocate(Request("a", "r", count=2), timeout=TIMEOUT).lease.id
    done = fmctl("host", "drain", "--timeout", "1")
    assert (done.returncode, f"1 lease is left on this host after 1 s\n  why: {lease} of a" in done.stderr) == (4, True)


def test_a_rule_is_named_by_every_command_that_it_concerns(folder: Path) -> None:
    policy = Policy(max_gpus_per_owner=2, max_gpus_per_request=4, denied_owners=("x",), layout=Layout.parse("4x2"))
    with contextlib.closing(Host(folder, policy=policy)) as host:

        def fmctl(*arguments: str) -> tuple[int, str, str]:
            done = run(*arguments, env={"FMCTL_ADDRESS": str(host.address)})
            return done.returncode, done.stdout, done.stderr

        host.client.allocate(Request("a", "r", count=2), timeout=TIMEOUT)
        code, _, told = fmctl("allocate", "--count", "1", "--owner", "a", "--dry-run")
        assert (code, told) == (
            7,
            "fmctl: owner 'a' may not hold 1 GPU more\n"
            "  why: the setting policy.max_gpus_per_owner is 2, and it holds 2\n"
            "  do:  release some, or ask another host\n",
        )
        assert fmctl("allocate", "--count", "8", "--owner", "b")[0] == 1
        assert "policy.denied_owners names it" in fmctl("activate", "4", "--owner", "x")[2]
        assert fmctl("can-allocate", "4", "-o", "text")[1] == (
            "no: the setting policy.max_gpus_per_owner is 2, and it holds 0\n"
        )
        assert fmctl("can-allocate", "2", "2")[0] == 0
        assert fmctl("can-allocate", "1", "--owner", "a")[0] == 7
        assert "rule: policy.max_gpus_per_owner is 2\n" in fmctl("capacity", "--owner", "a")[1]
        assert fmctl("explain", "--count", "1", "--owner", "a")[0] == 7
        code, told, _ = fmctl("layout", "diff")
        assert (code, told) == (6, "the settings want the layout 4x2, and none is applied\n")
