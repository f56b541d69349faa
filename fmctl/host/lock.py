# SPDX-License-Identifier: Apache-2.0
"""The lock by which one fmctl process at a time changes this host's devices; it ends with the process that has it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from fmctl.core.errors import FmctlError
from fmctl.core.vfio import HostBusy


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
