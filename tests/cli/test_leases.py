# SPDX-License-Identifier: Apache-2.0
"""The commands of leases, each a process of its own, over a daemon with a host in memory behind it."""

from __future__ import annotations

import json
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest

from fmctl.core.book import Kind, Mark, MarkKind, of_mark
from fmctl.core.lease import LeaseState
from fmctl.core.request import Request
from tests.cli.conftest import Fmctl
from tests.cli.running import Running
from tests.rpc.leasing import TIMEOUT, Host, pair
from tests.support import run

VM = "11111111-2222-3333-4444-555555555555"


def made(host: Host, request: Request) -> str:
    """The id of a lease."""
    return host.client.allocate(request, timeout=TIMEOUT).lease.id


def plain(done: subprocess.CompletedProcess[str], code: int = 0) -> Any:
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def test_allocate_tells_the_lease_and_makes_a_request_id(host: Host, fmctl: Fmctl) -> None:
    done = fmctl("allocate", "--count", "2", "--owner", "a")
    assert (done.returncode, done.stderr) == (0, "")
    (lease,) = host.store.book.leases.values()
    assert str(uuid.UUID(lease.request_id)) == lease.request_id
    first, second, *_ = done.stdout.splitlines()
    assert first == f"lease {lease.id} is active: GPUs {lease.gpus[0]},{lease.gpus[1]}"
    assert second == f"request id  {lease.request_id}"
    assert f"/dev/vfio/{host.inventory().devices[0].function.iommu_group}" in done.stdout


def test_allocate_passes_on_all_that_is_asked(host: Host, fmctl: Fmctl) -> None:
    options = [
        *("--count", "3", "--shape", "round-up", "--owner", "a", "--request-id", "r", "--numa-node", "1"),
        *(
            "--vm",
            VM.upper(),
            "--label",
            "job=42",
            "--label",
            "x=",
            "--lifetime",
            "1.5h",
            "--guest-driver",
            "580.95.05",
        ),
    ]
    found = plain(fmctl("allocate", *options, "--no-wait", "-o", "json"))
    assert (found["state"], found["owner"], len(found["gpus"]), len(found["spare"])) == ("pending", "a", 3, 1)
    assert (found["vm"], found["labels"], found["simulated"]) == (VM, {"job": "42", "x": ""}, True)
    (lease,) = host.store.book.leases.values()
    assert Request.from_canonical("a", "r", lease.request) == Request(
        *("a", "r", 3),
        shape=Request.from_canonical("a", "r", '{"shape": "round-up"}').shape,
        numa_node=1,
        vm_uuid=VM,
        labels={"job": "42", "x": ""},
        lifetime=5400.0,
        guest_driver="580.95.05",
    )


@pytest.mark.parametrize(
    ("how", "partition"),
    [(("--gpu-ids", "3,1"), 3), (("--partition", "0"), 0), (("--addresses", "0000:17:00.0"), 7)],
    ids=lambda value: str(value),
)
def test_allocate_takes_what_is_named(host: Host, fmctl: Fmctl, how: tuple[str, ...], partition: int) -> None:
    name = fmctl("allocate", *how, "-o", "name").stdout
    (lease,) = host.store.book.leases.values()
    assert (name, lease.partitions) == (f"lease/{lease.id}\n", (partition,))


def test_a_dry_run_changes_nothing(host: Host, fmctl: Fmctl) -> None:
    done = fmctl("allocate", "--count", "2", "--dry-run")
    assert (done.returncode, done.stdout.splitlines()[0][:25]) == (0, "it would be granted: GPUs")
    assert host.store.book.revision == 0


def test_no_capacity_is_exit_7(host: Host, fmctl: Fmctl) -> None:
    made(host, Request("a", "r", count=8))
    done = fmctl("allocate", "--count", "2")
    assert (done.returncode, done.stdout, "--request-id" in done.stderr) == (7, "", False)
    assert "0 are free" in done.stderr


