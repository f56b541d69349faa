# SPDX-License-Identifier: Apache-2.0
"""What the store in memory has beside the port; tests/contract has the port."""

from __future__ import annotations

import pytest

from fmctl.core.errors import StoreUnusable
from fmctl.sim.store import MemoryStore
from tests.stores import T0, made, note


def test_a_full_store_changes_nothing_until_there_is_space() -> None:
    store = MemoryStore()
    store.commit([made("1"), note("x")], at=T0)
    before = store.book
    store.full = True
    with pytest.raises(StoreUnusable, match="is full"):
        store.commit([made("2")], at=T0)
    with pytest.raises(StoreUnusable, match="is full"):
        store.compact(leases_before=T0 + 1, entries_before=T0 + 1)
    assert store.book is before
    assert (store.reopened().book, len(store.leases(over=True)), len(store.entries(0, limit=9))) == (before, 1, 2)
    store.full = False
    (told,) = store.commit([made("2")], at=T0)
    assert told.revision == 3


def test_what_a_dead_process_does_is_not_in_the_next_one() -> None:
    store = MemoryStore("an id")
    store.commit([made("1")], at=T0)
    after = store.reopened()
    store.commit([made("2")], at=T0)
    assert (set(after.book.leases), after.book.store_id, after.book.revision) == ({"1"}, "an id", 1)
    after.commit([made("3")], at=T0)
    assert (set(store.book.leases), set(after.book.leases)) == ({"1", "2"}, {"1", "3"})
