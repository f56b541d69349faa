# SPDX-License-Identifier: Apache-2.0
"""Service VM images below one folder: the port `ImageStore`.

Each image is a folder of its own name, and which is in use is a symbolic link, so that a change of it is one rename.
What is under way lies in folders whose names begin with a dot. `host.imagefiles` judges one image.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fmctl.core import image, vouching
from fmctl.core.errors import FmctlError, ImageRefused
from fmctl.core.image import AGENT, MANIFEST, SIGNATURE, Image
from fmctl.core.signature import Trust
from fmctl.host import keyfiles
from fmctl.host.imagefiles import ImageFolder, own

_MODE = 0o644
_FOLDER_MODE = 0o755
_UNDER_WAY = ".adding-"


@dataclass(frozen=True)
class Added:
    """An image that is in the store now, and whether it already was."""

    image: Image
    already: bool


class FolderImages:
    """The images below `root`. Files that the owners alone cannot write are refused, whoever signed them."""

    def __init__(self, root: Path, trust: Trust, *, owners: frozenset[int] | None = None) -> None:
        """Keep images below `root`; owners are root and this process's user, unless told otherwise."""
        self._root = root
        self._trust = trust
        self._owners = own() if owners is None else owners

    def names(self) -> tuple[str, ...]:
        """Every image's name, in order; nothing is read of them."""
        with _reading(self._root):
            return tuple(sorted(entry.name for entry in self._entries() if image.is_name(entry.name)))

    def read(self, name: str) -> Image:
        """An image as its manifest says it is, without any check of the files; raises NoSuchImage or ImageRefused."""
        return ImageFolder(self._folder(name), name, owners=None).read()

    def vouched(self, name: str) -> Image:
        """An image after every check, made anew; raises NoSuchImage or ImageRefused."""
        return ImageFolder(self._folder(name), name, owners=self._owners).vouched(self._trust)

    def agent(self, name: str) -> bytes:
        """The archive of an image's agent; raises NoSuchImage or ImageRefused."""
        files = ImageFolder(self._folder(name), name, owners=self._owners)
        wanted = files.vouched(self._trust).manifest.files[AGENT]
        with _reading(self._folder(name)), files.open(AGENT) as file:
            archive = file.read()
        if hashlib.sha256(archive).hexdigest() != wanted:
            raise ImageRefused(f"the image {name} is refused", why=f"{AGENT} was changed while it was read")
        return archive

    def current(self) -> str | None:
        """The name of the image in use; None where none was chosen."""
        return self._target("current")

    def choose(self, name: str) -> None:
        """Make an image the one in use: at once, and for good once this returns; raises NoSuchImage."""
        self._folder(name)
        self._point("current", name)

    def trial(self) -> str | None:
        """The name of the image that is tried; None where none is."""
        return self._target("trial")

    def set_trial(self, name: str | None) -> None:
        """Note which image is tried, or that none is, as lastingly as `choose`; raises NoSuchImage."""
        if name is not None:
            self._folder(name)
            self._point("trial", name)
            return
        with _writing(self._root / "trial"), self._locked():
            (self._root / "trial").unlink(missing_ok=True)
            _sync(self._root)

    def remove(self, name: str) -> None:
        """Remove an image; raises NoSuchImage, and FmctlError for the one in use and the one that is tried."""
        folder = self._folder(name)
        gone = self._root / f"{_UNDER_WAY}{name}.removed"
        with _writing(folder), self._locked():
            self._refuse_in_use(name)
            shutil.rmtree(gone, ignore_errors=True)
            folder.rename(gone)
            _sync(self._root)
        with _writing(gone):
            shutil.rmtree(gone)

    def add(self, source: Path, name: str) -> Added:
        """Copy a folder into the store as an image, if the copy stands every check; raises ImageRefused.

        It is there whole, and on the disk, or not at all. Where an image of that name is there already, it must be
        the same one, and takes over the new signature.
        """
        image.checked_name(name)
        looked = ImageFolder(source, name, owners=None)
        found = looked.read()
        looked.signed(self._trust)
        if name in self.names():
            return Added(self._same(name, looked, found), already=True)
        with self._new_folder() as folder:
            _copy(looked, found, folder)
            ImageFolder(folder, name, owners=self._owners).vouched(self._trust)
            self._publish(folder, name)
        return Added(self.vouched(name), already=False)

    def added(self, name: str) -> float:
        """When an image came into the store, by its manifest's time; raises NoSuchImage."""
        manifest = self._folder(name) / MANIFEST
        with _reading(manifest):
            return manifest.lstat().st_mtime

    def _same(self, name: str, new: ImageFolder, wanted: Image) -> Image:
        """The image that is there, which must be the same; a signature by another key takes the place of its own."""
        there = self.read(name)
        if there.digest != wanted.digest:
            raise FmctlError(
                f"there is another image {name}",
                why=f"its manifest's SHA-256 is {there.digest}, and that of the new one {wanted.digest}",
                fix="give the new one another name with --name",
            )
        fresh, folder = new.signature(), self._folder(name)
        if fresh is not None and fresh != ImageFolder(folder, name, owners=None).signature():
            with _writing(folder):
                keyfiles.write_signature(folder, fresh)
                _sync(folder)
        return self.vouched(name)

    def _publish(self, folder: Path, name: str) -> None:
        with _writing(self._root / name), self._locked():
            folder.chmod(_FOLDER_MODE)
            _sync(folder)
            folder.rename(self._root / name)
            _sync(self._root)

    @contextlib.contextmanager
    def _new_folder(self) -> Iterator[Path]:
        """A folder under way, which is locked while its process lives; those that others left behind go."""
        with _writing(self._root):
            self._root.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
            with self._locked():
                self._clear()
                folder = Path(tempfile.mkdtemp(prefix=_UNDER_WAY, dir=self._root))
                descriptor = _locked_folder(folder)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)

    def _clear(self) -> None:
        for folder in self._root.glob(f"{_UNDER_WAY}*"):
            with contextlib.suppress(OSError):
                descriptor = _locked_folder(folder)
                shutil.rmtree(folder)
                os.close(descriptor)

    def _entries(self) -> list[os.DirEntry[str]]:
        if not self._root.exists():
            return []
        with os.scandir(self._root) as entries:
            return [entry for entry in entries if entry.is_dir(follow_symlinks=False)]

    def _folder(self, name: str) -> Path:
        known = self.names()
        if name not in known:
            raise image.unknown(name, known)
        return self._root / name

    def _target(self, link: str) -> str | None:
        path = self._root / link
        if not os.path.lexists(path):
            return None
        with _reading(path):
            target = str(path.readlink())
        if not image.is_name(target):
            raise image.refused(link, str(path), f"it leads to {target!r}, which is no image of the store", _CHOOSE)
        return target

    def _point(self, link: str, name: str) -> None:
        """Let a link lead to an image, by one rename, so that it leads to the old or the new one after any crash."""
        temporary = self._root / f".{link}.new"
        with _writing(self._root / link), self._locked():
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(name)
            temporary.replace(self._root / link)
            _sync(self._root)

    def _refuse_in_use(self, name: str) -> None:
        for link, use in (("current", "in use"), ("trial", "tried")):
            if self._target(link) == name:
                raise vouching.in_use(name, use)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other changes of the store's names out; each takes an instant."""
        descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


_CHOOSE = "choose an image again with `fmctl service-vm upgrade`"


def _copy(source: ImageFolder, found: Image, folder: Path) -> None:
    """Copy what the manifest names, the manifest and its signature; nothing else that lies there."""
    signature = [SIGNATURE] if source.signature() is not None else []
    for file in (*found.manifest.files, MANIFEST, *signature):
        with _writing(folder / file), source.open(file) as old, (folder / file).open("xb") as new:
            shutil.copyfileobj(old, new, 1 << 20)
            new.flush()
            os.fchmod(new.fileno(), _MODE)
            os.fsync(new.fileno())


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _failed(path, "read", error) from error


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _failed(path, "written", error) from error


def _locked_folder(folder: Path) -> int:
    """A descriptor that holds the folder locked; raises OSError where another process does."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _failed(path: Path, verb: str, error: OSError) -> FmctlError:
    return FmctlError(
        f"{path} cannot be {verb}", why=error.strerror or str(error), fix="run this as root, or mend its folder"
    )
