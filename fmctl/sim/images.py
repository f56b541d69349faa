# SPDX-License-Identifier: Apache-2.0
"""Service VM images in memory: the port `ImageStore`, with faults; signatures and hashes are real."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import PurePosixPath

from fmctl.core import image, vouching
from fmctl.core.image import AGENT, MANIFEST, SIGNATURE, Image, Manifest
from fmctl.core.signature import Trust

FOLDER = PurePosixPath("/simulated/images")


class MemoryImages:
    """Images that end with the process; a test puts them in, and tampers with them."""

    def __init__(self, trust: Trust) -> None:
        self._trust = trust
        self._images: dict[str, dict[str, bytes]] = {}
        self._added: dict[str, float] = {}
        self._current: str | None = None
        self._trial: str | None = None

    def put(self, name: str, files: Mapping[str, bytes]) -> None:
        """Put an image in the store, in place of any other of that name: every file, the manifest's too."""
        self._images[image.checked_name(name)] = dict(files)
        self._added[name] = max(self._added.values(), default=0.0) + 1

    def tamper(self, name: str, file: str, data: bytes | None = None) -> None:
        """Change one file of an image: to `data`, or by one byte at its end."""
        files = self._files(name)
        files[file] = files.get(file, b"") + b"!" if data is None else data

    def lose(self, name: str, file: str) -> None:
        """Take one file from an image."""
        del self._files(name)[file]

    def names(self) -> tuple[str, ...]:
        """Every image's name, in order."""
        return tuple(sorted(self._images))

    def read(self, name: str) -> Image:
        """An image as its manifest says it is; raises NoSuchImage or ImageRefused."""
        files = _Files(name, self._files(name))
        return vouching.read(name, files, files.describe)

    def vouched(self, name: str) -> Image:
        """An image after every check; raises NoSuchImage or ImageRefused."""
        files = _Files(name, self._files(name))
        return vouching.vouched(name, files, files.describe, self._trust)

    def agent(self, name: str) -> bytes:
        """The archive of an image's agent; raises NoSuchImage or ImageRefused."""
        self.vouched(name)
        return self._files(name)[AGENT]

    def added(self, name: str) -> float:
        """When an image came into the store, counted from the first; raises NoSuchImage."""
        self._files(name)
        return self._added[name]

    def current(self) -> str | None:
        """The name of the image in use; None where none was chosen."""
        return self._current

    def choose(self, name: str) -> None:
        """Make an image the one in use; raises NoSuchImage."""
        self._files(name)
        self._current = name

    def trial(self) -> str | None:
        """The name of the image that is tried; None where none is."""
        return self._trial

    def set_trial(self, name: str | None) -> None:
        """Note which image is tried, or that none is; raises NoSuchImage."""
        if name is not None:
            self._files(name)
        self._trial = name

    def remove(self, name: str) -> None:
        """Remove an image; raises NoSuchImage, and FmctlError for the one in use and the one that is tried."""
        self._files(name)
        for kept, use in ((self._current, "in use"), (self._trial, "tried")):
            if kept == name:
                raise vouching.in_use(name, use)
        del self._images[name]

    def _files(self, name: str) -> dict[str, bytes]:
        if name not in self._images:
            raise image.unknown(name, self.names())
        return self._images[name]


class _Files:
    def __init__(self, name: str, files: Mapping[str, bytes]) -> None:
        self._name = name
        self._files = files

    def manifest(self) -> bytes:
        return self._file(MANIFEST)

    def signature(self) -> bytes | None:
        return self._files.get(SIGNATURE)

    def sha256(self, file: str) -> str:
        return hashlib.sha256(self._file(file)).hexdigest()

    def describe(self, manifest: Manifest, digest: str) -> Image:
        size = sum(len(self._files.get(file, b"")) for file in manifest.files)
        extra = sorted(self._files.keys() - {*manifest.files, MANIFEST, SIGNATURE})
        return Image(self._name, FOLDER / self._name, manifest, digest, size, tuple(extra))

    def _file(self, file: str) -> bytes:
        try:
            return self._files[file]
        except KeyError:
            raise vouching.missing(self._name, file) from None
