# SPDX-License-Identifier: Apache-2.0
"""Keys and signatures as files. `core.signature` makes and checks what stands in them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fmctl.core.errors import FmctlError, ImageRefused, InvalidDocument
from fmctl.core.image import SIGNATURE
from fmctl.core.signature import KeyPair, PublicKey
from fmctl.host.imagefiles import unsafe

_LONGEST = 64 << 10


def pinned(paths: Sequence[Path], *, owners: frozenset[int]) -> tuple[PublicKey, ...]:
    """The public keys of those files that exist; raises ImageRefused for one that others than the owners can write."""
    return tuple(_public(path, owners) for path in paths if os.path.lexists(path))


def named(paths: Sequence[Path]) -> tuple[PublicKey, ...]:
    """The public keys of files that somebody named just now, whoever owns them; raises ImageRefused."""
    return tuple(_public(path, None) for path in paths)


def private(path: Path) -> bytes:
    """What a private key's file holds; raises InvalidDocument."""
    try:
        with path.open("rb") as stream:
            return stream.read(_LONGEST)
    except OSError as error:
        raise InvalidDocument(f"{path} cannot be read", why=_reason(error), fix="name a key's file") from error


def write(path: Path, pair: KeyPair) -> Path:
    """Write a new private key, for its owner alone, and its public half beside it; returns the latter's path.

    Raises FmctlError, and writes nothing, where either is there already.
    """
    public = path.with_name(f"{path.name}.pub")
    for file in (path, public):
        if os.path.lexists(file):
            raise FmctlError(f"{file} is there already", why="a key is never overwritten", fix="name another file")
    _create(path, pair.private, 0o600)
    _create(public, pair.public, 0o644)
    return public


def write_signature(folder: Path, signature: bytes) -> Path:
    """Put a signature beside the manifest that it is of, in place of any other; raises FmctlError."""
    path, temporary = folder / SIGNATURE, folder / f".{SIGNATURE}.new"
    try:
        temporary.unlink(missing_ok=True)
        _create(temporary, signature, 0o644)
        temporary.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    return path


def _public(path: Path, owners: frozenset[int] | None) -> PublicKey:
    try:
        with path.open("rb") as stream:
            fault = unsafe(os.fstat(stream.fileno()), owners)
            pem = stream.read(_LONGEST)
    except OSError as error:
        fault, pem = _reason(error), b""
    if fault:
        raise ImageRefused(
            f"the public key {path} is refused",
            why=f"{path}: {fault}",
            fix="make it a file of root's that nobody else can write, and compare its fingerprint with the signer's",
        )
    return PublicKey(str(path), pem)


def _create(path: Path, data: bytes, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as stream:
            os.fchmod(descriptor, mode)
            stream.write(data)
            stream.flush()
            os.fsync(descriptor)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> FmctlError:
    return FmctlError(f"{path} cannot be written", why=_reason(error), fix="mend its folder")


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
