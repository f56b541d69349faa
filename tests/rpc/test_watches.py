# SPDX-License-Identifier: Apache-2.0
"""Watches over a real server: who reads hears all, who does not is cut off, and nobody waits for either."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from fmctl.core.book import Entry
from fmctl.core.errors import AgentUnreachable, Compacted, FabricNotReady, FmctlError
from fmctl.core.lease import LeaseState
from fmctl.core.leased import Event, LeaseList
from fmctl.rpc.fmctl.v1 import lease_pb2 as messages
from fmctl.rpc.fmctl.v1.lease_pb2_grpc import LeaseServiceStub
from fmctl.rpc.following import Following, Position
from fmctl.rpc.lease_client import LeaseClient, WatchCall
from fmctl.rpc.server import STREAMS
from fmctl.rpc.watches import Watches
from tests.rpc.leasing import TIMEOUT, Host, pair
from tests.support import eventually

SIZE = 20_000
"""Bytes of an entry."""
SMALL_BUFFERS = (("grpc.http2.bdp_probe", 0),)
"""With which gRPC holds about four entries for a client that does not read them; else 4 MiB of them."""
SOME, MANY = 20, 500
"""Entries that are more than gRPC holds, with small buffers and without."""


@contextlib.contextmanager
def hosting(folder: Path, watches: Watches | None = None) -> Iterator[Host]:
    with contextlib.closing(Host(folder, watches=watches)) as host:
        yield host


@pytest.fixture
def host(folder: Path) -> Iterator[Host]:
    with hosting(folder) as host:
        yield host


def watched(host: Host, client: LeaseClient) -> WatchCall:
    """A watch from now on."""
    return client.watch(host.store.book.revision, host.store.book.store_id)


def entry(event: Event | int) -> Entry:
    assert isinstance(event, Event)
    return event.entry


def guards() -> int:
    return sum(thread.name == "watches" for thread in threading.enumerate())


def test_every_change_is_heard_in_order_with_its_lease(host: Host) -> None:
    client = host.client
    call = watched(host, client)
    lease = client.allocate(pair(), timeout=TIMEOUT).lease
    client.release(lease.id, owner="a", wait=True, timeout=TIMEOUT)
    seen = [entry(next(call)) for _ in range(4)]
    assert [e.what for e in seen] == ["activating", "active", "releasing", "released"]
    assert [e.revision for e in seen] == [1, 2, 3, 4]
    assert [e.lease.state for e in seen if e.lease] == [
        LeaseState.ACTIVATING,
        LeaseState.ACTIVE,
        LeaseState.RELEASING,
        LeaseState.RELEASED,
    ]
    assert {e.subject for e in seen} == {lease.id}
    assert (seen[2].actor, seen[1].lease and seen[1].lease.gpus) == ("a", lease.gpus)
    call.close()


def test_a_watch_goes_on_where_another_one_stopped(host: Host) -> None:
    client = host.client
    host.tell(5)
    call = client.watch(3, host.store.book.store_id)
    assert [entry(next(call)).revision for _ in range(2)] == [4, 5]
    call.close()


@pytest.mark.parametrize(("revision", "store_id"), [(0, "another"), (9, ""), (0, "")])
def test_what_cannot_be_gone_on_from_is_told(host: Host, revision: int, store_id: str) -> None:
    with pytest.raises(Compacted):
        next(host.client.watch(revision, store_id or (host.store.book.store_id if revision else "")))


def test_what_was_compacted_is_told(host: Host) -> None:
    host.tell(5)
    host.tell(5)
    host.store.compact(leases_before=0.0, entries_before=2.0)
    with pytest.raises(Compacted):
        next(host.client.watch(0, host.store.book.store_id))


def test_there_is_room_for_every_watch_and_for_calls_beside_them(host: Host) -> None:
    client = host.client
    calls = [watched(host, client) for _ in range(STREAMS)]
    host.tell(1)
    assert {entry(next(call)).revision for call in calls} == {1}
    with pytest.raises(FabricNotReady, match=f"{STREAMS} are served already"):
        next(watched(host, client))
    assert len(client.leases(timeout=TIMEOUT).leases) == 0
    calls[0].close()
    eventually(lambda: _is_served(host, client))
    for call in calls:
        call.close()


def _is_served(host: Host, client: LeaseClient) -> bool:
    call = client.watch(0, host.store.book.store_id)
    try:
        return entry(next(call)).revision == 1
    except FabricNotReady:
        return False
    finally:
        call.close()


@contextlib.contextmanager
def with_small_buffers(host: Host) -> Iterator[Callable[[], Any]]:
    """Makes watches from now on over a connection of their own."""
    with grpc.insecure_channel(str(host.address), options=SMALL_BUFFERS) as channel:
        stub = LeaseServiceStub(channel)
        position = host.store.book
        yield lambda: stub.Watch(messages.WatchRequest(revision=position.revision, store_id=position.store_id))


def test_watches_that_nobody_reads_leave_the_server_to_others(folder: Path) -> None:
    """As many as there may be, all stuck in a send; each has its thread back once it is cut off."""
    with hosting(folder, Watches(patience=4.0)) as host, with_small_buffers(host) as watch:
        client = host.client
        stuck = [watch() for _ in range(STREAMS)]
        host.tell(SOME, SIZE)
        assert [next(call).revision for call in stuck] == [1] * STREAMS
        with pytest.raises(FabricNotReady):
            next(watched(host, client))
        assert client.allocate(pair(), timeout=TIMEOUT).lease.state is LeaseState.ACTIVE
        assert host.watches.under_way == STREAMS
        eventually(lambda: host.watches.under_way == 0, within=60)
        assert _is_watched(host, client)
        for call in stuck:
            with pytest.raises(grpc.RpcError):
                list(call)
        assert {call.code() for call in stuck} == {grpc.StatusCode.CANCELLED}


def _is_watched(host: Host, client: LeaseClient) -> bool:
    """Whether a watch is served now, and gets the last entry."""
    call = client.watch(host.store.book.revision - 1, host.store.book.store_id)
    try:
        return entry(next(call)).what == "active"
    except FabricNotReady:
        return False
    finally:
        call.close()


def test_a_reader_that_does_not_read_is_cut_off_and_the_others_hear_all(folder: Path) -> None:
    with hosting(folder, Watches(most=2, patience=0.5)) as host:
        slow, quick = host.client, host.client
        stuck, read = watched(host, slow), watched(host, quick)
        host.tell(MANY, SIZE)
        assert [entry(next(read)).revision for _ in range(MANY)] == list(range(1, MANY + 1))
        read.close()
        eventually(lambda: host.watches.under_way == 0, within=60)
        with pytest.raises(AgentUnreachable, match="cut the watch off"):
            for _ in range(MANY):
                next(stuck)


def test_a_reader_that_has_nothing_to_read_is_not_cut_off(folder: Path) -> None:
    with hosting(folder, Watches(patience=0.2)) as host:
        call = watched(host, host.client)
        host.tell(1)
        assert entry(next(call)).revision == 1
        time.sleep(1.0)
        host.tell(1)
        assert entry(next(call)).revision == 2
        call.close()


def test_a_reader_that_reads_slowly_but_reads_is_not_cut_off(folder: Path) -> None:
    """What it reads takes longer than anybody's patience, but no single message does."""
    with hosting(folder, Watches(patience=1.0)) as host, with_small_buffers(host) as watch:
        call = watch()
        host.tell(2 * SOME, SIZE)
        for revision in range(1, 2 * SOME + 1):
            assert next(call).revision == revision
            time.sleep(0.08)
        call.cancel()


