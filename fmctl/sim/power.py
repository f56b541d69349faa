# SPDX-License-Identifier: Apache-2.0
"""What ends the programs of a pretended Service VM with it, whoever started them: a named pipe.

In a real Service VM they outlive the agent and end with the VM. Here a pipe takes the VM's place: who pretends it holds
the pipe open, and each program watches its other end, so that they end also where their VM is killed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from fmctl.core.errors import FmctlError

OFF_TIMEOUT = 10.0
"""Seconds that the programs have to end."""


@contextlib.contextmanager
def supply(path: Path) -> Iterator[None]:
    """Let programs that `draw` at this path run for as long as the block, and wait for their end."""
    os.mkfifo(path, 0o600)
    descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        yield
    finally:
        os.close(descriptor)
        deadline = time.monotonic() + OFF_TIMEOUT
        while _is_drawn(path) and time.monotonic() < deadline:
            time.sleep(0.02)
        path.unlink(missing_ok=True)


def _is_drawn(path: Path) -> bool:
    """Whether a program still watches the pipe; a look is an end to it once more."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    except OSError as error:
        if error.errno not in (errno.ENXIO, errno.ENOENT):
            raise
        return False
    return True


def draw(path: Path) -> None:
    """End this process, as by SIGTERM, once nobody supplies the pipe; raises FmctlError where nobody does now."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise _off(path, error.strerror or str(error)) from error
    with contextlib.suppress(BlockingIOError):
        os.read(descriptor, 1)
        os.close(descriptor)
        raise _off(path, "nobody holds it open")

    def watch() -> None:
        poller = select.poll()
        poller.register(descriptor, 0)
        poller.poll()
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(OFF_TIMEOUT / 2)
        os._exit(1)

    threading.Thread(target=watch, name="power", daemon=True).start()


def _off(path: Path, why: str) -> FmctlError:
    return FmctlError(f"{path} does not say that the pretended Service VM runs", why=why, fix="start it again")
