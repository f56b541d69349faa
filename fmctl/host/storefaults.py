# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a store's file, and what a person does about it, as errors."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

from fmctl.core.errors import StoreUnusable

REBUILD = "make another with `fmctl store rebuild --from-host`, which puts this one aside"

_SPACE = "free space on its file system; nothing else needs doing"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_OTHERS = "see `fuser` of it, and end what else writes to it"
_BY_TEXT = (
    *((text, REBUILD) for text in ("malformed", "not a database", "decode", "no such")),
    ("is full", _SPACE),
    ("locked", _OTHERS),
)
"""What to do, by what SQLite's message says: its error codes reach Python from 3.11 on."""


def damaged(path: Path, why: str) -> StoreUnusable:
    """The file is not what fmctl wrote."""
    return StoreUnusable(f"{path} is damaged", why=why, fix=REBUILD)


def newer(path: Path, version: int, known: int, writer: str) -> StoreUnusable:
    """A later fmctl wrote the file."""
    return StoreUnusable(
        f"{path} was written by a later fmctl",
        why=f"its schema version is {version}, and this fmctl knows those up to {known}",
        fix=f"install fmctl {writer or 'of that version'} again",
    )


def older(path: Path, revision: int, journal: Path, told: int) -> StoreUnusable:
    """Entries that were committed are not in the file: it is an older copy, or its end was damaged."""
    return StoreUnusable(
        f"{path} is older than its journal",
        why=f"it ends at revision {revision}, and {journal} tells of {told}",
        fix=REBUILD,
    )


def in_use(path: Path, lock: Path) -> StoreUnusable:
    """Another process has the store."""
    return StoreUnusable(
        f"{path} is in use",
        why=f"another process has {lock} locked",
        fix=f"call the daemon instead, or stop it first; `fuser {lock}` tells which process it is",
    )


def failed(path: Path, verb: str, error: sqlite3.Error | OSError) -> StoreUnusable:
    """It could not be `verb`."""
    fix = f"see that {path} and its folder can be written, and whether the kernel logged errors of their disk"
    if isinstance(error, OSError):
        why, fix = error.strerror or str(error), _SPACE if error.errno in _FULL else fix
    else:
        why = str(error)
        fix = next((known for text, known in _BY_TEXT if text in why), fix)
    return StoreUnusable(f"{path} cannot be {verb}", why=why, fix=fix)
