# SPDX-License-Identifier: Apache-2.0
"""The lock by which one fmctl process at a time changes this host's devices; it ends with the process that has it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from fmctl.core.errors import FmctlError
from fmctl.core.vfio import HostBusy


def queued(path: Path, *, timeout: float = 30.0) -> Callable[[], AbstractContextManager[None]]:
    """The same lock for the threads of one process, which wait for each other, so many seconds at most."""
    turn = threading.Lock()

    @contextlib.contextmanager
    def taken() -> Iterator[None]:
        if not turn.acquire(timeout=timeout):
            raise HostBusy(
                "this process changes the host's devices already",
                why=f"it did not end within {timeout:g} s",
                fix="try again shortly",
            )
        try:
            with locked(path):
                yield
        finally:
            turn.release()

    return taken


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep every other block with this path out, of this process or another; raises HostBusy where one is under way.

    Its folder is made if it is missing, as after a boot before the daemon's first start.
    """
    try:
        path.parent.mkdir(mode=0o750, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise FmctlError(f"{path} cannot be locked", why=error.strerror or str(error), fix="run as root") from error
    with os.fdopen(descriptor):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HostBusy(
                "another fmctl process changes this host's devices",
                why=f"it has {path} locked",
                fix=f"wait for it, or see `fuser {path}`",
            ) from None
        yield
