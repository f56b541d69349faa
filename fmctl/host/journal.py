# SPDX-License-Identifier: Apache-2.0
"""The audit journal: every entry as one line of JSON, for people, for log shippers, and for `fmctl store rebuild`.

It is appended to, never rewritten. A line that a crash cut off stays, and is skipped; `host.store` writes it again.
One older file is kept beside it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fmctl.core import bookdoc
from fmctl.core.book import Entry
from fmctl.core.bookdoc import UnreadableDocument

LIMIT = 16 << 20
"""Bytes from which on another file is begun."""
_MODE = 0o600
_FOLDER_MODE = 0o700


@dataclass(frozen=True)
class Journaled:
    """An entry, its time to the microsecond, and the id of the store whose revision it has."""

    store_id: str
    entry: Entry


class Journal:
    """The journal of one store in `path`; every method raises OSError."""

    def __init__(self, path: Path, store_id: str, *, limit: int = LIMIT) -> None:
        self.path = path
        self._store_id = store_id
        self._limit = limit

    def last(self) -> int:
        """The highest revision of the store that stands whole in the journal; 0 where there is none."""
        for path in (self.path, _older(self.path)):
            for line in reversed(_lines(path)):
                found = _read(line)
                if found is not None and found.store_id == self._store_id:
                    return found.entry.revision
        return 0

    def lines(self, entries: Sequence[Entry]) -> bytes:
        """What `append` takes; raises ValueError or OverflowError for a time that is none."""
        documents = ({"store_id": self._store_id, **bookdoc.entry_document(entry)} for entry in entries)
        return b"".join(b"%s\n" % bookdoc.text(document).encode() for document in documents)

    def append(self, lines: bytes) -> None:
        """Write lines behind all others; after an error some of them may be there."""
        self.path.parent.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        self._make_room(len(lines))
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                lines = b"\n" + lines
            while lines:
                lines = lines[os.write(descriptor, lines) :]
        finally:
            os.close(descriptor)

    def _make_room(self, more: int) -> None:
        try:
            size = self.path.stat().st_size
        except FileNotFoundError:
            return
        if size and size + more > self._limit:
            self.path.replace(_older(self.path))


def read_journal(path: Path) -> Iterator[Journaled]:
    """Every entry in a journal and in the older file beside it, oldest first; what cannot be read is skipped.

    After a rebuild the entries of two stores may be in it, one after the other. Raises OSError.
    """
    for file in (_older(path), path):
        for line in _lines(file):
            found = _read(line)
            if found is not None:
                yield found


def _read(line: bytes) -> Journaled | None:
    try:
        document = bookdoc.parsed(line)
        store_id = document.pop("store_id", None)
        entry = bookdoc.read_entry(document)
    except UnreadableDocument:
        return None
    return Journaled(store_id, entry) if isinstance(store_id, str) else None


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []


def _older(path: Path) -> Path:
    return path.with_name(f"{path.name}.1")