@pytest.mark.parametrize("reads", [True, False])
def test_watches_end_at_once_with_the_server(folder: Path, *, reads: bool) -> None:
    with hosting(folder) as host:
        call = watched(host, host.client)
        host.tell(1 if reads else MANY, SIZE)
        if reads:
            assert entry(next(call)).revision == 1
        time.sleep(0.5)
        began = time.monotonic()
        host.stop()
        assert time.monotonic() - began < 3
        with pytest.raises((FabricNotReady, AgentUnreachable)) as end:
            for _ in range(MANY):
                next(call)
        assert not reads or "the daemon stops" in str(end.value)
        assert guards() == 0


class Follower:
    """A following in a thread of its own, and what it told."""

    def __init__(self, host: Host, **how: object) -> None:
        self.told: list[FmctlError] = []
        self.seen: list[LeaseList | Event | int] = []
        self.error: FmctlError | None = None
        self.following = Following(host.client, tell=self.told.append, **{"timeout": 10.0, **how})  # type: ignore[arg-type]
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            for each in self.following:
                self.seen.append(each)
        except FmctlError as error:
            self.error = error
        except ValueError:
            return  # the channel is closed: the test is over

    def revisions(self) -> list[int]:
        return [each.entry.revision for each in self.seen if isinstance(each, Event)]

    def lists(self) -> list[int]:
        return [each.revision for each in self.seen if isinstance(each, LeaseList)]