def test_what_may_be_tried_again_names_its_request_id(folder: Path) -> None:
    host = Host(folder, "hang@activate:1")
    try:
        env = {"FMCTL_ADDRESS": str(host.address)}
        done = run("allocate", "--count", "2", "--owner", "a", env=env)
        assert (done.returncode, done.stdout) == (5, "")
        told = done.stderr.splitlines()[0]
        assert told.startswith("fmctl: to make this request again: --request-id ")
        again = run("allocate", "--count", "2", "--owner", "a", *told.split()[-2:], env=env)
        assert again.returncode == 0
        assert len(host.store.book.leases) == 1
    finally:
        host.close()


def test_release_ends_a_lease_of_the_owner_s(host: Host, fmctl: Fmctl) -> None:
    lease = made(host, pair())
    done = fmctl("release", lease, "--owner", "b")
    assert (done.returncode, "it is of owner 'a'" in done.stderr) == (4, True)
    done = fmctl("release", f"lease/{lease}", "--owner", "a")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, f"lease {lease} is released: GPUs 1,3")
    assert host.client.lease(lease, timeout=TIMEOUT).lease.state is LeaseState.RELEASED
    assert fmctl("release", lease, "--owner", "a").returncode == 0
    assert fmctl("release", VM).returncode == 3


def test_release_need_not_wait(host: Host, fmctl: Fmctl) -> None:
    lease = made(host, pair())
    assert plain(fmctl("release", lease, "--owner", "a", "--no-wait", "-o", "json"))["state"] == "releasing"


def test_leases_are_listed_and_shown(host: Host, fmctl: Fmctl) -> None:
    first, second = made(host, pair("1", "a")), made(host, pair("2", "b"))
    host.client.release(first, wait=True, timeout=TIMEOUT)
    lines = fmctl("lease", "list").stdout.splitlines()
    assert (len(lines), lines[2].split()[0]) == (3, second)
    assert fmctl("lease", "list", "--all", "-o", "name").stdout == f"lease/{first}\nlease/{second}\n"
    assert fmctl("lease", "list", "--all", "--owner", "b", "--no-headers").stdout.startswith(second)
    assert [x["owner"] for x in plain(fmctl("lease", "list", "-o", "json"))["leases"]] == ["b"]
    shown = fmctl("lease", "show", second).stdout
    assert shown.startswith(f"lease       {second}\nstate       active\nowner       b\n")
    assert fmctl("lease", "show", VM).returncode == 3


def test_a_lease_is_changed(host: Host, fmctl: Fmctl) -> None:
    lease = made(host, pair())
    found = plain(
        fmctl("lease", "update", lease, "--owner", "a", "--vm", VM, "--label", "a=b", "--lifetime", "90", "-o", "json")
    )
    assert (found["vm"], found["labels"], found["expires"] is None) == (VM, {"a": "b"}, False)
    bare = plain(
        fmctl(
            "lease",
            "update",
            lease,
            "--owner",
            "a",
            "--no-vm",
            "--no-labels",
            "--no-expiry",
            "--etag",
            found["etag"],
            "-o",
            "json",
        )
    )
    assert (bare["vm"], bare["labels"], bare["expires"]) == ("", {}, None)
    assert fmctl("lease", "update", lease, "--owner", "a", "--no-vm", "--etag", "0").returncode == 4
    assert fmctl("lease", "update", lease, "--owner", "b", "--no-vm").returncode == 4


def test_capacity(host: Host, fmctl: Fmctl) -> None:
    made(host, pair())
    assert fmctl("capacity").stdout == (
        "GPUs  LEASES\n----  ------\n1     6\n2     3\n4     1\n8     0\n\n8 GPUs: 6 free, 2 busy\n"
    )
    host.client.cordon("a memory bank", actor="x", timeout=TIMEOUT)
    assert fmctl("capacity").stdout.endswith("2 busy\nthis host takes no new work: it is cordoned: a memory bank\n")
    found = plain(fmctl("capacity", "-o", "json"))
    assert found["sizes"][0] == {"gpus": 1, "leases": 0}
    assert (found["gpus"]["total"], found["gpus"]["free"], found["cordoned"]) == (8, 6, "it is cordoned: a memory bank")


