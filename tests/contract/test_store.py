# SPDX-License-Identifier: Apache-2.0
"""What both sides of the port `Store` do: over a file, and in memory."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fmctl.core.book import Book, Entry, Kind, Mark, MarkKind, of_lease, of_map, of_mark, of_unmark
from fmctl.core.errors import Compacted, FmctlError, NoSuchLease, RequestIdReused
from fmctl.core.lease import Lease, LeaseState
from fmctl.core.ports import Store
from fmctl.host.store import FileStore
from fmctl.sim.store import MemoryStore
from tests.stores import FULL_ENTRY, FULL_LEASE, FULL_MAP, T0, lease, made, note

ACTIVE, RELEASED, FAILED = LeaseState.ACTIVE, LeaseState.RELEASED, LeaseState.FAILED


class Side(Protocol):
    """A store whose process can end, so that the next one finds what it left."""

    store: Store

    def reopen(self) -> Store: ...

    def close(self) -> None: ...


Kinds = Callable[[Path], Side]
"""What makes a side in an empty folder."""


class InFile:
    def __init__(self, folder: Path) -> None:
        self._path = folder / "leases.db"
        self._file = FileStore(self._path)
        self.store: Store = self._file

    def reopen(self) -> Store:
        self._file.close()
        self.store = self._file = FileStore(self._path)
        return self.store

    def close(self) -> None:
        self._file.close()


class InMemory:
    def __init__(self, folder: Path) -> None:
        self._memory = MemoryStore()
        self.store: Store = self._memory

    def reopen(self) -> Store:
        self.store = self._memory = self._memory.reopened()
        return self.store

    def close(self) -> None:
        pass


@pytest.fixture(params=[InFile, InMemory], ids=["file", "memory"])
def kind(request: pytest.FixtureRequest) -> Kinds:
    kind: Kinds = request.param
    return kind


@pytest.fixture
def side(kind: Kinds, tmp_path: Path) -> Iterator[Side]:
    side = kind(tmp_path)
    yield side
    side.close()


@pytest.fixture
def store(side: Side) -> Store:
    return side.store


def both(side: Side) -> Iterator[Store]:
    """The store of the process that runs, and then that of the next one."""
    yield side.store
    yield side.reopen()


def test_the_newest_gpu_map_is_kept_whatever_is_compacted(side: Side) -> None:
    newer = replace(FULL_MAP, boot="another")
    side.store.commit([of_map(FULL_MAP, "first")], at=T0)
    side.store.commit([of_map(newer, "second"), note("after")], at=T0 + 1)
    for store in both(side):
        assert store.book.gpu_map == newer
    for store in both(side):
        assert [entry.gpu_map for entry in store.entries(0, limit=9)] == [FULL_MAP, newer, None]
    side.store.compact(leases_before=0.0, entries_before=T0 + 9)
    for store in both(side):
        assert store.book.gpu_map == newer


def ids(leases: Sequence[Lease]) -> list[str]:
    return [lease.id for lease in leases]


def everything(store: Store) -> tuple[Book, tuple[Lease, ...]]:
    return store.book, store.leases(over=True)


def test_a_new_store_is_empty_and_has_an_id_of_its_own(kind: Kinds, side: Side, tmp_path: Path) -> None:
    store = side.store
    assert (store.book.revision, store.book.leases, store.book.marks) == (0, {}, {})
    assert (store.leases(over=True), store.entries(0, limit=9), store.by_request("a", "x")) == ((), (), None)
    assert len(store.book.store_id) == 36
    (tmp_path / "other").mkdir()
    other = kind(tmp_path / "other")
    assert other.store.book.store_id != store.book.store_id
    other.close()
    assert side.reopen().book == store.book


@pytest.mark.parametrize("value", [FULL_LEASE, FULL_ENTRY, FULL_ENTRY.mark], ids=["lease", "entry", "mark"])
def test_what_is_committed_here_has_no_field_at_its_default(value: Any) -> None:
    fields = dataclasses.fields(value)
    assert not [f.name for f in fields if getattr(value, f.name) in (f.default, (), {}, "", 0, None)]


def test_every_field_is_read_back_by_this_process_and_the_next(side: Side) -> None:
    wanted = replace(FULL_LEASE, revision=1)
    mark = FULL_ENTRY.mark
    assert mark and FULL_ENTRY.lease
    committed = side.store.commit([of_lease(FULL_LEASE, "made", actor="x", detail="y"), FULL_ENTRY], at=T0)
    entries = (
        Entry(Kind.LEASE, wanted.id, "made", "x", "y", lease=wanted, revision=1, time=T0),
        replace(FULL_ENTRY, lease=replace(FULL_ENTRY.lease, revision=2), revision=2, time=T0),
    )
    assert committed == entries
    store_id = side.store.book.store_id
    for store in both(side):
        assert store.book == Book(store_id, 2, {wanted.id: wanted}, {(Kind.GPU, "5", mark.kind): mark}, FULL_MAP)
        assert store.lease(wanted.id) == wanted
        assert store.by_request(wanted.owner, wanted.request_id) == wanted
        assert store.leases() == (wanted,)
        assert store.entries(0, limit=9) == entries


def test_a_lease_that_ends_leaves_the_book_and_stays_in_the_store(side: Side) -> None:
    side.store.commit([made("1"), made("2")], at=T0)
    side.store.commit([made("1", RELEASED), made("2", FAILED)], at=T0)
    for store in both(side):
        assert store.book.leases == {}
        assert store.leases() == ()
        assert store.leases(over=True) == (
            replace(lease("1", RELEASED), revision=3),
            replace(lease("2", FAILED), revision=4),
        )
        assert store.lease("1").state is RELEASED
        assert store.by_request("a", "for 2") == store.lease("2")


def test_a_lease_that_is_over_at_once_never_is_in_the_book(side: Side) -> None:
    side.store.commit([made("1", FAILED)], at=T0)
    for store in both(side):
        assert (store.book.leases, ids(store.leases(over=True))) == ({}, ["1"])


def test_a_forgotten_lease_is_gone_and_told_of(side: Side) -> None:
    side.store.commit([made("1"), made("2")], at=T0)
    side.store.commit([of_lease(lease("1"), "undone", forget=True)], at=T0)
    for store in both(side):
        assert ids(list(store.book.leases.values())) == ids(store.leases(over=True)) == ["2"]
        assert store.by_request("a", "for 1") is None
        with pytest.raises(NoSuchLease, match="there is no lease 1:"):
            store.lease("1")
        (told,) = store.entries(2, limit=9)
        assert (told.what, told.forget, told.lease) == ("undone", True, replace(lease("1"), revision=3))


def test_forgetting_what_never_was_is_nothing(store: Store) -> None:
    store.commit([of_lease(lease("1"), "undone", forget=True)], at=T0)
    assert (store.book.leases, store.book.revision) == ({}, 1)


def test_a_commit_of_nothing_changes_nothing(store: Store) -> None:
    assert store.commit([], at=T0) == ()
    assert store.book.revision == 0


def test_marks_come_change_and_go(side: Side) -> None:
    first, second = Mark(MarkKind.QUARANTINED, "why", T0), Mark(MarkKind.QUARANTINED, "more", T0 + 1)
    other = Mark(MarkKind.CLEANING, "now", T0)
    store = side.store
    store.commit([of_mark(Kind.GPU, "5", first), of_mark(Kind.GPU, "5", other), of_mark(Kind.GPU, "6", first)], at=T0)
    store.commit([of_mark(Kind.GPU, "5", second), of_mark(Kind.PARTITION, "5", first)], at=T0)
    for now in both(side):
        assert now.book.marks == {
            (Kind.GPU, "5", MarkKind.QUARANTINED): second,
            (Kind.GPU, "5", MarkKind.CLEANING): other,
            (Kind.GPU, "6", MarkKind.QUARANTINED): first,
            (Kind.PARTITION, "5", MarkKind.QUARANTINED): first,
        }
    side.store.commit([of_unmark(Kind.GPU, "5", MarkKind.QUARANTINED, detail="clean"), note("x")], at=T0)
    side.store.commit([of_unmark(Kind.GPU, "7", MarkKind.QUARANTINED)], at=T0)
    for now in both(side):
        assert set(now.book.marks) == {
            (Kind.GPU, "5", MarkKind.CLEANING),
            (Kind.GPU, "6", MarkKind.QUARANTINED),
            (Kind.PARTITION, "5", MarkKind.QUARANTINED),
        }
    assert now.entries(5, limit=1)[0].unmark is MarkKind.QUARANTINED


def test_an_earlier_book_stays_as_it_was(store: Store) -> None:
    store.commit([made("1"), of_mark(Kind.GPU, "5", Mark(MarkKind.CLEANING, "", T0))], at=T0)
    before = store.book
    kept = replace(before, leases=dict(before.leases), marks=dict(before.marks))
    store.commit([made("1", RELEASED), made("2"), of_unmark(Kind.GPU, "5", MarkKind.CLEANING)], at=T0)
    assert before == kept
    assert store.book != before


def test_a_request_id_stands_for_one_lease_of_its_owner(side: Side) -> None:
    side.store.commit([made("1", owner="a", request="r"), made("2", owner="b", request="r")], at=T0)
    side.store.commit([made("1", RELEASED, owner="a", request="r")], at=T0)
    for store in both(side):
        before = everything(store)
        with pytest.raises(RequestIdReused, match="'r' of 'a' is taken: the lease 1 stands for it"):
            store.commit([made("3"), note("x"), made("4", owner="a", request="r"), made("5")], at=T0)
        assert everything(store) == before
        assert store.entries(3, limit=9) == ()
        assert [store.by_request(owner, "r") for owner in "abc"] == [store.lease("1"), store.lease("2"), None]


def test_an_update_may_not_take_the_request_id_of_another_lease(store: Store) -> None:
    store.commit([made("1", request="r"), made("2", request="s")], at=T0)
    with pytest.raises(RequestIdReused, match="the lease 1 stands"):
        store.commit([made("2", request="r")], at=T0)
    assert store.lease("2").request_id == "s"


def test_an_undone_request_may_be_made_again_also_in_one_commit(store: Store) -> None:
    store.commit([made("1", request="r")], at=T0)
    undone = of_lease(lease("1", request="r"), "undone", forget=True)
    store.commit([undone, made("2", request="r")], at=T0)
    assert store.by_request("a", "r") == store.lease("2")
    with pytest.raises(RequestIdReused):
        store.commit([made("3", request="r"), replace(undone, lease=lease("2", request="r"))], at=T0)


def test_revisions_rise_by_one_and_never_come_again(side: Side) -> None:
    assert [e.revision for e in side.store.commit([note("1"), made("1")], at=T0)] == [1, 2]
    with pytest.raises(RequestIdReused):
        side.store.commit([note("x"), made("2", request="for 1")], at=T0)
    assert [e.revision for e in side.store.commit([note("3")], at=T0)] == [3]
    side.store.compact(leases_before=T0 + 9, entries_before=T0 + 9)
    assert [e.revision for e in side.reopen().commit([note("4")], at=T0)] == [4]
    assert side.store.book.revision == 4


def test_entries_are_told_from_any_revision_in_their_order(side: Side) -> None:
    side.store.commit([note(str(n)) for n in range(1, 4)], at=T0)
    for n in range(4, 8):
        side.store.commit([note(str(n))], at=T0 - n)
    for store in both(side):
        for after in range(8):
            wanted = list(range(after + 1, 8))
            assert [(e.revision, e.what) for e in store.entries(after, limit=99)] == [(n, str(n)) for n in wanted]
            assert [e.revision for e in store.entries(after, limit=2)] == wanted[:2]
        assert store.entries(0, limit=0) == ()
        assert [e.time - T0 for e in store.entries(2, limit=2)] == [0, -4]


def test_an_entry_tells_the_lease_as_it_was_then(store: Store) -> None:
    store.commit([made("1", LeaseState.PENDING)], at=T0)
    store.commit([made("1", ACTIVE), made("1", LeaseState.RELEASING)], at=T0)
    told = [(e.lease.state, e.lease.revision) for e in store.entries(0, limit=9) if e.lease]
    assert told == [(LeaseState.PENDING, 1), (ACTIVE, 2), (LeaseState.RELEASING, 3)]
    assert store.book.leases["1"] == store.lease("1") == replace(lease("1", LeaseState.RELEASING), revision=3)


@pytest.mark.parametrize("after", [-1, 3])
def test_a_revision_that_never_was_is_refused(store: Store, after: int) -> None:
    store.commit([note("1"), note("2")], at=T0)
    with pytest.raises(Compacted, match=f"after revision {after} are not there: this store has those after 0"):
        store.entries(after, limit=9)


def test_entries_that_were_compacted_are_refused_and_the_others_told(side: Side) -> None:
    for n in range(1, 6):
        side.store.commit([note(str(n))], at=T0 + n)
    side.store.compact(leases_before=0, entries_before=T0 + 4)
    side.store.compact(leases_before=0, entries_before=T0 + 2)
    for store in both(side):
        for after in (0, 2):
            with pytest.raises(Compacted, match="this store has those after 3, and the last is 5"):
                store.entries(after, limit=9)
        assert [e.revision for e in store.entries(3, limit=9)] == [4, 5]
        assert store.book.revision == 5


def test_the_last_entry_is_never_compacted(side: Side) -> None:
    side.store.compact(leases_before=T0, entries_before=T0)
    with pytest.raises(Compacted):
        side.reopen().entries(-1, limit=9)
    assert side.store.entries(0, limit=9) == ()
    side.store.commit([note("1"), note("2")], at=T0)
    side.store.compact(leases_before=T0 + 9, entries_before=T0 + 9)
    for store in both(side):
        assert [e.revision for e in store.entries(1, limit=9)] == [2]
        assert store.book.revision == 2


def test_a_clock_that_went_back_leaves_no_gap(store: Store) -> None:
    for at in (T0, T0 + 5, T0 - 5, T0 + 6):
        store.commit([note("x")], at=at)
    store.compact(leases_before=0, entries_before=T0 + 1)
    assert [e.revision for e in store.entries(1, limit=9)] == [2, 3, 4]
    with pytest.raises(Compacted):
        store.entries(0, limit=9)


def test_only_leases_that_ended_before_are_compacted(side: Side) -> None:
    ended = [replace(made(str(n), RELEASED), lease=replace(lease(str(n), RELEASED), ended=T0 + n)) for n in (1, 2, 3)]
    odd = [of_lease(replace(lease("4"), ended=T0), "x"), of_lease(replace(lease("5", FAILED), ended=None), "x")]
    side.store.commit([*ended, *odd], at=T0)
    side.store.compact(leases_before=T0 + 2, entries_before=0)
    for store in both(side):
        assert ids(store.leases(over=True)) == ["2", "3", "4", "5"]
        assert store.by_request("a", "for 1") is None
        assert len(store.entries(0, limit=9)) == 5
    side.store.commit([made("6", request="for 1")], at=T0)


def test_leases_are_listed_in_the_order_in_which_they_came(side: Side) -> None:
    side.store.commit([made("z"), made("y", owner="b"), made("x", FAILED), made("w")], at=T0)
    side.store.commit([made("z", LeaseState.RELEASING), made("w", RELEASED), made("v", owner="b")], at=T0)
    for store in both(side):
        assert ids(store.leases()) == ["z", "y", "v"]
        assert ids(store.leases(over=True)) == ["z", "y", "x", "w", "v"]
        assert ids(store.leases(owner="b", over=True)) == ["y", "v"]
        assert ids(store.leases(owner="a")) == ["z"]
        assert ids(store.leases(owner="c", over=True)) == []
        assert ids(store.leases(over=True, limit=2)) == ["z", "y"]
        assert ids(store.leases(over=True, after="y", limit=2)) == ["x", "w"]
        assert ids(store.leases(after="w")) == ["v"]
        assert ids(store.leases(owner="b", after="z", limit=1)) == ["y"]
        assert ids(store.leases(over=True, after="v")) == []


def test_a_page_after_a_lease_that_is_gone_is_refused(store: Store) -> None:
    store.commit([made("1"), made("2")], at=T0)
    store.commit([of_lease(lease("1"), "undone", forget=True)], at=T0)
    with pytest.raises(NoSuchLease, match="there is no lease 1"):
        store.leases(after="1")


def test_a_forgotten_lease_that_comes_again_comes_last(store: Store) -> None:
    store.commit([made("1"), made("2")], at=T0)
    store.commit([of_lease(lease("1"), "undone", forget=True), made("1")], at=T0)
    assert ids(store.leases()) == ["2", "1"]


NAMES = st.sampled_from(["1", "2", "3", "4"])
TIMES = st.sampled_from([T0 + n for n in range(4)])
ENTRY = st.one_of(
    st.builds(made, NAMES, st.sampled_from(LeaseState), owner=st.sampled_from("ab"), request=st.sampled_from("rst")),
    st.builds(lambda name: of_lease(lease(name), "undone", forget=True), NAMES),
    st.builds(lambda gpu, at: of_mark(Kind.GPU, gpu, Mark(MarkKind.CLEANING, "", at)), NAMES, TIMES),
    st.builds(lambda gpu: of_unmark(Kind.GPU, gpu, MarkKind.CLEANING), NAMES),
)
Call = Callable[[Store], object]
CALL: st.SearchStrategy[Call] = st.one_of(
    st.builds(lambda entries, at: lambda store: store.commit(entries, at=at), st.lists(ENTRY, max_size=3), TIMES),
    st.builds(lambda a, b: lambda store: store.compact(leases_before=a, entries_before=b), TIMES, TIMES),
    st.builds(lambda a, n: lambda store: store.entries(a, limit=n), st.integers(-1, 9), st.integers(0, 3)),
    st.builds(lambda o, r: lambda store: store.by_request(o, r), st.sampled_from("ab"), st.sampled_from("rst")),
    st.builds(
        lambda owner, over, after, limit: lambda store: store.leases(owner=owner, over=over, after=after, limit=limit),
        st.sampled_from(["", "a"]),
        st.booleans(),
        st.one_of(st.just(""), NAMES),
        st.integers(0, 2),
    ),
)


def answer(call: Call, store: Store) -> object:
    try:
        return call(store)
    except FmctlError as error:
        return type(error), error.metadata()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(CALL, st.none()), max_size=12))
def test_both_sides_answer_the_same(calls: list[Call | None]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sides = (InFile(Path(folder)), InMemory(Path(folder)))
        for call in calls:
            if call is None:
                for side in sides:
                    side.reopen()
            else:
                one, other = (answer(call, side.store) for side in sides)
                assert one == other
            assert sides[0].store.book == replace(sides[1].store.book, store_id=sides[0].store.book.store_id)
            assert sides[0].store.leases(over=True) == sides[1].store.leases(over=True)
        sides[0].close()
