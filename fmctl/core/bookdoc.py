# SPDX-License-Identifier: Apache-2.0
"""The book's values as JSON documents, for the store and the audit journal.

Reading is strict: an unknown key or a value of another type is refused. A key that is missing is at its default, so
that documents from before a field existed can still be read; a new field therefore comes with a new schema version.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from fmctl.core.book import Entry, Kind, Mark, MarkKind
from fmctl.core.lease import Ending, Lease, LeaseState
from fmctl.core.mapsource import MapRecord

T = TypeVar("T")

Document = dict[str, Any]


class UnreadableDocument(ValueError):
    """A document is not what this version, or an earlier one, writes."""


def text(document: Document) -> str:
    """The document in one line of ASCII; raises ValueError for a number that is none."""
    return json.dumps(document, separators=(",", ":"), allow_nan=False)


def parsed(source: str | bytes) -> Document:
    """A document from its text; raises UnreadableDocument."""
    try:
        document = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise UnreadableDocument(f"it is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise UnreadableDocument("it is no JSON object")
    return document


def lease_document(lease: Lease) -> Document:
    """Every field of a lease."""
    return {**vars(lease), "state": lease.state.value, "ending": lease.ending.value, "labels": dict(lease.labels)}


def read_lease(document: object) -> Lease:
    """The way back from `lease_document`; raises UnreadableDocument."""
    return _lease(document)


def mark_document(mark: Mark) -> Document:
    """Every field of a mark."""
    return {**vars(mark), "kind": mark.kind.value}


def read_mark(document: object) -> Mark:
    """The way back from `mark_document`; raises UnreadableDocument."""
    return _mark(document)


def map_document(record: MapRecord) -> Document:
    """Every field of what is kept of the GPU map."""
    return record.plain()


def read_map(document: object) -> MapRecord:
    """The way back from `map_document`; raises UnreadableDocument."""
    try:
        return MapRecord.parse(document)
    except ValueError as error:
        raise UnreadableDocument(str(error)) from None


def entry_document(entry: Entry) -> Document:
    """An entry as the audit journal has it: the time for people, in UTC, and what it changed where it changed any."""
    document: Document = {
        "revision": entry.revision,
        "time": rfc3339(entry.time),
        "kind": entry.kind.value,
        "subject": entry.subject,
        "what": entry.what,
        "actor": entry.actor,
        "detail": entry.detail,
    }
    if entry.lease is not None:
        document["lease"] = lease_document(entry.lease)
    if entry.forget:
        document["forget"] = True
    if entry.mark is not None:
        document["mark"] = mark_document(entry.mark)
    if entry.unmark is not None:
        document["unmark"] = entry.unmark.value
    if entry.gpu_map is not None:
        document["gpu_map"] = map_document(entry.gpu_map)
    return document


def read_entry(document: object) -> Entry:
    """The way back from `entry_document`, its time to the microsecond; raises UnreadableDocument."""
    return _entry(document)


def rfc3339(at: float) -> str:
    """A time in seconds since the epoch as RFC 3339 has it, in UTC and to the microsecond."""
    moment = datetime.datetime.fromtimestamp(at, datetime.timezone.utc)
    return f"{moment.replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise UnreadableDocument(f"a text is wanted, not {value!r}")
    return value


def _whole(value: object) -> int:
    if type(value) is not int:
        raise UnreadableDocument(f"a whole number is wanted, not {value!r}")
    return value


def _number(value: object) -> float:
    if type(value) is float:
        return value
    try:
        return float(_whole(value))
    except OverflowError:
        raise UnreadableDocument("a number is too large") from None


def _flag(value: object) -> bool:
    if type(value) is not bool:
        raise UnreadableDocument(f"true or false is wanted, not {value!r}")
    return value


def _numbers(value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise UnreadableDocument(f"a list is wanted, not {value!r}")
    return tuple(_whole(item) for item in value)


def _texts(value: object) -> Mapping[str, str]:
    if not isinstance(value, dict):
        raise UnreadableDocument(f"a mapping is wanted, not {value!r}")
    return {key: _text(item) for key, item in value.items()}


def _moment(value: object) -> float:
    try:
        moment = datetime.datetime.strptime(_text(value), "%Y-%m-%dT%H:%M:%S.%fZ")
        return moment.replace(tzinfo=datetime.timezone.utc).timestamp()
    except ValueError:
        raise UnreadableDocument(f"a time is wanted, not {value!r}") from None


def _one_of(kind: Callable[[object], T]) -> Callable[[object], T]:
    def read(value: object) -> T:
        try:
            return kind(value)
        except ValueError as error:
            raise UnreadableDocument(str(error)) from None

    return read


def _or_none(reader: Callable[[object], T]) -> Callable[[object], T | None]:
    return lambda value: None if value is None else reader(value)


def _record(cls: Callable[..., T], readers: Mapping[Any, Callable[[object], Any]]) -> Callable[[object], T]:
    """What reads a dataclass, each field by its type; a type that is not known here ends the import."""
    fields = dataclasses.fields(typing.cast(Any, cls))
    kinds = typing.get_type_hints(cls)
    by_name = {field.name: readers[kinds[field.name]] for field in fields}
    wanted = [field.name for field in fields if field.default is field.default_factory]  # both are MISSING

    def read(document: object) -> T:
        if not isinstance(document, dict):
            raise UnreadableDocument(f"an object is wanted, not {document!r}")
        missing = [name for name in wanted if name not in document]
        if missing:
            raise UnreadableDocument(f"{missing[0]} is missing")
        values: dict[str, Any] = {}
        for name, value in document.items():
            if name not in by_name:
                raise UnreadableDocument(f"{name!r} is unknown")
            try:
                values[name] = by_name[name](value)
            except UnreadableDocument as error:
                raise UnreadableDocument(f"{name}: {error}") from None
        return cls(**values)

    return read


_PLAIN: dict[Any, Callable[[object], Any]] = {
    str: _text,
    int: _whole,
    float: _number,
    bool: _flag,
    float | None: _or_none(_number),
    tuple[int, ...]: _numbers,
    Mapping[str, str]: _texts,
    Kind: _one_of(Kind),
    LeaseState: _one_of(LeaseState),
    Ending: _one_of(Ending),
    MarkKind: _one_of(MarkKind),
    MarkKind | None: _or_none(_one_of(MarkKind)),
}
_lease = _record(Lease, _PLAIN)
_mark = _record(Mark, _PLAIN)
_entry = _record(
    Entry,
    {
        **_PLAIN,
        float: _moment,
        Lease | None: _or_none(_lease),
        Mark | None: _or_none(_mark),
        MapRecord | None: _or_none(read_map),
    },
)
