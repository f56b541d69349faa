# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fmctl.core import bookdoc
from fmctl.core.book import Entry, Mark
from fmctl.core.bookdoc import UnreadableDocument
from fmctl.core.lease import Lease, LeaseState
from tests.stores import FULL_ENTRY, FULL_LEASE, T0, note

on_a_busy_machine = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
LEASES = st.builds(
    Lease,
    partitions=st.lists(st.integers()).map(tuple),
    gpus=st.lists(st.integers()).map(tuple),
    spare=st.lists(st.integers()).map(tuple),
    created=NUMBERS,
    unsettled_until=NUMBERS,
    vm_gone=st.none() | NUMBERS,
    ended=st.none() | NUMBERS,
    expires=st.none() | NUMBERS,
    labels=st.dictionaries(st.text(), st.text()),
)
MARKS = st.builds(Mark, since=NUMBERS)
MICROSECONDS = st.integers(0, 2**52).map(lambda n: n / 1_000_000)
ENTRIES = st.builds(Entry, lease=st.none() | LEASES, mark=st.none() | MARKS, time=MICROSECONDS)


@on_a_busy_machine
@given(LEASES)
def test_a_lease_comes_back_as_it_was(lease: Lease) -> None:
    assert bookdoc.read_lease(bookdoc.parsed(bookdoc.text(bookdoc.lease_document(lease)))) == lease


@on_a_busy_machine
@given(MARKS)
def test_a_mark_comes_back_as_it_was(mark: Mark) -> None:
    assert bookdoc.read_mark(bookdoc.parsed(bookdoc.text(bookdoc.mark_document(mark)))) == mark


@on_a_busy_machine
@given(ENTRIES)
def test_an_entry_comes_back_as_it_was(entry: Entry) -> None:
    text = bookdoc.text(bookdoc.entry_document(entry))
    assert text.isascii() and "\n" not in text
    assert bookdoc.read_entry(bookdoc.parsed(text)) == entry


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"id": 3}, "id: a text is wanted, not 3"),
        ({"vm_seen": 1}, "vm_seen: true or false is wanted, not 1"),
        ({"revision": True}, "revision: a whole number is wanted, not True"),
        ({"revision": 1.0}, "revision: a whole number is wanted, not 1.0"),
        ({"created": "1"}, "created: a whole number is wanted, not '1'"),
        ({"created": None}, "created: a whole number is wanted, not None"),
        ({"created": 10**400}, "created: a number is too large"),
        ({"ended": False}, "ended: a whole number is wanted, not False"),
        ({"gpus": [1, "2"]}, "gpus: a whole number is wanted, not '2'"),
        ({"gpus": 1}, "gpus: a list is wanted, not 1"),
        ({"labels": {"a": 1}}, "labels: a text is wanted, not 1"),
        ({"labels": []}, "labels: a mapping is wanted, not []"),
        ({"state": "lost"}, "state: 'lost' is not a valid LeaseState"),
        ({"state": ["active"]}, "state: ['active'] is not a valid LeaseState"),
        ({"colour": "red"}, "'colour' is unknown"),
    ],
)
def test_a_lease_of_another_kind_is_refused(change: dict[str, Any], why: str) -> None:
    with pytest.raises(UnreadableDocument) as refusal:
        bookdoc.read_lease({**bookdoc.parsed(bookdoc.text(bookdoc.lease_document(FULL_LEASE))), **change})
    assert str(refusal.value) == why


def test_a_whole_number_will_do_for_a_time() -> None:
    document = bookdoc.parsed(bookdoc.text(bookdoc.lease_document(FULL_LEASE)))
    created = bookdoc.read_lease({**document, "created": 5}).created
    assert (created, type(created)) == (5.0, float)


def test_a_document_from_before_a_field_existed_can_be_read() -> None:
    old = {"id": "1", "owner": "a", "request_id": "r", "request": "{}", "state": "active", "partitions": [], "gpus": []}
    assert bookdoc.read_lease(old) == Lease("1", "a", "r", "{}", LeaseState.ACTIVE, (), ())
    for name in old:
        with pytest.raises(UnreadableDocument, match=f"{name} is missing"):
            bookdoc.read_lease({key: value for key, value in old.items() if key != name})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"time": T0}, "time: a time is wanted, not 1700000000.25"),
        ({"time": "2023-11-14T22:13:20.250000+01:00"}, "time: a time is wanted"),
        ({"kind": "moon"}, "kind: 'moon' is not a valid Kind"),
        ({"lease": []}, "lease: an object is wanted, not []"),
        ({"mark": {"kind": "cleaning", "reason": "", "since": "x"}}, "mark: since: "),
        ({"unmark": 3}, "unmark: 3 is not a valid MarkKind"),
    ],
)
def test_an_entry_of_another_kind_is_refused(change: dict[str, Any], why: str) -> None:
    document = bookdoc.parsed(bookdoc.text(bookdoc.entry_document(FULL_ENTRY)))
    with pytest.raises(UnreadableDocument) as refusal:
        bookdoc.read_entry({**document, **change})
    assert str(refusal.value).startswith(why)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"x"', "[" * 100_000, b"\xff"])
def test_a_text_that_is_no_document_is_refused(text: str | bytes) -> None:
    with pytest.raises(UnreadableDocument):
        bookdoc.parsed(text)


def test_a_number_that_is_none_is_not_written() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        bookdoc.text({"at": float("nan")})


def test_an_entry_that_only_tells_has_nothing_else() -> None:
    assert set(bookdoc.entry_document(note("x"))) == {
        *("revision", "time", "kind", "subject", "what", "actor", "detail")
    }


@on_a_busy_machine
@given(MICROSECONDS)
def test_a_time_is_as_rfc_3339_has_it(at: float) -> None:
    text = bookdoc.rfc3339(at)
    assert (len(text), text[-1]) == (27, "Z")
    assert datetime.datetime.fromisoformat(f"{text[:-1]}+00:00").timestamp() == at
