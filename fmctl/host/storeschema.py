# SPDX-License-Identifier: Apache-2.0
"""The tables of a store's file, by the steps that bring each version forward to the next.

The version stands in the file's header, where it can be read whatever became of the tables. The application id beside
it tells a store from other databases. The table `meta` stays as it is in every version.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Callable, Sequence

import fmctl
from fmctl.host import storerows

APPLICATION_ID = int.from_bytes(b"fmct", "big")

Migration = Callable[[sqlite3.Connection], None]

_TABLES = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL, sum INTEGER NOT NULL) WITHOUT ROWID",
    """
    CREATE TABLE leases (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        owner TEXT NOT NULL,
        request_id TEXT NOT NULL,
        over INTEGER NOT NULL,
        ended REAL,
        document TEXT NOT NULL,
        sum INTEGER NOT NULL,
        UNIQUE (owner, request_id)
    )
    """,
    "CREATE INDEX leases_live ON leases (number) WHERE NOT over",
    """
    CREATE TABLE marks (
        kind TEXT NOT NULL,
        subject TEXT NOT NULL,
        mark TEXT NOT NULL,
        document TEXT NOT NULL,
        sum INTEGER NOT NULL,
        PRIMARY KEY (kind, subject, mark)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE entries (
        revision INTEGER PRIMARY KEY AUTOINCREMENT,
        time REAL NOT NULL,
        kind TEXT NOT NULL,
        subject TEXT NOT NULL,
        what TEXT NOT NULL,
        actor TEXT NOT NULL,
        detail TEXT NOT NULL,
        lease TEXT,
        forget INTEGER NOT NULL,
        mark TEXT,
        unmark TEXT,
        sum INTEGER NOT NULL
    )
    """,
)


def _first(connection: sqlite3.Connection) -> None:
    for statement in _TABLES:
        connection.execute(statement)
    storerows.put_meta(connection, storerows.STORE_ID, str(uuid.uuid4()))
    storerows.put_meta(connection, storerows.COMPACTED, "0")


def _reboots(connection: sqlite3.Connection) -> None:
    """Documents of leases have `vm_rebooted`, which is null in older ones."""


def _gpu_maps(connection: sqlite3.Connection) -> None:
    """The GPU map: what each entry about it says is kept from then on, and the newest is what is kept."""
    connection.execute(
        "CREATE TABLE gpu_maps (revision INTEGER PRIMARY KEY, document TEXT NOT NULL, sum INTEGER NOT NULL)"
    )


MIGRATIONS: tuple[Migration, ...] = (_first, _reboots, _gpu_maps)
"""What brings a file from each version to the next, from 0, which has nothing in it."""


def version(connection: sqlite3.Connection) -> int:
    """The schema version of a file."""
    ((found,),) = connection.execute("PRAGMA user_version").fetchall()
    return int(found)


def application(connection: sqlite3.Connection) -> int:
    """Which application's file it is, by its header."""
    ((found,),) = connection.execute("PRAGMA application_id").fetchall()
    return int(found)


def probe(connection: sqlite3.Connection) -> None:
    """Raise sqlite3.Error where nothing can be written.

    SQLite opens a file that it may only read without a word, and begins any transaction on it.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    finally:
        connection.execute("ROLLBACK")


def migrate(connection: sqlite3.Connection, migrations: Sequence[Migration]) -> None:
    """Bring a file forward, each version in a transaction of its own.

    Raises sqlite3.Error, and what a step raises; closing the connection then undoes that step.
    """
    for step in range(version(connection), len(migrations)):
        connection.execute("BEGIN IMMEDIATE")
        migrations[step](connection)
        storerows.put_meta(connection, storerows.WRITER, fmctl.__version__)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {step + 1}")
        connection.execute("COMMIT")


def missing(connection: sqlite3.Connection, migrations: Sequence[Migration]) -> list[str]:
    """The tables and indexes that a file of its version has to have, and has not."""
    fresh = sqlite3.connect(":memory:", isolation_level=None)
    try:
        migrate(fresh, migrations[: version(connection)])
        return sorted(_objects(fresh) - _objects(connection))
    finally:
        fresh.close()


def _objects(connection: sqlite3.Connection) -> set[str]:
    rows = connection.execute("SELECT type, name, tbl_name FROM sqlite_master").fetchall()
    return {f"{kind} {name} of {table}" if kind != "table" else f"table {name}" for kind, name, table in rows}
