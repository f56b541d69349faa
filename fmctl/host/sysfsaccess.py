# SPDX-License-Identifier: Apache-2.0
"""Accesses to sysfs from which the kernel may never return, each by `host.sysfsjob` in a process of its own.

`host.vfiodev` and `host.firmware` say which.
"""

from __future__ import annotations

import errno
import os
import sys

from fmctl import process
from fmctl.core.vfio import WriteFailed, WriteOverdue
from fmctl.host import sysfsjob

_JOB = (sys.executable, "-I", "-S", sysfsjob.__file__)
_FIXES = {
    errno.EACCES: "run as root",
    errno.EPERM: "see /sys/kernel/security/lockdown: a kernel that is locked down lets nobody write there",
}


def run(path: str, *arguments: str, timeout: float) -> bytes:
    """Run the job, which is abandoned past the deadline, and return its output.

    Raises WriteFailed or WriteOverdue, which name the path.
    """
    done = process.attempt([*_JOB, *arguments], timeout=timeout)
    if done is None:
        raise WriteOverdue(f"the kernel does not return from {path}")
    status, output = done
    if status == 0:
        return output
    if status < sysfsjob.ERRNO_BASE:
        raise WriteFailed(f"{path} was not reached", why=f"the process for it ended with status {status}")
    number = status - sysfsjob.ERRNO_BASE
    raise WriteFailed(f"the kernel refused {path}", why=os.strerror(number), fix=_FIXES.get(number, ""))
