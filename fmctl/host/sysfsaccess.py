# SPDX-License-Identifier: Apache-2.0
"""Accesses to sysfs from which the kernel may never return, made by `host.sysfsjob` in processes of their own.

`host.vfiodev` and `host.firmware` say which. A process that has answered makes the next access, too: to start one takes
a hundred times as long as an access, and GPUs are looked at all the time.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import threading

from fmctl.core.vfio import WriteFailed, WriteOverdue
from fmctl.host import sysfsjob
from fmctl.process import CommandFailed, Helper

_JOB = (sys.executable, "-I", "-S", sysfsjob.__file__)
_FIXES = {
    errno.EACCES: "run as root",
    errno.EPERM: "see /sys/kernel/security/lockdown: a kernel that is locked down lets nobody write there",
}
_idle: list[Helper] = []
_lock = threading.Lock()


def run(path: str, *request: str, timeout: float) -> bytes:
    """Let the job do what is asked, and return what it read; it is abandoned past the deadline.

    Raises WriteFailed or WriteOverdue, which name the path.
    """
    try:
        helper = _taken()
        answer = helper.ask(json.dumps(request).encode() + b"\n", sysfsjob.ANSWER, timeout=timeout)
    except CommandFailed as error:
        raise WriteFailed(f"{path} was not reached", why=str(error)) from error
    if answer is None:
        raise WriteOverdue(f"the kernel does not return from {path}")
    with _lock:
        _idle.append(helper)
    number, content = answer
    if number:
        raise WriteFailed(f"the kernel refused {path}", why=os.strerror(number), fix=_FIXES.get(number, ""))
    return content


def stop() -> None:
    """End the processes that wait for an access; another access starts one."""
    with _lock:
        while _idle:
            _idle.pop().stop()


def _taken() -> Helper:
    """A process that does nothing now; raises CommandFailed."""
    with _lock:
        while _idle:
            helper = _idle.pop()
            if helper.poll() is None:
                return helper
    return Helper(_JOB)
