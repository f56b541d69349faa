# SPDX-License-Identifier: Apache-2.0
"""A damaged store is made anew from its journal, and nothing of the old one is lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fmctl.core.book import Kind, MarkKind, of_lease
from fmctl.core.errors import StoreUnusable
from fmctl.core.lease import LeaseState
from fmctl.host.rebuild import planned, rebuild
from fmctl.host.store import FileStore
from tests.stores import lease


def damaged(folder: Path) -> tuple[Path, Path]:
    """A store with a lease and one that is over, which a bad disk then damaged, and its journal."""
    path, journal = folder / "leases.db", folder / "audit.jsonl"
    live, over = lease("live"), lease("over")
    with FileStore(path, journal=journal) as store:
        store.commit([of_lease(live, "active"), of_lease(over, "active")], at=1.0)
        store.commit([of_lease(replace(over, state=LeaseState.RELEASED, ended=2.0), "released")], at=2.0)
    path.write_bytes(b"x" * 4096)
    return path, journal


def test_the_new_store_has_what_stood_and_the_old_file_is_beside_it(tmp_path: Path) -> None:
    path, journal = damaged(tmp_path)
    with pytest.raises(StoreUnusable):
        FileStore(path, journal=journal)
    aside, _ = rebuild(path, journal, 3.0)
    assert aside is not None
    assert aside.read_bytes() == b"x" * 4096
    with FileStore(path, journal=journal) as store:
        assert set(store.book.leases) == {"live"}
        assert (Kind.HOST, "", MarkKind.OBSERVED) in store.book.marks


def test_a_store_that_was_rebuilt_can_be_rebuilt_again(tmp_path: Path) -> None:
    path, journal = damaged(tmp_path)
    rebuild(path, journal, 3.0)
    with FileStore(path, journal=journal) as store:
        ended = replace(store.lease("live"), state=LeaseState.RELEASED, ended=4.0)
        store.commit([of_lease(ended, "released"), of_lease(lease("next"), "active")], at=4.0)
    rebuild(path, journal, 5.0)
    with FileStore(path, journal=journal) as store:
        assert set(store.book.leases) == {"next"}


def test_a_store_that_a_daemon_has_is_left_alone(tmp_path: Path) -> None:
    path, journal = tmp_path / "leases.db", tmp_path / "audit.jsonl"
    with FileStore(path, journal=journal) as store:
        store.commit([of_lease(lease("live"), "active")], at=1.0)
        with pytest.raises(StoreUnusable):
            rebuild(path, journal, 3.0)
        assert set(store.book.leases) == {"live"}
    assert [entry.lease.id for entry in planned(journal, 3.0) if entry.lease] == ["live"]