def test_whether_sizes_fit_together_is_the_exit_status(host: Host, fmctl: Fmctl) -> None:
    done = fmctl("can-allocate", "2", "2", "4")
    assert done.returncode == 0
    assert done.stdout.startswith("yes: 2 by partition ") and done.stdout.count("by partition") == 3
    assert plain(fmctl("can-allocate", "8", "1", "-o", "json"), 7) == {
        "possible": False,
        "partitions": [],
        "rule": "",
        "simulated": True,
    }
    assert fmctl("can-allocate", "8", "1").stdout == "no: they could not be granted together now\n"


def test_an_explanation_fits_eighty_columns(host: Host, fmctl: Fmctl) -> None:
    made(host, Request("a", "r", gpu_ids=(1,)))
    text = fmctl("explain", "--count", "2").stdout
    assert text.count(" is taken:\n") == 1
    assert "partition 3 of GPUs 1,3 is not:\n  GPU 1 is busy\n" in text
    assert max(map(len, text.splitlines())) <= 80
    found = plain(fmctl("explain", "--count", "2", "-o", "json"))
    assert [candidate["partition"] for candidate in found["candidates"]] == [3, 4, 5, 6]
    assert [candidate["taken"] for candidate in found["candidates"]].count(True) == 1
    single = plain(fmctl("explain", "--count", "2", "--shape", "unlinked", "--numa-node", "1", "-o", "json"))
    assert [len(x["gpus"]) for x in single["candidates"] if x["taken"]] == [1, 1]


def test_the_host_says_who_it_is(host: Host, fmctl: Fmctl) -> None:
    text = fmctl("host", "info").stdout
    assert "host        a-host\nplatform    hgx-h100-8\n" in text
    assert text.endswith("simulated   no hardware stands behind this host\n")
    found = plain(fmctl("host", "info", "-o", "json"))
    assert (found["store_id"], found["api_version"]) == (host.store.book.store_id, "v1")


def test_a_host_is_cordoned_and_uncordoned(host: Host, fmctl: Fmctl) -> None:
    assert fmctl("host", "cordon", "--reason", "a memory bank").stdout == "this host takes no new work\n"
    done = fmctl("allocate", "--count", "2")
    assert (done.returncode, "why: a memory bank" in done.stderr) == (4, True)
    assert fmctl("host", "uncordon").stdout == "this host takes new work again\n"
    assert fmctl("allocate", "--count", "2").returncode == 0


def test_a_drain_waits_for_the_last_lease(host: Host, fmctl: Fmctl) -> None:
    first, second = made(host, pair("1")), made(host, pair("2"))
    done = fmctl("host", "drain", "--timeout", "1")
    assert (done.returncode, done.stdout) == (4, "")
    assert "fmctl: 2 leases are left on this host after 1 s" in done.stderr
    assert f"{first} of a, GPUs" in done.stderr and f"{second} of a, GPUs" in done.stderr
    with Running(host, "host", "drain", "--timeout", "30") as drain:
        host.client.release(first, wait=True, timeout=TIMEOUT)
        assert drain.process.poll() is None
        host.client.release(second, wait=True, timeout=TIMEOUT)
        assert drain.ended() == (0, "this host takes no new work, and no lease is left on it\n", "")
    assert fmctl("host", "drain", "--timeout", "5").returncode == 0
    assert host.controller.queries.closed == "it is cordoned: it is drained"


