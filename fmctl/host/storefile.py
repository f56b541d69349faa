# SPDX-License-Identifier: Apache-2.0
"""A store's file: made, locked, checked, brought forward, copied and put aside.

SQLite's own locks on the file end when any descriptor of it is closed in this process, so nothing here opens the file
itself while SQLite may have it open.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from fmctl.core.errors import FmctlError
from fmctl.host import storefaults, storerows, storeschema
from fmctl.host.storerows import BadRow
from fmctl.host.storeschema import Migration

INTEGRITY = "PRAGMA integrity_check(3)"
"""The whole check: an index tells whether a request is known, and quick_check does not compare it with its table."""
_MODE = 0o600
_FOLDER_MODE = 0o700
_WAL_KEPT = 4 << 20
"""Bytes that the write-ahead log keeps on the disk after a checkpoint."""


def lock(path: Path) -> int:
    """A descriptor that keeps other processes out until it is closed; raises StoreUnusable where one has the store.

    The store's folder is made if it is missing.
    """
    beside = path.with_name(f"{path.name}.lock")
    try:
        path.parent.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE)
    except OSError as error:
        raise storefaults.failed(path, "locked", error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise storefaults.in_use(path, beside) from None
        raise storefaults.failed(path, "locked", error) from error
    return descriptor


def opened(path: Path, migrations: Sequence[Migration]) -> sqlite3.Connection:
    """The file, for reading and writing, made if it is missing, after every check and every step forward.

    Raises StoreUnusable; no file is then overwritten, renamed or removed.
    """
    if not os.path.lexists(path):
        _make(path, migrations)
    check(path, migrations)
    with contextlib.ExitStack() as undo, failing(path, "written"):
        connection = undo.enter_context(contextlib.closing(_connected(path, "rw")))
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_KEPT}")
        storeschema.probe(connection)
        storeschema.migrate(connection, migrations)
        undo.pop_all()
    return connection


def check(path: Path, migrations: Sequence[Migration]) -> None:
    """Raise StoreUnusable unless the file is a store that this fmctl can use; changes nothing in it."""
    with failing(path, "read"):
        if path.stat().st_size == 0:
            raise BadRow("it is empty")
        with contextlib.closing(_connected(path, "ro")) as connection:
            _check(path, connection, migrations)


def backup(path: Path, target: Path) -> None:
    """Copy a store, also one that is in use, into a new file; raises StoreUnusable, and FmctlError if that exists.

    The copy is checked, and on the disk, before it has its name; until then an empty file stands in for it.
    """
    there = next((file for file in _all(target) if os.path.lexists(file)), None)
    if there is not None:
        raise FmctlError(f"{there} is there already", why="a backup overwrites nothing", fix="name another file")
    with failing(target, "written"):
        _create(target)
    new = _beginning(target)
    try:
        with failing(target, "written"):
            _copy(path, new)
            _publish(new, target)
    except BaseException:
        _remove(new)
        target.unlink(missing_ok=True)
        raise


def put_aside(path: Path) -> Path | None:
    """Give a store's file another name, with what belongs to it, and return that; None where there is none.

    Raises StoreUnusable where a process has the store, or the file cannot be renamed.
    """
    descriptor = lock(path)
    try:
        if not any(os.path.lexists(file) for file in _all(path)):
            return None
        numbered = (path.with_name(f"{path.name}.aside-{number}") for number in itertools.count(1))
        aside = next(name for name in numbered if not any(os.path.lexists(file) for file in _all(name)))
        with failing(path, "renamed"):
            for old, new in zip(_all(path), _all(aside), strict=True):
                if os.path.lexists(old):
                    old.rename(new)
            _sync(path.parent)
        return aside
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def failing(path: Path, verb: str) -> Iterator[None]:
    """Turn what SQLite and the kernel raise in the block, and rows that are damaged, into StoreUnusable.

    SQLite's own message may have bytes of a damaged row, which then are no text.
    """
    try:
        yield
    except (BadRow, UnicodeDecodeError) as error:
        raise storefaults.damaged(path, str(error)) from error
    except (sqlite3.Error, OSError) as error:
        raise storefaults.failed(path, verb, error) from error


def _make(path: Path, migrations: Sequence[Migration]) -> None:
    """Make an empty store, whole or not at all, so that a file that is empty later was damaged."""
    log = _all(path)[1]
    if log.exists() and log.stat().st_size:
        raise storefaults.damaged(path, f"it is missing, and {log} is there, which belongs to it")
    new = _beginning(path)
    with failing(path, "written"):
        _remove(new)
        _create(new)
        with contextlib.closing(_connected(new, "rw")) as connection:
            storeschema.migrate(connection, migrations)
            connection.execute("PRAGMA journal_mode = WAL")
        _publish(new, path)


def _copy(path: Path, new: Path) -> None:
    _remove(new)
    _create(new)
    with contextlib.ExitStack() as open_files:
        copy = open_files.enter_context(contextlib.closing(_connected(new, "rw")))
        with failing(path, "read"):
            source = open_files.enter_context(contextlib.closing(_connected(path, "ro")))
            _version(path, source, len(storeschema.MIGRATIONS))
        source.backup(copy)
        with failing(path, "read"):
            _check(path, copy, storeschema.MIGRATIONS)


def _check(path: Path, connection: sqlite3.Connection, migrations: Sequence[Migration]) -> None:
    version = _version(path, connection, len(migrations))
    found = connection.execute(INTEGRITY).fetchall()
    if found != [("ok",)]:
        raise BadRow("; ".join(line for row in found for line in str(row[0]).splitlines()))
    missing = storeschema.missing(connection, migrations)
    if missing:
        raise BadRow(f"{', '.join(missing)} is missing")
    if version == len(migrations):
        storerows.book(connection)


def _version(path: Path, connection: sqlite3.Connection, known: int) -> int:
    """The file's schema version; raises StoreUnusable for a later one, and BadRow where the header is wrong."""
    version = storeschema.version(connection)
    if storeschema.application(connection) != storeschema.APPLICATION_ID or version < 1:
        raise BadRow("it is no store of fmctl's")
    if version > known:
        writer = ""
        with contextlib.suppress(sqlite3.Error, BadRow):
            writer = storerows.meta(connection, storerows.WRITER)
        raise storefaults.newer(path, version, known, writer)
    return version


def _connected(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None, check_same_thread=False
    )


def _all(path: Path) -> tuple[Path, ...]:
    """The file, and those that SQLite puts beside it, the write-ahead log first."""
    return (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm", "-journal")))


def _beginning(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def _create(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE))


def _remove(path: Path) -> None:
    for file in _all(path):
        file.unlink(missing_ok=True)


def _publish(new: Path, path: Path) -> None:
    """Give a file that is written its name, for good once this returns."""
    _sync(new)
    new.rename(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
