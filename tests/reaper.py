# SPDX-License-Identifier: Apache-2.0
"""Runs a command as a plain user, adopts what it leaves behind, and ends all of it with its own standard input.

libvirtd's QEMU processes are nobody's children. Where init is slow to reap them, libvirt takes long to see them end.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

NOBODY = 65534
PR_SET_CHILD_SUBREAPER = 36


def children() -> list[int]:
    return [int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]


def end_with_input() -> None:
    sys.stdin.read()
    while pids := children():
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def main() -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    started = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    sys.stdout.write(f"{started.pid}\n")
    sys.stdout.flush()
    threading.Thread(target=end_with_input, daemon=True).start()
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()


if __name__ == "__main__":
    main()
