# SPDX-License-Identifier: Apache-2.0
"""Remakes a store that cannot be used from its audit journal; `core.adopt` says what stood at its end."""

from __future__ import annotations

from pathlib import Path

from fmctl.core import adopt
from fmctl.core.book import Entry, Kind, Mark, MarkKind, of_mark
from fmctl.core.errors import FmctlError
from fmctl.host import storefile
from fmctl.host.journal import read_journal
from fmctl.host.store import FileStore

WHY = "the store of leases was rebuilt from its journal"


def planned(journal: Path, at: float) -> tuple[Entry, ...]:
    """What a new store would begin with, at that time in seconds since the epoch; raises FmctlError.

    The host is only observed then: what ran while no journal was written is for a person to compare.
    """
    try:
        entries = [each.entry for each in read_journal(journal)]
    except OSError as error:
        raise FmctlError(
            f"{journal} cannot be read", why=error.strerror or str(error), fix="mend its rights, or restore it"
        ) from error
    marks = (Mark(MarkKind.MET, WHY, at), Mark(MarkKind.OBSERVED, WHY, at))
    return (*adopt.from_journal(entries), *(of_mark(Kind.HOST, "", mark, actor="fmctl") for mark in marks))


def rebuild(path: Path, journal: Path, at: float) -> tuple[Path | None, tuple[Entry, ...]]:
    """Put the store aside, under the name that is returned, and make a new one; also what that begins with.

    Raises StoreUnusable where a daemon has the store, and FmctlError where the journal cannot be read: then nothing was
    changed.
    """
    entries = planned(journal, at)
    aside = storefile.put_aside(path)
    with FileStore(path, journal=journal) as store:
        store.commit(entries, at=at)
    return aside, entries
