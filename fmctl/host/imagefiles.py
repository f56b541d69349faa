# SPDX-License-Identifier: Apache-2.0
"""One image's folder, whose files are believed only where nobody else can write them.

`core.vouching` says what must be true of them, `host.images` keeps many such folders.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from fmctl.core import image, vouching
from fmctl.core.errors import ImageRefused
from fmctl.core.image import MANIFEST, SIGNATURE, Image, Manifest
from fmctl.core.signature import Trust

_CHUNK = 1 << 20
_LONGEST = 4 << 20
"""Bytes of the longest manifest, signature or key that is read."""
_TAMPERED = "find out who changed it, then remove the image's folder and add the image again with `fmctl image add`"


def own() -> frozenset[int]:
    """The users whose files this process believes: root and its own."""
    return frozenset({0, os.geteuid()})


def qemu_users() -> frozenset[int]:
    """The users that libvirt may run QEMU as, and to whom it gives every file that it lets QEMU open.

    It gives a kernel back when the VM ends, and a read-only disk never, so a file of an image that was booted once may
    be theirs. The folder and the manifest never are, so what is theirs cannot be put in another's place, and what they
    changed in it shows in its hash.
    """
    return frozenset(_uids(("libvirt-qemu", "qemu")))


def _uids(users: Iterable[str]) -> Iterable[int]:
    for user in users:
        try:
            yield pwd.getpwnam(user).pw_uid
        except KeyError:
            continue


class ImageFolder:
    """The files of one image, each opened once and judged by what was opened.

    With `owners`, every file and the folder must belong to one of them, or a file that is booted to QEMU's user, and
    be writable by nobody else; None asks nothing, for a folder that is only looked at, or copied and judged as a copy.
    """

    def __init__(self, folder: Path, name: str, *, owners: frozenset[int] | None) -> None:
        self._folder = folder
        self._name = name
        self._owners = owners

    def read(self) -> Image:
        """The image as its manifest says it is; raises ImageRefused."""
        return vouching.read(self._name, self, self._describe)

    def vouched(self, trust: Trust) -> Image:
        """The image after every check; raises ImageRefused."""
        if self._owners is not None:
            for folder in (self._folder.parent, self._folder):
                self._check_folder(folder)
        return vouching.vouched(self._name, self, self._describe, trust)

    def signed(self, trust: Trust) -> str:
        """The fingerprint of the key that signed it, without any check of the files; raises ImageRefused."""
        return vouching.signed(self._name, self, trust)

    def manifest(self) -> bytes:
        """What manifest.json holds; raises ImageRefused."""
        return self._short(MANIFEST)

    def signature(self) -> bytes | None:
        """What manifest.json.sig holds; None where there is none. Raises ImageRefused."""
        return self._short(SIGNATURE) if os.path.lexists(self._folder / SIGNATURE) else None

    def sha256(self, file: str) -> str:
        """The SHA-256 in hex of a file, read now; raises ImageRefused."""
        found = hashlib.sha256()
        try:
            with self.open(file) as stream:
                while chunk := stream.read(_CHUNK):
                    found.update(chunk)
        except OSError as error:
            raise self._unreadable(file, error) from error
        return found.hexdigest()

    def open(self, file: str) -> BinaryIO:
        """A regular file of the folder, for reading; raises ImageRefused."""
        try:
            descriptor = os.open(self._folder / file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise self._unreadable(file, error) from error
        try:
            self._check(file, os.fstat(descriptor))
        except ImageRefused:
            os.close(descriptor)
            raise
        return os.fdopen(descriptor, "rb")

    def _short(self, file: str) -> bytes:
        try:
            with self.open(file) as stream:
                data = stream.read(_LONGEST + 1)
        except OSError as error:
            raise self._unreadable(file, error) from error
        if len(data) > _LONGEST:
            raise image.refused(self._name, file, f"it has more than {_LONGEST} bytes", vouching.REINSTALL)
        return data

    def _check(self, file: str, found: os.stat_result) -> None:
        if not stat.S_ISREG(found.st_mode):
            raise image.refused(self._name, file, "it is no regular file", _TAMPERED)
        lent = qemu_users() if file in image.FILES else frozenset()
        fault = unsafe(found, self._owners and self._owners | lent)
        if fault:
            raise image.refused(self._name, file, fault, _TAMPERED)

    def _check_folder(self, folder: Path) -> None:
        try:
            found = folder.lstat()
        except OSError as error:
            raise self._unreadable(str(folder), error) from error
        fault = unsafe(found, self._owners) if stat.S_ISDIR(found.st_mode) else "it is no folder"
        if fault:
            raise image.refused(self._name, str(folder), fault, _TAMPERED)

    def _describe(self, manifest: Manifest, digest: str) -> Image:
        known = {*manifest.files, MANIFEST, SIGNATURE}
        try:
            sizes = {entry.name: entry.stat(follow_symlinks=False).st_size for entry in os.scandir(self._folder)}
        except OSError as error:
            raise self._unreadable(str(self._folder), error) from error
        return Image(
            self._name,
            PurePosixPath(self._folder),
            manifest,
            digest,
            size=sum(sizes.get(file, 0) for file in manifest.files),
            extra=tuple(sorted(sizes.keys() - known)),
        )

    def _unreadable(self, file: str, error: OSError) -> ImageRefused:
        linked = (self._folder / file).is_symlink()
        why = "it is a symbolic link, which may lead anywhere" if linked else error.strerror or str(error)
        return image.refused(self._name, file, why, vouching.REINSTALL)


def unsafe(found: os.stat_result, owners: frozenset[int] | None) -> str:
    """Why others than the owners can change a file; empty where they cannot, or nobody asks."""
    if owners is None:
        return ""
    if found.st_uid not in owners:
        return f"it belongs to user {found.st_uid}, who is neither root nor the user that fmctl runs as"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others than its owner may write it (its mode is {stat.S_IMODE(found.st_mode):04o})"
    return ""
