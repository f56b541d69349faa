# SPDX-License-Identifier: Apache-2.0
"""File trees in memory and as reproducible archives: sorted, owned by root, of one date."""

from __future__ import annotations

import io
import shutil
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_MERGED = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")
"""Folders of the root that are links into /usr."""


@dataclass(frozen=True)
class Entry:
    """One file, link or folder. `content` is None for a folder."""

    mode: int
    content: bytes | Path | None = None
    link: str = ""


class Tree(dict[str, Entry]):
    """Entries by their path, without a leading slash; a later one replaces an earlier one."""

    def file(self, path: str, content: bytes | Path, mode: int = 0o644) -> None:
        """Add a file, and the folders that it is in."""
        self._folders(path)
        self[path] = Entry(mode, content)

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link, and the folders that it is in."""
        self._folders(path)
        self[path] = Entry(0o777, link=target)

    def folder(self, path: str, mode: int = 0o755) -> None:
        """Add a folder, and those that it is in."""
        self._folders(path)
        self[path] = Entry(mode)

    def overlay(self, source: Path) -> list[str]:
        """Add all that a folder holds, and return the paths of its files and links."""
        added = []
        for path in sorted(source.rglob("*")):
            where = merged(path.relative_to(source).as_posix())
            mode = stat.S_IMODE(path.lstat().st_mode)
            if path.is_symlink() and path.parent == source and path.name in _MERGED:
                continue
            if path.is_symlink():
                self.symlink(where, str(path.readlink()))
            elif path.is_dir():
                if where not in self:
                    self.folder(where)
                continue
            else:
                self.file(where, path, 0o755 if mode & 0o100 else 0o644)
            added.append(where)
        return added

    def _folders(self, path: str) -> None:
        for parent in Path(path).parents:
            if (name := parent.as_posix()) != ".":
                self.setdefault(name, Entry(0o755))

    def write_tar(self, target: Path, epoch: int) -> None:
        """Write it as a tar archive."""
        with tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as archive:
            for path in sorted(self):
                info, content = _member(path, self[path], epoch)
                with content:
                    archive.addfile(info, content)

    def write_cpio(self, target: Path, epoch: int) -> None:
        """Write it as the kernel's initial RAM disk."""
        with target.open("wb") as out:
            for number, path in enumerate(sorted(self), start=1):
                info, content = _member(path, self[path], epoch)
                with content:
                    data = info.linkname.encode() if info.issym() else content.read()
                    _cpio_entry(out, path, info, number, data)
            _cpio_entry(out, "TRAILER!!!", tarfile.TarInfo(), 0, b"")


def merged(path: str) -> str:
    """Where a path of the root lies, now that /bin, /lib and /sbin are links into /usr."""
    return f"usr/{path}" if path.split("/")[0] in _MERGED else path


def _member(path: str, entry: Entry, epoch: int) -> tuple[tarfile.TarInfo, IO[bytes]]:
    info = tarfile.TarInfo(path)
    info.mode, info.mtime, info.linkname = entry.mode, epoch, entry.link
    if entry.link:
        info.type = tarfile.SYMTYPE
    elif entry.content is None:
        info.type = tarfile.DIRTYPE
    elif isinstance(entry.content, Path):
        info.size = entry.content.stat().st_size
        return info, entry.content.open("rb")
    else:
        info.size = len(entry.content)
        return info, io.BytesIO(entry.content)
    return info, io.BytesIO()


_CPIO_TYPES = {tarfile.SYMTYPE: stat.S_IFLNK, tarfile.DIRTYPE: stat.S_IFDIR, tarfile.REGTYPE: stat.S_IFREG}


def _cpio_entry(out: IO[bytes], path: str, info: tarfile.TarInfo, number: int, data: bytes) -> None:
    name = path.encode() + b"\0"
    mode = _CPIO_TYPES[info.type] | info.mode
    fields = (number, mode, 0, 0, 1, int(info.mtime), len(data), 0, 0, 0, 0, len(name), 0)
    out.write(b"070701" + b"".join(b"%08X" % field for field in fields) + name)
    out.write(bytes(-(110 + len(name)) % 4) + data + bytes(-len(data) % 4))


def filtered(source: Path, epoch: int) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    """The members of an archive in the order of their paths: owned by root, of one date, with no links of hard kind.

    Devices and sockets are left out.
    """
    with tarfile.open(source) as archive:
        members = {normal(member.name): member for member in archive}
        for path in sorted(members):
            member = members[path]
            if not (member.isfile() or member.isdir() or member.issym() or member.islnk()):
                continue
            content = archive.extractfile(member) if member.isfile() or member.islnk() else None
            info = tarfile.TarInfo(path)
            kept = members[normal(member.linkname)] if member.islnk() else member
            info.mode, info.type, info.mtime = kept.mode & 0o1777, kept.type, epoch
            info.linkname, info.size = (kept.linkname if kept.issym() else ""), kept.size
            yield info, content


def normal(name: str) -> str:
    """A member's path without the leading ./"""
    return name.removeprefix("./").strip("/") or "."


def save(content: IO[bytes], target: Path) -> None:
    """Write a member's content to a file."""
    with target.open("wb") as out:
        shutil.copyfileobj(content, out)
