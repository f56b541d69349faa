# SPDX-License-Identifier: Apache-2.0
"""`fmctl adopt` over a real daemon on a pretended host, and `fmctl store` with none."""

from __future__ import annotations

from pathlib import Path

from fmctl.core import gpumap
from fmctl.core.book import of_lease
from fmctl.host.store import FileStore
from tests.cli.conftest import Fmctl
from tests.rpc.leasing import TIMEOUT, Host
from tests.stores import lease
from tests.support import run


def occupied(host: Host) -> None:
    """Partition 3 is active for nobody that fmctl knows, and a VM has its GPUs."""
    host.nvfm.activate(3, timeout=TIMEOUT)
    addresses = gpumap.in_order(host.inventory()).addresses
    gpus = [addresses[1], addresses[3]]
    host.vfio.bind(host.inventory(), gpus)
    host.machine.hypervisor.add_tenant("tenant-1", gpus)


def test_what_ran_before_is_adopted_for_whom_the_file_names(host: Host, fmctl: Fmctl, tmp_path: Path) -> None:
    occupied(host)
    owners = tmp_path / "owners.yaml"
    owners.write_text("tenant-1: acme\n")
    done = fmctl("adopt", "--dry-run", "--owners", str(owners))
    assert done.stdout == "would be adopted: partition 3: a lease of acme, for tenant-1\n"
    assert host.store.book.leases == {}
    assert fmctl("adopt", "--owners", str(owners)).stdout.startswith("adopted: partition 3")
    (made,) = host.store.book.leases.values()
    assert (made.owner, made.partitions, made.gpus) == ("acme", (3,), (1, 3))


def test_what_nobody_names_an_owner_of_is_left(host: Host, fmctl: Fmctl) -> None:
    occupied(host)
    done = fmctl("adopt")
    assert (done.returncode, done.stdout) == (6, "left: partition 3: nobody says who the owner of tenant-1 is\n")


def test_a_file_of_owners_that_is_none_is_refused(fmctl: Fmctl, tmp_path: Path) -> None:
    owners = tmp_path / "owners.yaml"
    owners.write_text("- acme\n")
    done = fmctl("adopt", "--owners", str(owners))
    assert (done.returncode, "a line such as tenant-1: acme" in done.stderr) == (2, True)


def test_a_store_is_backed_up_and_rebuilt(tmp_path: Path) -> None:
    settings = tmp_path / "fmctld.yaml"
    settings.write_text(f"state_dir: {tmp_path}\n")
    with FileStore(tmp_path / "leases.db", journal=tmp_path / "audit.jsonl") as store:
        store.commit([of_lease(lease("live"), "active")], at=1.0)
        assert run("store", "backup", str(tmp_path / "copy.db"), "--config", str(settings)).returncode == 0
        refused = run("store", "rebuild", "--from-host", "--config", str(settings))
        assert (refused.returncode, store.lease("live").id) == (4, "live")
    tried = run("store", "rebuild", "--from-host", "--dry-run", "--config", str(settings))
    assert tried.stdout == "lease live of a: active, GPUs 1,2\na new store would have 1 leases\n"
    assert run("store", "rebuild", "--from-host", "--config", str(settings)).returncode == 0
    with FileStore(tmp_path / "copy.db") as copy, FileStore(tmp_path / "leases.db") as made:
        assert set(copy.book.leases) == set(made.book.leases) == {"live"}
