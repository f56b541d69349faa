# SPDX-License-Identifier: Apache-2.0
"""What makes an image one that may be booted: the order of the checks, and what each refusal says.

Every side of the port `ImageStore` reads its files in its own way, and is judged here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

from fmctl.core import image
from fmctl.core.errors import FmctlError, ImageRefused
from fmctl.core.image import MANIFEST, SIGNATURE, Image, Manifest
from fmctl.core.signature import Trust

REINSTALL = "remove its folder, and add the image again with `fmctl image add`"


class Files(Protocol):
    """One image's files, as a store has them. A method raises ImageRefused where a file is not fit to be used."""

    def manifest(self) -> bytes:
        """What manifest.json holds."""

    def signature(self) -> bytes | None:
        """What manifest.json.sig holds; None where there is none."""

    def sha256(self, file: str) -> str:
        """The SHA-256 in hex of a file, read now."""


def read(name: str, files: Files, describe: Callable[[Manifest, str], Image]) -> Image:
    """An image as its manifest says it is; `describe` adds what the store knows. Raises ImageRefused."""
    data = files.manifest()
    return describe(_manifest(name, data), image.digest(data))


def vouched(name: str, files: Files, describe: Callable[[Manifest, str], Image], trust: Trust) -> Image:
    """An image after every check; raises ImageRefused.

    The manifest is read once, and its signature checked before anything in it is believed.
    """
    data = files.manifest()
    signer = _signer(name, data, files.signature(), trust)
    manifest = _manifest(name, data)
    for file, wanted in sorted(manifest.files.items()):
        found = files.sha256(file)
        if found != wanted:
            raise image.refused(name, file, f"its SHA-256 is {found}, and the manifest says {wanted}", REINSTALL)
    return dataclasses.replace(describe(manifest, image.digest(data)), signed_by=signer)


def signed(name: str, files: Files, trust: Trust) -> str:
    """The fingerprint of the key that signed the manifest; empty where none did and none need to."""
    return _signer(name, files.manifest(), files.signature(), trust)


def missing(name: str, file: str) -> ImageRefused:
    """The refusal of an image that lacks a file."""
    return image.refused(name, file, "No such file or directory", REINSTALL)


def in_use(name: str, use: str) -> FmctlError:
    """The refusal to remove an image that is used."""
    return FmctlError(f"the image {name} is not removed", why=f"it is the one that is {use}", fix="keep it")


def _signer(name: str, data: bytes, signature: bytes | None, trust: Trust) -> str:
    try:
        return trust.signer(data, signature)
    except ImageRefused as error:
        raise image.refused(name, SIGNATURE, error.why, error.fix) from error


def _manifest(name: str, data: bytes) -> Manifest:
    try:
        return Manifest.from_json(data)
    except ImageRefused as error:
        raise image.refused(name, MANIFEST, error.why, error.fix) from error
