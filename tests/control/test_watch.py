# SPDX-License-Identifier: Apache-2.0
"""Following the book: every change is heard, in order, and a follower knows when it missed something."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from fmctl.control.watch import BATCH, follow
from fmctl.core.book import Entry, Kind
from fmctl.core.errors import Compacted
from fmctl.core.lease import LeaseState
from tests.control.leasing import World


def followed(world: World, after: int = 0, *, quiet: int = 1, store_id: str = "") -> Iterator[Entry | int]:
    """What a follower hears until it was told the revision alone so often."""
    left = quiet

    def alive() -> bool:
        return left > 0

    store = world.controller.store
    for item in follow(store, after, store_id or store.book.store_id, alive=alive, bookmark_interval=0.01):
        left -= isinstance(item, int)
        yield item


def test_every_change_of_a_lease_is_heard_in_order_and_then_the_revision() -> None:
    world = World()
    lease = world.allocate("a", "r", count=2)
    world.release(lease.id, wait=True)
    heard = list(followed(world))
    assert heard[-1] == world.store.book.revision
    entries = [item for item in heard if isinstance(item, Entry)]
    assert [entry.revision for entry in entries] == list(range(1, world.store.book.revision + 1))
    states = [entry.lease.state for entry in entries if entry.lease]
    assert states == [LeaseState.ACTIVATING, LeaseState.ACTIVE, LeaseState.RELEASING, LeaseState.RELEASED]
    assert [entry.actor for entry in entries] == ["a", "a", "a person", "fmctl"]


def test_a_follower_goes_on_from_where_it_was_or_from_a_list() -> None:
    world = World()
    world.allocate("a", "1", count=2)
    page = world.controller.queries.leases()
    second = world.allocate("a", "2", count=2)
    heard = [item for item in followed(world, page.revision) if isinstance(item, Entry)]
    assert {entry.subject for entry in heard} == {second.id}
    assert list(followed(world, heard[-1].revision)) == [world.store.book.revision]


def test_more_than_a_batch_is_heard_whole() -> None:
    world = World()
    for number in range(BATCH + 5):
        world.controller.cordon(f"{number}", actor="a person")
    heard = [item for item in followed(world) if isinstance(item, Entry)]
    assert [entry.detail for entry in heard] == [f"{number}" for number in range(BATCH + 5)]
    assert {entry.kind for entry in heard} == {Kind.HOST}


def test_a_follower_whose_place_is_gone_or_of_another_store_must_list_again() -> None:
    world = World()
    lease = world.allocate("a", "1", count=2)
    world.wait(100)
    world.release(lease.id, wait=True)
    world.controller.store.compact(leases_before=0.0, entries_before=world.now)
    with pytest.raises(Compacted):
        list(followed(world, 1))
    assert [item.revision for item in followed(world, 2) if isinstance(item, Entry)] == [3, 4]
    for after, store_id in ((world.store.book.revision, "another"), (world.store.book.revision + 1, "")):
        with pytest.raises(Compacted):
            list(followed(world, after, store_id=store_id))


def test_a_follower_hears_of_what_happens_while_it_waits() -> None:
    world = World()
    heard: list[Entry | int] = []
    done = threading.Event()

    def listen() -> None:
        store = world.controller.store
        for item in follow(store, 0, store.book.store_id, alive=lambda: not done.is_set(), bookmark_interval=60):
            heard.append(item)
            if len(heard) == 2:
                done.set()

    listener = threading.Thread(target=listen)
    listener.start()
    began = time.monotonic()
    world.allocate("a", "r", count=2)
    assert done.wait(60)
    listener.join(60)
    assert [item.what for item in heard if isinstance(item, Entry)] == ["activating", "active"]
    assert time.monotonic() - began < 30


def test_a_follower_that_is_gone_hears_no_more() -> None:
    world = World()
    store = world.controller.store
    assert list(follow(store, 0, store.book.store_id, alive=lambda: False)) == []


def test_many_followers_miss_nothing_of_many_changes() -> None:
    world = World()
    store = world.controller.store
    heard: list[list[int]] = [[] for _ in range(3)]
    done = threading.Event()

    def listen(into: list[int]) -> None:
        alive = lambda: not done.is_set() or len(into) < store.book.revision  # noqa: E731
        for item in follow(store, 0, store.book.store_id, alive=alive, bookmark_interval=0.05):
            if isinstance(item, Entry):
                into.append(item.revision)

    listeners = [threading.Thread(target=listen, args=(into,)) for into in heard]
    for listener in listeners:
        listener.start()
    for number in range(30):
        world.release(world.allocate("a", f"{number}", count=2).id, wait=True)
    done.set()
    for listener in listeners:
        listener.join(60)
    assert heard == [list(range(1, store.book.revision + 1))] * 3
