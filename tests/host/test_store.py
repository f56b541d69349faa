# SPDX-License-Identifier: Apache-2.0
"""What the store in a file survives: its process's death, full and failing disks, others that want it at once."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmctl.core.book import Book, Entry, Kind, Mark, MarkKind, of_mark
from fmctl.core.errors import FmctlError, NoSuchLease, StoreUnusable
from fmctl.core.lease import LeaseState
from fmctl.host import storefile
from fmctl.host.journal import read_journal
from fmctl.host.store import FileStore
from fmctl.process import Child
from tests.sim.compiler import compile_c
from tests.stores import BIG, T0, all_entries, longest_file, made, note
from tests.support import eventually

ROUNDS = 20

COMMITTER = """
import os, sys
from pathlib import Path
from fmctl.core.book import Kind, Mark, MarkKind, of_lease, of_mark, Entry
from fmctl.core.lease import Lease, LeaseState
from fmctl.host.store import FileStore

folder, number = Path(sys.argv[1]), sys.argv[2]
store = FileStore(folder / "leases.db", journal=folder / "audit.jsonl", journal_limit=1 << 20)
acknowledged = os.open(folder / "acknowledged", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
for count in range(100_000):
    name = f"{number}-{count}"
    lease = Lease(name, "a", name, "{}", LeaseState.ACTIVE, (3,), (1, 2), reason="x" * 300)
    parts = [of_lease(lease, "made"), of_mark(Kind.GPU, "5", Mark(MarkKind.CLEANING, name, float(count)))]
    if count % 2:
        parts.append(of_lease(lease.to(LeaseState.RELEASED, 1.0), "ended"))
    else:
        parts.append(Entry(Kind.HOST, "", "x"))
    told = store.commit(parts, at=float(count))
    os.write(acknowledged, b"%d\\n" % told[-1].revision)
"""
HOLDER = """
import sys, threading
from pathlib import Path
from fmctl.host.store import FileStore
store = FileStore(Path(sys.argv[1]))
Path(sys.argv[1] + ".opened").touch()
threading.Event().wait()
"""


def run(code: str, *arguments: object) -> Child:
    return Child([sys.executable, "-c", code, *map(str, arguments)])


def acknowledged(folder: Path) -> int:
    """The last revision that a committer was told."""
    file = folder / "acknowledged"
    return int(file.read_text().split("\n")[-2]) if file.exists() and file.stat().st_size else 0


def test_what_was_acknowledged_survives_sigkill_and_nothing_is_torn(folder: Path) -> None:
    rng = random.Random(7)  # noqa: S311
    last = 0
    for number in range(ROUNDS):
        with run(COMMITTER, folder, number) as child:
            eventually(lambda: acknowledged(folder) > last)  # noqa: B023
            time.sleep(rng.uniform(0, 0.06))
            child.kill()
        with FileStore(folder / "leases.db", journal=folder / "audit.jsonl") as store:
            entries, book, leases = all_entries(store), store.book, store.leases(over=True)
        assert [e.revision for e in entries] == list(range(1, len(entries) + 1))
        assert len(entries) % 3 == 0
        assert 0 <= book.revision - acknowledged(folder) <= 3
        told = Book(book.store_id).after(entries)
        assert (book, {x.id: x for x in leases if not x.state.over}) == (told, told.leases)
        assert len(leases) == len({e.lease.id for e in entries if e.lease})
        last = acknowledged(folder)
    journal = [told.entry for told in read_journal(folder / "audit.jsonl")]
    assert [e.revision for e in journal] == [e.revision for e in entries][-len(journal) :]
    assert len(journal) > len(entries) / 3


@pytest.fixture
def synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let child processes copy what they sync to a file beside it, and fail to sync what stands beside a `broken`."""
    library = tmp_path / "synced.so"
    compile_c(library, "-shared", "-fPIC", Path(__file__).with_name("synced.c"), "-ldl")
    with monkeypatch.context() as patch:
        patch.setenv("LD_PRELOAD", str(library))
        yield


PREPARE = """
import os, signal, sys
from pathlib import Path
from fmctl.core.errors import StoreUnusable
from fmctl.host.store import FileStore
from tests.stores import BIG, T0, all_entries, longest_file, made, note

folder = Path(sys.argv[1])
store = FileStore(folder / "leases.db")

def commit(name):
    store.commit([made(name), note("x" * 5000)], at=T0)

def refused(name):
    before = store.book
    try:
        commit(name)
    except StoreUnusable as error:
        assert "disk I/O error" in str(error) and store.book is before
        return
    raise AssertionError(name)

def die():
    os.kill(os.getpid(), signal.SIGKILL)
"""


def run_to_death(code: str, *arguments: object) -> None:
    with run(PREPARE + code, *arguments) as child:
        assert child.wait(30) == -signal.SIGKILL


def names(path: Path) -> list[str]:
    with FileStore(path) as store:
        assert [e.revision for e in all_entries(store)] == list(range(1, store.book.revision + 1))
        return [lease.id for lease in store.leases()]


@pytest.mark.usefixtures("synced")
def test_what_was_acknowledged_survives_a_power_failure(folder: Path) -> None:
    FileStore(folder / "leases.db").close()
    run_to_death("commit('1'); commit('2'); commit('3'); die()", folder)
    (folder / "leases.db-wal.synced").replace(folder / "leases.db-wal")
    assert not (folder / "leases.db.synced").exists()
    assert names(folder / "leases.db") == ["1", "2", "3"]


@pytest.mark.usefixtures("synced")
@pytest.mark.parametrize("mended", [True, False])
def test_a_commit_that_could_not_be_synced_never_comes_back(folder: Path, *, mended: bool) -> None:
    code = """
commit('1'); commit('2')
(folder / "broken").touch()
refused('3')
if sys.argv[2] == "True":
    (folder / "broken").unlink()
    commit('4')
die()
"""
    run_to_death(code, folder, mended)
    assert names(folder / "leases.db") == (["1", "2", "4"] if mended else ["1", "2"])


def test_one_process_has_the_store_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "leases.db"
    with run(HOLDER, path) as child:
        eventually((tmp_path / "leases.db.opened").exists)
        began = time.monotonic()
        with pytest.raises(StoreUnusable) as refusal:
            FileStore(path)
        assert time.monotonic() - began < 1
        assert str(refusal.value) == f"{path} is in use: another process has {path}.lock locked"
        assert f"fuser {path}.lock" in refusal.value.fix
        storefile.backup(path, tmp_path / "copy.db")
        child.kill()
    with FileStore(path) as store, pytest.raises(StoreUnusable, match="is in use"):
        FileStore(path)
    assert store.book.revision == 0
    with FileStore(path):
        pass


def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        folder = tmp_path / "a" / "state"
        with FileStore(folder / "leases.db", journal=tmp_path / "log" / "audit.jsonl") as store:
            store.commit([note("x")], at=T0)
            store.backup(tmp_path / "copy.db")
            files = [*folder.iterdir(), tmp_path / "log" / "audit.jsonl", tmp_path / "copy.db"]
            assert {file.name for file in files} >= {"leases.db", "leases.db-wal", "leases.db.lock", "audit.jsonl"}
            assert {file.name: oct(file.stat().st_mode & 0o777) for file in files} == {f.name: "0o600" for f in files}
            assert [oct(f.stat().st_mode & 0o777) for f in (folder, tmp_path / "log")] == ["0o700", "0o700"]
    finally:
        os.umask(before)


def test_a_closed_store_says_so_and_keeps_its_book(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "leases.db")
    store.commit([made("1")], at=T0)
    store.close()
    store.close()
    assert set(store.book.leases) == {"1"}
    with pytest.raises(StoreUnusable, match="closed"):
        store.commit([made("2")], at=T0)
    with pytest.raises(StoreUnusable, match="closed"):
        store.lease("1")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["leases.db", "leases.db.lock"]


def test_threads_commit_and_read_at_once(tmp_path: Path) -> None:
    count, threads = 25, 4
    failures: list[BaseException] = []

    def work(name: str, store: FileStore) -> None:
        try:
            for number in range(count):
                lease_id = f"{name}-{number}"
                (told,) = store.commit([made(lease_id)], at=T0)
                assert store.book.leases[lease_id].revision == told.revision
                assert store.lease(lease_id) == store.book.leases[lease_id]
                assert store.entries(told.revision - 1, limit=1) == (told,)
        except BaseException as error:
            failures.append(error)

    with FileStore(tmp_path / "leases.db", journal=tmp_path / "audit.jsonl") as store:
        workers = [threading.Thread(target=work, args=(str(n), store)) for n in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert not failures
        assert [e.revision for e in all_entries(store)] == list(range(1, count * threads + 1))
        assert len(store.book.leases) == len(store.leases()) == count * threads


@contextlib.contextmanager
def small_disk(folder: Path, kibibytes: int = 1024) -> Iterator[Path]:
    """A file system of that size, which takes root."""
    subprocess.run(["/usr/bin/mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["/usr/bin/umount", "--lazy", folder], check=True)


def commit_until_it_fails(store: FileStore) -> StoreUnusable:
    for number in range(10_000):
        before = store.book
        try:
            store.commit([made(f"{number}-{before.revision}"), note(BIG)], at=T0)
        except StoreUnusable as error:
            assert store.book is before
            with pytest.raises(NoSuchLease):
                store.lease(f"{number}-{before.revision}")
            return error
    raise AssertionError("the disk is never full")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
def test_a_full_disk_loses_nothing_and_the_next_commit_works_once_there_is_space(tmp_path: Path) -> None:
    with small_disk(tmp_path) as disk:
        path, ballast = disk / "leases.db", disk / "ballast"
        with FileStore(path, journal=disk / "audit.jsonl") as store:
            ballast.write_bytes(bytes(300 << 10))
            error = commit_until_it_fails(store)
            assert str(error) == f"{path} cannot be written: database or disk is full"
            assert "free space" in error.fix
            before = store.book
            with pytest.raises(StoreUnusable):
                store.backup(disk / "copy.db")
            assert not (disk / "copy.db").exists()
            ballast.unlink()
            (told,) = store.commit([made("later")], at=T0)
            assert told.revision == before.revision + 1
            book, entries = store.book, all_entries(store)
        with FileStore(path, journal=disk / "audit.jsonl") as store:
            assert (store.book, all_entries(store)) == (book, entries)
        assert [told.entry for told in read_journal(disk / "audit.jsonl")] == list(entries)


FULL = "database or disk is full"


def test_a_write_that_fails_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "leases.db"
    with FileStore(path) as store:
        store.commit([made("first")], at=T0)
        with longest_file(100 << 10):
            error = commit_until_it_fails(store)
        assert str(error) in (f"{path} cannot be written: disk I/O error", f"{path} cannot be written: {FULL}")
        before = store.book
        with longest_file(1), pytest.raises(StoreUnusable):
            store.compact(leases_before=T0 + 1, entries_before=T0 + 1)
        assert store.entries(0, limit=1)
        (told,) = store.commit([made("later")], at=T0)
        assert told.revision == before.revision + 1
        book = store.book
    with FileStore(path) as store:
        assert store.book == book


def test_a_database_that_may_not_grow_is_as_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "leases.db"
    with FileStore(path) as store:
        ((pages,),) = store._sql.execute("PRAGMA page_count").fetchall()
        store._sql.execute(f"PRAGMA max_page_count = {pages + 4}").fetchall()
        assert FULL in commit_until_it_fails(store).why
        store._sql.execute("PRAGMA max_page_count = 100000").fetchall()
        store.commit([made("later")], at=T0)
        assert [e.revision for e in all_entries(store)] == list(range(1, store.book.revision + 1))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
def test_a_file_system_that_cannot_be_written_is_told_at_open(tmp_path: Path) -> None:
    with small_disk(tmp_path) as disk:
        FileStore(disk / "leases.db").close()
        subprocess.run(["/usr/bin/mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(StoreUnusable) as refusal:
            FileStore(disk / "leases.db")
        assert str(refusal.value) == f"{disk}/leases.db cannot be locked: Read-only file system"
        assert f"see that {disk}/leases.db and its folder can be written" in refusal.value.fix


def test_who_writes_beside_the_store_is_told_of(tmp_path: Path) -> None:
    path = tmp_path / "leases.db"
    with FileStore(path) as store, contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        store._sql.execute("PRAGMA busy_timeout = 10").fetchall()
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnusable, match="locked") as refusal:
            store.commit([note("x")], at=T0)
        assert "fuser" in refusal.value.fix
        other.execute("ROLLBACK")
        store.commit([note("x")], at=T0)


def test_a_backup_is_made_while_commits_go_on_and_opens_as_the_same_store(tmp_path: Path) -> None:
    ended = threading.Event()

    def commit(store: FileStore) -> None:
        while not ended.is_set():
            number = store.book.revision
            store.commit([made(f"x{number}", LeaseState.RELEASED), note(BIG)], at=T0)

    with FileStore(tmp_path / "leases.db") as store:
        store.commit([made("1"), of_mark(Kind.GPU, "5", Mark(MarkKind.CLEANING, "", T0))], at=T0)
        worker = threading.Thread(target=commit, args=(store,))
        worker.start()
        try:
            at_least = []
            for number in range(5):
                at_least.append(store.book.revision)
                store.backup(tmp_path / f"copy{number}.db")
        finally:
            ended.set()
            worker.join()
        whole = all_entries(store)
    assert at_least[0] < at_least[-1]
    for number, least in enumerate(at_least):
        with FileStore(tmp_path / f"copy{number}.db") as copy:
            assert least <= copy.book.revision <= len(whole)
            assert copy.book.revision % 2 == 0
            assert copy.book == Book(store.book.store_id).after(whole[: copy.book.revision])
            assert all_entries(copy) == whole[: copy.book.revision]
            copy.commit([made("later")], at=T0)


def test_a_backup_is_one_file_and_overwrites_none(tmp_path: Path) -> None:
    target = tmp_path / "copies" / "copy.db"
    target.parent.mkdir()
    with FileStore(tmp_path / "leases.db") as store:
        store.commit([made("1")], at=T0)
        target.write_text("dear")
        with pytest.raises(FmctlError, match=r"copy.db is there already: a backup overwrites nothing"):
            store.backup(target)
        assert target.read_text() == "dear"
        target.unlink()
        store.backup(target)
        assert [file.name for file in target.parent.iterdir()] == ["copy.db"]
        with pytest.raises(StoreUnusable, match="No such file or directory"):
            store.backup(tmp_path / "none" / "copy.db")
        store.commit([made("2")], at=T0)


def test_what_is_left_of_another_copy_is_not_mixed_with_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "copy.db-wal").write_text("stale")
    with FileStore(tmp_path / "leases.db") as store, pytest.raises(FmctlError, match=r"copy\.db-wal is there already"):
        store.backup(tmp_path / "copy.db")
    assert not (tmp_path / "copy.db").exists()


def test_what_is_no_store_is_not_backed_up(tmp_path: Path) -> None:
    with pytest.raises(StoreUnusable, match=f"{tmp_path}/leases.db cannot be read: unable to open"):
        storefile.backup(tmp_path / "leases.db", tmp_path / "copy.db")
    assert not list(tmp_path.iterdir())


def test_a_text_that_is_no_unicode_is_written_as_far_as_it_is(tmp_path: Path) -> None:
    with FileStore(tmp_path / "leases.db", journal=tmp_path / "audit.jsonl") as store:
        store.commit([Entry(Kind.HOST, "", "x", detail="a\udc80b")], at=T0)
        assert store.entries(0, limit=1)[0].detail == "a?b"


def test_a_time_that_is_none_changes_nothing(tmp_path: Path) -> None:
    with FileStore(tmp_path / "leases.db", journal=tmp_path / "audit.jsonl") as store:
        for wrong in (float("nan"), float("inf")):
            with pytest.raises((ValueError, OverflowError)):
                store.commit([note("x")], at=wrong)
        assert (store.book.revision, all_entries(store)) == (0, ())
        store.commit([note("x")], at=T0)


def test_a_damaged_store_is_not_backed_up(tmp_path: Path) -> None:
    path = tmp_path / "leases.db"
    with FileStore(path) as store:
        store.commit([made("1")], at=T0)
        with contextlib.closing(sqlite3.connect(path)) as other, other:
            other.execute("UPDATE leases SET owner = 'b'")
        with pytest.raises(StoreUnusable, match=f"{path} is damaged"):
            store.backup(tmp_path / "copy.db")
        assert not list(tmp_path.glob("*copy*"))


def test_a_row_that_is_damaged_while_the_store_is_open_is_never_believed(tmp_path: Path) -> None:
    path = tmp_path / "leases.db"
    with FileStore(path) as store:
        store.commit([made("1"), note("x")], at=T0)
        with contextlib.closing(sqlite3.connect(path)) as other, other:
            other.execute("UPDATE leases SET document = replace(document, '[1,2]', '[1,3]')")
            other.execute("UPDATE entries SET what = 'y' WHERE revision = 2")
        for call in (
            lambda: store.lease("1"),
            store.leases,
            lambda: store.by_request("a", "for 1"),
            lambda: store.entries(1, limit=1),
        ):
            with pytest.raises(StoreUnusable, match="is not what was written") as refusal:
                call()
            assert "fmctl store rebuild --from-host" in refusal.value.fix
        assert len(store.entries(0, limit=1)) == 1
        with contextlib.closing(sqlite3.connect(path)) as other, other:
            other.execute("DROP TABLE marks")
        with pytest.raises(StoreUnusable, match="no such table") as refusal:
            store.commit([of_mark(Kind.GPU, "5", Mark(MarkKind.CLEANING, "", T0))], at=T0)
        assert "fmctl store rebuild --from-host" in refusal.value.fix
