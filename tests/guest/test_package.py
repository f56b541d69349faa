# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from fmctl.core.errors import BadRequest
from fmctl.guest import archive as archives
from fmctl.guest.package import Package

CURRENT = "c" * 64
MAIN = {"fmctl/__main__.py": "print()\n", "fmctl/guest/x.py": ""}


def packed(files: dict[str, str] = MAIN, change: Callable[[tarfile.TarFile], None] = lambda tar: None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            member.mode = 0o4777
            tar.addfile(member, io.BytesIO(text.encode()))
        change(tar)
    return buffer.getvalue()


def digest(archive: bytes) -> str:
    return hashlib.sha256(archive).hexdigest()


@pytest.fixture
def where(tmp_path: Path) -> Path:
    """The folder as it is once the agent of the image runs."""
    where = tmp_path / "agent"
    (where / CURRENT / "fmctl").mkdir(parents=True)
    (where / "current").write_text(f"{CURRENT}\n")
    return where


def test_an_archive_is_unpacked_and_named_for_a_trial(where: Path) -> None:
    archive = packed()
    Package(where, CURRENT).put(archive, digest(archive))
    assert (where / "trial").read_text().strip() == digest(archive)
    assert (where / "current").read_text().strip() == CURRENT
    main = where / digest(archive) / "fmctl" / "__main__.py"
    assert (main.read_text(), main.stat().st_mode & 0o7777) == ("print()\n", 0o644)
    assert sorted(path.name for path in where.iterdir()) == sorted([CURRENT, digest(archive), "current", "trial"])


def test_a_compiled_archive_is_as_good(where: Path) -> None:
    archive = packed({"fmctl/__main__.pyc": "compiled"})
    Package(where, CURRENT).put(archive, digest(archive))
    assert (where / "trial").exists()


def test_padding_after_the_archive_is_no_harm(where: Path) -> None:
    archive = packed() + bytes(512)
    Package(where, CURRENT).put(archive, digest(archive))
    assert (where / "trial").exists()


def test_a_trial_is_over_once_it_is_confirmed(where: Path) -> None:
    archive = packed()
    Package(where, CURRENT).put(archive, digest(archive))
    told: list[str] = []
    tried = Package(where, digest(archive), lambda: told.append("ready"))
    assert tried.on_trial
    tried.confirm()
    tried.confirm()
    assert (where / "current").read_text().strip() == digest(archive)
    assert not (where / "trial").exists()
    assert not Package(where, digest(archive)).on_trial
    assert told == ["ready"]


def test_one_that_is_not_on_trial_confirms_nothing(where: Path) -> None:
    archive = packed()
    running = Package(where, CURRENT)
    running.put(archive, digest(archive))
    running.confirm()
    assert (where / "trial").read_text().strip() == digest(archive)
    assert (where / "current").read_text().strip() == CURRENT


def test_one_that_was_installed_otherwise_is_never_on_trial(where: Path) -> None:
    (where / "trial").write_text("\n")
    assert not Package(where, "").on_trial


def test_the_current_archive_is_not_tried_against_itself(where: Path) -> None:
    """Else a trial that fails would take the folder of the one to go back to."""
    archive = packed()
    (where / "current").write_text(digest(archive))
    (where / digest(archive)).mkdir()
    Package(where, digest(archive)).put(archive, digest(archive))
    assert not (where / "trial").exists()
    assert (where / digest(archive)).is_dir()


def test_the_archive_on_trial_sent_again_is_confirmed_by_that(where: Path) -> None:
    archive = packed()
    Package(where, CURRENT).put(archive, digest(archive))
    Package(where, digest(archive)).put(archive, digest(archive))
    assert (where / "current").read_text().strip() == digest(archive)
    assert not (where / "trial").exists()


def test_a_second_trial_begins_anew(where: Path) -> None:
    archive = packed()
    running = Package(where, CURRENT)
    running.put(archive, digest(archive))
    (where / digest(archive) / ".started").touch()
    running.put(archive, digest(archive))
    assert not (where / digest(archive) / ".started").exists()


def test_folders_that_no_start_takes_are_removed(where: Path) -> None:
    first, second = packed(), packed({**MAIN, "fmctl/y.py": ""})
    running = Package(where, CURRENT)
    running.put(first, digest(first))
    running.put(second, digest(second))
    folders = {path.name for path in where.iterdir() if path.is_dir()}
    assert folders == {CURRENT, digest(second)}


def link(tar: tarfile.TarFile) -> None:
    member = tarfile.TarInfo("fmctl/link")
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/shadow"
    tar.addfile(member)


def hard_link(tar: tarfile.TarFile) -> None:
    member = tarfile.TarInfo("fmctl/link")
    member.type, member.linkname = tarfile.LNKTYPE, "fmctl/__main__.py"
    tar.addfile(member)


def device(tar: tarfile.TarFile) -> None:
    member = tarfile.TarInfo("fmctl/null")
    member.type, member.devmajor, member.devminor = tarfile.CHRTYPE, 1, 3
    tar.addfile(member)


@pytest.mark.parametrize(
    ("archive", "why"),
    [
        (packed({**MAIN, "/etc/passwd": ""}), "'/etc/passwd' lies outside"),
        (packed({**MAIN, "fmctl/../../x": ""}), "'fmctl/../../x' lies outside"),
        (packed({**MAIN, "other/x.py": ""}), "'other/x.py' lies outside fmctl/"),
        (packed({**MAIN, ".started": ""}), "'.started' lies outside fmctl/"),
        (packed(change=link), "'fmctl/link' is neither a file nor a folder"),
        (packed(change=hard_link), "'fmctl/link' is neither a file nor a folder"),
        (packed(change=device), "'fmctl/null' is neither a file nor a folder"),
        (packed({"fmctl/x.py": ""}), "it has no fmctl/__main__.py"),
        (b"no tar at all" * 100, "it is no tar"),
        (b"", "it is no tar"),
        (packed()[:700], "it is no tar"),
    ],
)
def test_what_is_no_agent_is_refused_and_leaves_nothing(where: Path, archive: bytes, why: str) -> None:
    before = sorted(where.rglob("*"))
    with pytest.raises(BadRequest) as refusal:
        Package(where, CURRENT).put(archive, digest(archive))
    assert why in refusal.value.why
    assert sorted(where.rglob("*")) == before


@pytest.mark.parametrize("wrong", ["", "0" * 64, "../../etc", "A" * 64])
def test_another_digest_is_refused(where: Path, wrong: str) -> None:
    with pytest.raises(BadRequest, match="its SHA-256 is"):
        Package(where, CURRENT).put(packed(), wrong)
    assert not (where / "trial").exists()


def test_a_compressed_archive_is_refused(where: Path) -> None:
    import gzip

    archive = gzip.compress(packed())
    with pytest.raises(BadRequest, match="it is no tar"):
        Package(where, CURRENT).put(archive, digest(archive))


def test_one_that_would_fill_the_memory_is_refused(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_UNPACKED", 1000)
    archive = packed({**MAIN, "fmctl/big": "x" * 1001})
    with pytest.raises(BadRequest, match="it is larger"):
        Package(where, CURRENT).put(archive, digest(archive))
