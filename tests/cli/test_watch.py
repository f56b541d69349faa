# SPDX-License-Identifier: Apache-2.0
"""`fmctl watch`, over a daemon that comes and goes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.running import Running
from tests.rpc.leasing import TIMEOUT, Host, pair
from tests.support import run


@pytest.fixture
def host(folder: Path) -> Iterator[Host]:
    host = Host(folder)
    yield host
    host.close()


def test_leases_come_first_and_then_every_change(host: Host) -> None:
    lease = host.client.allocate(pair(), timeout=TIMEOUT).lease
    gpus = ",".join(map(str, lease.gpus))
    with Running(host, "watch") as watch:
        revision, moment, *words = watch.line().split(maxsplit=2)
        assert (revision, words) == ("2", [f"lease {lease.id}: listed (active, GPUs {gpus} of a)\n"])
        assert moment.endswith("+00:00")
        host.client.release(lease.id, owner="a", wait=True, timeout=TIMEOUT)
        assert f" lease {lease.id}: releasing (releasing, GPUs {gpus} of a; by a)\n" in watch.line()
        assert watch.line().startswith("4 ")
        host.client.cordon("a memory bank", actor="x", timeout=TIMEOUT)
        assert watch.line().endswith(" host: cordoned (a memory bank; by x)\n")


def test_lines_are_documents(host: Host) -> None:
    lease = host.client.allocate(pair(), timeout=TIMEOUT).lease
    with Running(host, "watch", "-o", "json", "--since", "1", "--store-id", host.store.book.store_id) as watch:
        told = json.loads(watch.line())
        assert (told["revision"], told["store_id"]) == (2, host.store.book.store_id)
        assert (told["kind"], told["subject"], told["what"]) == ("lease", lease.id, "active")
        assert (told["lease"]["state"], told["lease"]["interrupted"]) == ("active", False)
        assert [gpu["physical_id"] for gpu in told["lease"]["gpus"]] == list(lease.gpus)
        host.tell(1)
        assert json.loads(watch.line())["lease"] is None


def test_a_daemon_that_goes_and_comes_is_waited_for(host: Host) -> None:
    host.client.allocate(pair(), timeout=TIMEOUT)
    with Running(host, "watch") as watch:
        assert watch.line().startswith("2 ")
        host.tell(1)
        assert watch.line().startswith("3 ")
        host.stop()
        host.start()
        host.tell(1)
        assert watch.line().startswith("4 ")
        code, _, told = watch.ended(signal.SIGINT)
    assert (code, told) == (-signal.SIGINT, "fmctl: this watch ends: the daemon stops\n")


def test_where_changes_were_missed_leases_come_again(host: Host) -> None:
    host.tell(3)
    host.store.compact(leases_before=0.0, entries_before=2.0)
    host.client.allocate(pair(), timeout=TIMEOUT)
    with Running(host, "watch", "--since", "0", "--store-id", host.store.book.store_id) as watch:
        assert "listed (active" in watch.line()
        host.tell(1)
        assert ": told" in watch.line()
        code, _, told = watch.ended(signal.SIGINT)
    assert (code, told[:41]) == (-signal.SIGINT, "fmctl: the entries after revision 0 are n")


def test_an_interrupt_ends_it_without_a_word(host: Host) -> None:
    host.client.allocate(pair(), timeout=TIMEOUT)
    with Running(host, "watch") as watch:
        watch.line()
        assert watch.ended(signal.SIGINT) == (-signal.SIGINT, "", "")


def test_it_ends_once_nobody_reads_although_nothing_happens(host: Host) -> None:
    host.client.allocate(pair(), timeout=TIMEOUT)
    command = f"FMCTL_ADDRESS={host.address} {sys.executable} -m fmctl watch | head -n 1"
    began = time.monotonic()
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout.count("\n"), done.stderr) == (1, "")
    assert time.monotonic() - began < 40


def test_a_daemon_that_is_not_there_is_exit_5() -> None:
    done = run("watch", "--address", "unix:/no/such.sock")
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.startswith("fmctl: fmctld at unix:/no/such.sock does not answer\n")
