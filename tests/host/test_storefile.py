# SPDX-License-Identifier: Apache-2.0
"""A store's file that is damaged, of another version, or on its way there."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import fmctl
from fmctl.core.book import Kind, Mark, MarkKind, of_mark
from fmctl.core.errors import StoreUnusable
from fmctl.core.lease import LeaseState
from fmctl.host import storefile, storerows, storeschema
from fmctl.host.store import FileStore
from fmctl.host.storeschema import MIGRATIONS
from fmctl.process import Child
from tests.stores import FULL_ENTRY, FULL_LEASE, T0, lease, made, note

REBUILD = "make another with `fmctl store rebuild --from-host`, which puts this one aside"
COUNT = 24
FLIPS = 250


def fill(path: Path) -> None:
    """A store of several pages, with every kind of thing in it."""
    with FileStore(path) as store:
        for number in range(COUNT):
            state = LeaseState.RELEASED if number % 2 else LeaseState.ACTIVE
            store.commit([made(str(number), state), note("x" * 200)], at=T0 + number)
        mark = of_mark(Kind.GPU, "5", Mark(MarkKind.CLEANING, "now", T0))
        store.commit([replace(made("full"), lease=replace(FULL_LEASE, id="full")), mark, FULL_ENTRY], at=T0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "leases.db"
    fill(path)
    assert path.stat().st_size > 10 * 4096
    return path


@pytest.fixture
def path(tmp_path: Path, whole: Path) -> Path:
    return Path(shutil.copy(whole, tmp_path / "leases.db"))


def files(folder: Path) -> dict[str, bytes]:
    """All that is in the folder but what SQLite and the lock may always put there."""
    return {f.name: f.read_bytes() for f in folder.iterdir() if not f.name.endswith((".lock", "-shm"))}


def content(path: Path) -> object:
    with FileStore(path) as store:
        return store.book, store.leases(over=True), store.entries(0, limit=1 << 30)


def refused(path: Path) -> StoreUnusable:
    """How the store refuses to open, twice, and without any change."""
    before = files(path.parent)
    for _ in range(2):
        with pytest.raises(StoreUnusable) as refusal:
            FileStore(path)
        after = files(path.parent)
        empty = {f"{path.name}-wal": b""}
        assert (after if f"{path.name}-wal" in before else {**empty, **after}) in (before, {**empty, **before})
    assert str(path) in refusal.value.what
    return refusal.value


def sql(path: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def crash(path: Path) -> bytes:
    """Let a process die that has the store, so that its last commits are in the write-ahead log alone; that log."""
    code = (
        "import os, sys; from pathlib import Path; from fmctl.host.store import FileStore; from tests.stores import *\n"
        "store = FileStore(Path(sys.argv[1]))\n"
        "for number in range(5): store.commit([made(f'late {number}'), note('x' * 5000)], at=T0)\n"
        "os.kill(os.getpid(), 9)"
    )
    with Child([sys.executable, "-c", code, str(path)]) as child:
        assert child.wait(15) == -9
    return path.with_name(f"{path.name}-wal").read_bytes()


@contextlib.contextmanager
def unwritable(path: Path) -> Iterator[None]:
    """Let nobody write to a file; root does not heed its mode."""
    if os.geteuid() != 0:
        path.chmod(0o400)
        yield
        return
    subprocess.run(["/usr/bin/mount", "--bind", "-o", "ro", path, path], check=True)
    try:
        yield
    finally:
        subprocess.run(["/usr/bin/umount", "--lazy", path], check=True)


def flip(page: int) -> Callable[[Path], object]:
    """Change the beginning of a page."""

    def change(path: Path) -> None:
        data = bytearray(path.read_bytes())
        for offset in range(page * 4096, page * 4096 + 64):
            data[offset] ^= 0xFF
        path.write_bytes(data)

    return change


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (flip(0), "file is not a database"),
        (flip(1), "database disk image is malformed"),
        (flip(10), "database disk image is malformed"),
        (lambda path: os.truncate(path, 6 * 4096), "database disk image is malformed"),
        (lambda path: os.truncate(path, path.stat().st_size - 3000), "*** in database main ***; On tree page"),
        (lambda path: os.truncate(path, 50), "it is no store of fmctl's"),
        (lambda path: path.write_bytes(b"garbage" * 1000), "file is not a database"),
        (lambda path: path.write_bytes(b""), "it is empty"),
        (lambda path: sql(path, "DROP TABLE marks"), "table marks is missing"),
        (lambda path: sql(path, "DROP TABLE meta"), "table meta is missing"),
        (lambda path: sql(path, "DROP INDEX leases_live"), "index leases_live of leases is missing"),
        (lambda path: sql(path, "PRAGMA application_id = 0"), "it is no store of fmctl's"),
        (lambda path: sql(path, "PRAGMA user_version = 0"), "it is no store of fmctl's"),
        (lambda path: sql(path, "DELETE FROM meta WHERE key = 'store_id'"), "meta: store_id is missing"),
        (
            lambda path: sql(path, "UPDATE meta SET value = 'x' WHERE key = 'store_id'"),
            "meta: the row of 'store_id' is",
        ),
        (lambda path: sql(path, "UPDATE leases SET document = '{'"), "leases: the row of '0' is not what was written"),
        (lambda path: sql(path, "UPDATE leases SET over = 1 WHERE id = '2'"), "leases: the row of '2' is"),
        (lambda path: sql(path, "UPDATE leases SET document = x'ff' WHERE id = '2'"), "leases: the row of '2' is"),
        (lambda path: sql(path, "UPDATE leases SET owner = CAST(x'ff' AS TEXT)"), "Could not decode to UTF-8"),
        (lambda path: sql(path, "UPDATE marks SET subject = '6'"), "marks: the row of 'gpu' is not what was written"),
        (
            lambda path: sql(path, "DELETE FROM entries WHERE revision > 50"),
            "entries: the last revision is 50, and the",
        ),
        (lambda path: sql(path, "UPDATE sqlite_sequence SET seq = 9999"), "entries: the last revision is 51, and the"),
    ],
)
def test_a_damaged_file_is_refused_and_left_as_it_is(path: Path, damage: Callable[[Path], object], why: str) -> None:
    damage(path)
    error = refused(path)
    assert error.why.startswith(why)
    assert error.fix == REBUILD


def test_a_document_that_another_version_wrote_is_refused(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        row = storerows._summed("x", "a", "x", 0, None, '{"id":"x","colour":"red"}')
        connection.execute(storerows._PUT_LEASE, row)
    assert refused(path).why == "leases: a row cannot be read: owner is missing"


def test_an_index_that_is_not_as_its_table_is_refused(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        query = "SELECT rootpage FROM sqlite_master WHERE name = 'sqlite_autoindex_leases_2'"
        ((page,),) = connection.execute(query).fetchall()
    data = bytearray(path.read_bytes())
    start = data.index(b"afor 10", (page - 1) * 4096, page * 4096)
    data[start : start + 7] = b"afor 1x"
    path.write_bytes(data)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA quick_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT id FROM leases WHERE owner = 'a' AND request_id = 'for 10'").fetchall() == []
    assert "row 12 missing from index sqlite_autoindex_leases_2" in refused(path).why


def test_no_byte_that_changed_is_ever_believed(path: Path, whole: Path, tmp_path: Path) -> None:
    wanted = content(path)
    data = path.read_bytes()
    rng = random.Random(3)  # noqa: S311
    refusals = 0
    for offset in [*range(20), *range(24, 100, 3), *(rng.randrange(len(data)) for _ in range(FLIPS))]:
        for file in tmp_path.iterdir():
            file.unlink()
        path.write_bytes(data[:offset] + bytes([data[offset] ^ 1 << rng.randrange(8)]) + data[offset + 1 :])
        try:
            assert content(path) == wanted, offset
        except StoreUnusable:
            refusals += 1
    assert refusals > FLIPS / 4


def test_what_a_dead_process_committed_is_in_the_log_and_is_read(path: Path) -> None:
    assert len(crash(path)) > 5 * 5000
    with FileStore(path) as store:
        assert store.lease("late 4").revision == store.book.revision - 1


def test_a_refusal_leaves_the_log_as_it_is(path: Path) -> None:
    log = crash(path)
    flip(1)(path)
    refused(path)
    assert path.with_name("leases.db-wal").read_bytes() == log


def test_a_log_without_its_file_is_refused(path: Path) -> None:
    crash(path)
    path.unlink()
    error = refused(path)
    assert error.why == f"it is missing, and {path}-wal is there, which belongs to it"
    assert error.fix == REBUILD


def test_a_store_that_somebody_took_the_log_from_has_one_again(path: Path) -> None:
    sql(path, "PRAGMA journal_mode = DELETE")
    with FileStore(path) as store:
        store.commit([note("x")], at=T0)
        assert path.with_name("leases.db-wal").stat().st_size


def test_opening_writes_nothing(path: Path) -> None:
    before = path.read_bytes()
    with FileStore(path):
        assert path.with_name("leases.db-wal").stat().st_size == 0
    assert path.read_bytes() == before


def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "leases.db").mkdir()
    with pytest.raises(StoreUnusable, match="leases\\.db cannot be read") as refusal:
        FileStore(tmp_path / "leases.db")
    assert f"see that {tmp_path}/leases.db and its folder can be written" in refusal.value.fix
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnusable, match=r"File exists|Not a directory"):
        FileStore(tmp_path / "file" / "leases.db")


def test_a_file_that_cannot_be_written_is_refused(path: Path) -> None:
    with unwritable(path):
        error = refused(path)
    assert str(error) == f"{path} cannot be written: attempt to write a readonly database"
    assert f"see that {path} and its folder can be written" in error.fix


def test_a_refused_store_is_let_go(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(b"")
    refused(path)
    path.write_bytes(data)
    with FileStore(path) as store:
        assert store.book.revision == 2 * COUNT + 3


def test_what_a_crash_left_of_a_new_store_is_in_nobody_s_way(tmp_path: Path) -> None:
    (tmp_path / ".leases.db.new").write_bytes(b"half")
    (tmp_path / ".leases.db.new-journal").write_bytes(b"half")
    with FileStore(tmp_path / "leases.db") as store:
        store.commit([note("x")], at=T0)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["leases.db", "leases.db.lock"]


def test_a_path_may_have_any_name(tmp_path: Path) -> None:
    path = tmp_path / "a?b#c%20{d}'ä" / "leases db?mode=memory"
    with FileStore(path) as store:
        store.commit([made("1")], at=T0)
        store.backup(path.with_name("copy?#%"))
    assert path.read_bytes()[:6] == b"SQLite"
    with FileStore(path.with_name("copy?#%")) as copy:
        assert set(copy.book.leases) == {"1"}


# A fictional second version: a lease has a colour, which older files are given.


def second(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE colours (lease TEXT PRIMARY KEY, colour TEXT NOT NULL)")
    connection.execute("INSERT INTO colours SELECT id, 'red' FROM leases")


def failing(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE fruits (x)")
    connection.execute("DELETE FROM leases")
    connection.execute("INSERT INTO nowhere VALUES (1)")


def test_an_older_file_is_brought_forward_and_nothing_is_lost(path: Path) -> None:
    before = content(path)
    later = (*MIGRATIONS, second, lambda connection: connection.execute("CREATE TABLE third (x)"))
    for _ in range(2):
        with FileStore(path, migrations=later) as store:
            assert (store.book, store.leases(over=True), store.entries(0, limit=1 << 30)) == before
            assert storeschema.version(store._sql) == len(later)
            colours = store._sql.execute("SELECT lease, colour FROM colours").fetchall()
            assert colours == [(x.id, "red") for x in sorted(store.leases(over=True), key=lambda x: x.id)]
    sql(path, "DROP TABLE colours")
    with pytest.raises(StoreUnusable, match="table colours is missing"):
        FileStore(path, migrations=later)


def test_a_new_file_has_the_latest_schema(tmp_path: Path) -> None:
    with FileStore(tmp_path / "leases.db", migrations=(*MIGRATIONS, second)) as store:
        assert storeschema.version(store._sql) == len(MIGRATIONS) + 1
        assert store._sql.execute("SELECT * FROM colours").fetchall() == []


def test_a_step_that_fails_changes_nothing_and_can_be_made_again(path: Path) -> None:
    before = content(path)
    with pytest.raises(StoreUnusable, match=f"{path} cannot be written: no such table: nowhere"):
        FileStore(path, migrations=(*MIGRATIONS, failing))
    assert content(path) == before
    with pytest.raises(StoreUnusable, match="nowhere"):
        FileStore(path, migrations=(*MIGRATIONS, second, failing))
    with FileStore(path, migrations=(*MIGRATIONS, second)) as store:
        assert store.lease("0") == replace(lease("0"), revision=1)
    sql(path, "INSERT INTO colours VALUES ('x', 'blue')")


def test_a_file_of_a_later_version_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fmctl, "__version__", "99.1")
    FileStore(path, migrations=(*MIGRATIONS, second)).close()
    error = refused(path)
    assert str(error) == (
        f"{path} was written by a later fmctl: its schema version is {len(MIGRATIONS) + 1},"
        f" and this fmctl knows those up to {len(MIGRATIONS)}"
    )
    assert error.fix == "install fmctl 99.1 again"
    sql(path, "DROP TABLE meta", "DROP TABLE leases")
    assert refused(path).fix == "install fmctl of that version again"


def test_a_file_is_put_aside_with_its_log_and_reads_there_as_before(path: Path) -> None:
    log = crash(path)
    aside = storefile.put_aside(path)
    assert aside == path.with_name("leases.db.aside-1")
    assert aside.with_name("leases.db.aside-1-wal").read_bytes() == log
    assert not [f for f in path.parent.iterdir() if f.name in ("leases.db", "leases.db-wal", "leases.db-shm")]
    with FileStore(path) as store:
        assert store.book.revision == 0
        with pytest.raises(StoreUnusable, match="is in use"):
            storefile.put_aside(path)
    with FileStore(aside) as old:
        assert old.lease("late 4")
    assert storefile.put_aside(path) == path.with_name("leases.db.aside-2")
    assert storefile.put_aside(path) is None


def test_a_log_that_is_left_is_put_aside_too(path: Path) -> None:
    crash(path)
    path.unlink()
    assert storefile.put_aside(path) == path.with_name("leases.db.aside-1")
    with FileStore(path) as store:
        assert store.book.revision == 0


def test_a_store_can_be_read_and_copied_while_no_process_has_it(path: Path) -> None:
    storefile.check(path, MIGRATIONS)
    storefile.backup(path, path.with_name("copy.db"))
    assert content(path.with_name("copy.db")) == content(path)
