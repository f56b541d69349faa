# SPDX-License-Identifier: Apache-2.0
"""The worker process: deadlines that hold, and what happens when it dies. tests/contract has its daily work."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fmctl.core.address import Address
from fmctl.core.errors import FabricBusy, FabricNotReady, OutcomeUnknown, VersionMismatch
from fmctl.core.fmcode import FmCode
from fmctl.guest.worker import Worker
from fmctl.sim import shim
from tests.support import Program, children, eventually

T = 10.0
PAIR = 3

Start = Callable[..., Worker]


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    with contextlib.ExitStack() as cleanup:

        def started(*arguments: str, library: str = "") -> Worker:
            address = f"unix:{folder}/fm.sock"
            served = Program(
                "sim", "fm", "--platform", "hgx-h100-8", "--listen", address, *arguments, log=folder / "fm.log"
            )
            cleanup.enter_context(served).says("listens")
            worker = Worker(Address.parse(address), library or str(shim.build() / "libnvfm.so.1"))
            cleanup.callback(worker.close)
            return worker

        yield started


def workers() -> list[int]:
    return [p for p in children(os.getpid()) if b"fmctl.guest.worker" in Path(f"/proc/{p}/cmdline").read_bytes()]


def test_a_call_that_hangs_ends_at_its_deadline_and_its_process_is_replaced(start: Start) -> None:
    worker = start("--fault", "hang@activate:1")
    worker.list_partitions(timeout=T)
    (first,) = workers()
    began = time.monotonic()
    with pytest.raises(OutcomeUnknown) as refusal:
        worker.activate(PAIR, timeout=0.5)
    assert time.monotonic() - began < 5
    assert (refusal.value.fm_code, refusal.value.partition_id) == (None, PAIR)
    assert workers() == []
    assert not worker.list_partitions(timeout=T).get(PAIR).active
    assert workers() != [first]


def test_a_list_that_hangs_changed_nothing(start: Start) -> None:
    worker = start("--fault", "hang@list:1")
    with pytest.raises(FabricNotReady, match="hangs"):
        worker.list_partitions(timeout=0.5)
    assert worker.list_partitions(timeout=T).partitions


def test_a_slow_activation_may_land_after_its_deadline(start: Start) -> None:
    worker = start("--latency-ms", "700")
    with pytest.raises(OutcomeUnknown):
        worker.activate(PAIR, timeout=0.3)
    eventually(lambda: worker.list_partitions(timeout=T).get(PAIR).active or None)


def test_a_worker_that_dies_between_calls_is_replaced(start: Start) -> None:
    worker = start()
    worker.list_partitions(timeout=T)
    (pid,) = workers()
    os.kill(pid, signal.SIGKILL)
    worker.activate(PAIR, timeout=T)
    assert worker.list_partitions(timeout=T).get(PAIR).active


def test_a_worker_that_dies_within_a_call_leaves_its_outcome_unknown(start: Start) -> None:
    worker = start("--fault", "hang@activate:1")
    worker.list_partitions(timeout=T)
    (pid,) = workers()
    failures: list[BaseException] = []

    def activate() -> None:
        try:
            worker.activate(PAIR, timeout=T)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=activate)
    thread.start()
    eventually(lambda: open_connections(pid))
    os.kill(pid, signal.SIGKILL)
    thread.join(T)
    assert [type(failure) for failure in failures] == [OutcomeUnknown]
    assert worker.list_partitions(timeout=T).partitions


def open_connections(pid: int) -> bool:
    """Whether the worker holds a connection to Fabric Manager, beside its channel and its lifeline."""
    sockets = [fd for fd in Path(f"/proc/{pid}/fd").iterdir() if "socket:" in str(fd.readlink())]
    return len(sockets) > 1


def test_calls_take_turns_and_wait_no_longer_than_their_own_timeout(start: Start) -> None:
    worker = start("--fault", "hang@activate:1")
    worker.list_partitions(timeout=T)

    def hang() -> None:
        with pytest.raises(OutcomeUnknown):
            worker.activate(PAIR, timeout=2)

    thread = threading.Thread(target=hang)
    thread.start()
    (pid,) = workers()
    eventually(lambda: open_connections(pid))
    with pytest.raises(FabricBusy) as refusal:
        worker.list_partitions(timeout=0.2)
    assert "for 0.1 s" in refusal.value.why
    thread.join(T)
    assert worker.list_partitions(timeout=T).partitions


@pytest.mark.parametrize("lie", ["partitions:65", "partitions:4294967295", "gpus:17", "gpus:4294967295"])
def test_a_count_beyond_the_arrays_is_an_error_and_not_read(start: Start, lie: str) -> None:
    worker = start("--fault", f"lie={lie}@list:1")
    with pytest.raises(VersionMismatch, match=lie.split(":")[1]):
        worker.list_partitions(timeout=T)
    assert worker.list_partitions(timeout=T).partitions


def test_a_missing_library_is_named_with_what_to_do(start: Start) -> None:
    worker = start(library="/no/such/libnvfm.so.1")
    with pytest.raises(FabricNotReady, match=r"/no/such/libnvfm\.so\.1 cannot be used") as refusal:
        worker.list_partitions(timeout=T)
    assert "fabricmanager-dev" in refusal.value.fix


def test_a_library_that_is_another_one_is_refused(start: Start) -> None:
    worker = start(library="libc.so.6")
    with pytest.raises(FabricNotReady, match="fmLibInit"):
        worker.list_partitions(timeout=T)


def test_the_library_is_found_by_the_system_s_loader(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(shim.build()))
    start()
    worker = Worker(Address.parse("unix:/no/such.sock"))
    with contextlib.closing(worker), pytest.raises(FabricNotReady) as refusal:
        worker.list_partitions(timeout=T)
    assert refusal.value.fm_code == FmCode.CONNECTION_NOT_VALID


def test_no_worker_outlives_its_owner(start: Start) -> None:
    worker = start()
    worker.list_partitions(timeout=T)
    worker.close()
    assert workers() == []


@pytest.mark.parametrize("scheme", ["tcp", "vsock"])
def test_an_address_that_nobody_serves_is_named(scheme: str) -> None:
    address = {"tcp": "127.0.0.1:1", "vsock": "vsock:1:1"}[scheme]
    worker = Worker(Address.parse(address), str(shim.build() / "libnvfm.so.1"), connect_timeout=0.2)
    with contextlib.closing(worker), pytest.raises(FabricNotReady, match=address) as refusal:
        worker.list_partitions(timeout=T)
    assert refusal.value.fm_code == FmCode.CONNECTION_NOT_VALID