def test_what_is_planned_is_exit_6(host: Host, fmctl: Fmctl) -> None:
    same = fmctl("reconcile")
    assert (same.returncode, same.stdout) == (0, "leases and active partitions are the same set\n")
    host.nvfm.activate(14, timeout=TIMEOUT)
    done = fmctl("reconcile", "--dry-run")
    assert (done.returncode, done.stdout) == (6, "left alone: partition 14 is active, and no lease holds it\n")
    lease = host.client.allocate(pair(), wait=False, timeout=TIMEOUT).lease.id
    mark = Mark(MarkKind.OBSERVED, "it has tenants", 0.0)
    host.controller.store.commit((of_mark(Kind.HOST, "", mark),), at=0.0)
    done = fmctl("reconcile")
    assert (done.returncode, done.stdout.splitlines()) == (
        6,
        [
            f"to do: record of lease {lease}: activating",
            "left alone: partition 14 is active, and no lease holds it",
            "nothing is done before `fmctl reconcile --accept`: it has tenants",
        ],
    )
    assert plain(fmctl("reconcile", "-o", "json"), 6)["observed"] == "it has tenants"
    done = fmctl("reconcile", "--accept")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "from now on what is to do is done")
    assert host.controller.reconciler.observed == ""


def test_a_partition_is_deactivated_by_force(host: Host, fmctl: Fmctl) -> None:
    made(host, Request("a", "r", partition_id=3))
    assert fmctl("deactivate", "3", "--owner", "b").returncode == 4
    done = fmctl("deactivate", "3", "--owner", "b", "--force")
    assert (done.returncode, done.stdout) == (0, "partition 3 is now inactive: GPUs 1,3\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["allocate"], "Give one of --count, --gpu-ids, --addresses and --partition"),
        (["allocate", "--count", "2", "--partition", "3"], "Give one of --count"),
        (["allocate", "--count", "17"], "17 is not in the range 1<=x<=16"),
        (["allocate", "--count", "0"], "0 is not in the range"),
        (["allocate", "--count", "2", "--shape", "square"], "'square' is not one of"),
        (["allocate", "--count", "2", "--vm", "x"], "'x' is no UUID"),
        (["allocate", "--count", "2", "--label", "x"], "'x' is no label such as job=42"),
        (["allocate", "--count", "2", "--label", "=x"], "'=x' is no label"),
        (["allocate", "--count", "2", "--lifetime", "0"], "'0' is no duration such as 90s"),
        (["allocate", "--count", "2", "--lifetime", "1w"], "'1w' is no duration"),
        (["allocate", "--count", "2", "--lifetime", "900d"], "its lifetime must be at most"),
        (["allocate", "--addresses", "1b:00.0"], "1b:00.0"),
        (["allocate", "--gpu-ids", "1", "--shape", "unlinked"], "the shape unlinked is for a count"),
        (["allocate", "--count", "2", "--owner", ""], "it is empty"),
        (["release", "x"], "'x' is no UUID"),
        (["release"], "Missing argument"),
        (["lease", "show", "lease/x"], "'x' is no UUID"),
        (["lease", "update", VM], "Give what is to be changed"),
        (["lease", "update", VM, "--vm", VM, "--no-vm"], "exclude each other"),
        (["lease", "update", VM, "--label", "a=b", "--no-labels"], "exclude each other"),
        (["can-allocate"], "Missing argument"),
        (["can-allocate", "2", "17"], "17 is not in the range"),
        (["explain"], "Missing option '--count'"),
        (["watch", "--since", "3"], "--since and --store-id go together"),
        (["host", "cordon"], "Missing option '--reason'"),
        (["reconcile", "--dry-run", "--accept"], "exclude each other"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_misuse_is_exit_2_before_anything_is_dialled(arguments: list[str], says: str) -> None:
    done = run(*arguments, "--address", "unix:/no/such.sock")
    assert done.returncode == 2, done.stderr
    assert says in " ".join(done.stderr.split())
    assert (done.stdout, "Traceback" in done.stderr) == ("", False)