def test_a_list_comes_first_and_then_every_change(host: Host) -> None:
    host.client.allocate(pair(), timeout=TIMEOUT)
    follower = Follower(host)
    eventually(lambda: follower.lists() == [2])
    host.tell(2)
    eventually(lambda: follower.revisions() == [3, 4])
    assert isinstance(follower.seen[0], LeaseList) and len(follower.seen[0].leases) == 1


def test_from_a_position_no_list_comes(host: Host) -> None:
    host.tell(3)
    follower = Follower(host, position=Position(1, host.store.book.store_id))
    eventually(lambda: follower.revisions() == [2, 3])
    assert (follower.lists(), follower.following.position) == ([], Position(3, host.store.book.store_id))


def test_a_restart_of_the_daemon_loses_nothing(host: Host) -> None:
    follower = Follower(host)
    eventually(lambda: follower.lists() == [0])
    host.tell(1)
    eventually(lambda: follower.revisions() == [1])
    host.stop()
    host.store = host.store.reopened()
    host.start()
    host.tell(2)
    eventually(lambda: follower.revisions() == [1, 2, 3], within=30)
    assert follower.lists() == [0]
    assert [str(error) for error in follower.told] == ["this watch ends: the daemon stops"]


def test_where_changes_were_missed_the_list_comes_again(host: Host) -> None:
    follower = Follower(host)
    eventually(lambda: follower.lists() == [0])
    host.stop()
    host.tell(3)
    host.store.compact(leases_before=0.0, entries_before=2.0)
    host.start()
    eventually(lambda: follower.lists() == [0, 3], within=30)
    host.tell(1)
    eventually(lambda: follower.revisions() == [4])
    assert any(isinstance(error, Compacted) for error in follower.told)


@pytest.mark.parametrize("position", [None, Position(0, "x")])
def test_a_daemon_that_is_not_there_is_told_at_once(host: Host, position: Position | None) -> None:
    host.stop()
    follower = Follower(host, position=position)
    eventually(lambda: follower.error)
    assert (isinstance(follower.error, AgentUnreachable), follower.told) == (True, [])


def test_a_daemon_that_stays_away_is_told_in_the_end(host: Host) -> None:
    follower = Follower(host, timeout=1.0)
    eventually(lambda: follower.lists())
    host.stop()
    eventually(lambda: follower.error)
    assert isinstance(follower.error, AgentUnreachable)


@pytest.mark.parametrize("away", [False, True])
def test_a_following_ends_at_its_time(host: Host, *, away: bool) -> None:
    follower = Follower(host, until=time.monotonic() + 2.0, timeout=60.0)
    eventually(lambda: follower.lists())
    if away:
        host.stop()
    _ends(follower.thread)
    assert follower.error is None


def _ends(thread: threading.Thread) -> None:
    thread.join(10)
    assert not thread.is_alive()
