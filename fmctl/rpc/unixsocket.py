# SPDX-License-Identifier: Apache-2.0
"""The place of a unix socket that one group may call: its folder, its lock, its mode.

gRPC removes whatever socket lies at a path that it binds, also that of a live server. So the path is guarded by a lock
that ends with the process that took it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from pathlib import Path

from fmctl.core.errors import BadRequest, FmctlError

FOLDER_MODE = 0o750
SOCKET_MODE = 0o660


class SocketPlace:
    """A path that this process alone serves at, from `take` to `release`."""

    def __init__(self, path: Path, group: str = "") -> None:
        """`group` is a name; empty for the group of the process."""
        self._path = path
        self._group = group
        self._lock = -1

    def take(self) -> None:
        """Make the folder if it is missing, and lock the path; raises FmctlError."""
        try:
            self._make_folder()
            self._lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._close()
            raise FmctlError(
                f"{self._path} is in use", why="another process serves there", fix="stop it, or listen elsewhere"
            ) from None
        except OSError as error:
            self._close()
            raise FmctlError(
                f"{self._path} cannot be served at",
                why=f"{error.filename or ''}: {error.strerror}",
                fix="run as the user that owns the folder, or listen elsewhere",
            ) from error
        if self._path.exists() and not stat.S_ISSOCK(self._path.stat().st_mode):
            self._close()
            raise FmctlError(f"{self._path} is in use", why="it is no socket", fix="remove it, or listen elsewhere")

    def open_to_group(self) -> None:
        """Let the group call; to be done once the socket is bound."""
        try:
            self._path.chmod(SOCKET_MODE)
            self._give(self._path)
        except OSError as error:
            raise FmctlError(
                f"{self._path} cannot be opened to its group",
                why=error.strerror or str(error),
                fix="run as root or as a member of that group",
            ) from error

    def release(self) -> None:
        """Remove the socket and give the path free."""
        if self._lock >= 0:
            self._path.unlink(missing_ok=True)
            self._close()

    def _make_folder(self) -> None:
        folder = self._path.parent
        if not folder.exists():
            folder.mkdir(mode=FOLDER_MODE, parents=True)
            folder.chmod(FOLDER_MODE)
            self._give(folder)

    def _give(self, path: Path) -> None:
        if not self._group:
            return
        try:
            shutil.chown(path, group=self._group)
        except LookupError as error:
            raise BadRequest(
                f"there is no group {self._group!r}",
                why="socket_group names it",
                fix="create it, or name another",
            ) from error

    def _close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
