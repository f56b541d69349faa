# SPDX-License-Identifier: Apache-2.0
"""The emulated host's end of the command channel: a line of JSON in, a command run, a line of JSON out.

`tests.lab.channel` is the other end. Output goes to files, so that a process which a command leaves behind holds up
nothing. This runs on the Python of the installed fmctl and has imported it, so that `fmctl` is a fork of it: under
emulation the imports alone take two seconds.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

PORT = Path("/dev/virtio-ports/lab")
LIMIT = 4 * 1024 * 1024
"""The most bytes of output that are sent."""


Start = Callable[[IO[bytes], IO[bytes]], int]
"""Starts a process, in a session of its own, with these as its standard output and error; its id."""


def run(start: Start, timeout: float) -> dict[str, object]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = start(out, err)
        timed_out = not _ends(pid, timeout)
        if timed_out:
            os.killpg(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read(LIMIT).decode(errors="replace"))
    return {"status": status, "timed_out": timed_out, "out": texts[0], "err": texts[1]}


def shell(command: str) -> Start:
    """A line of bash."""

    def start(out: IO[bytes], err: IO[bytes]) -> int:
        argv = ["/bin/bash", "-c", command]
        null = subprocess.DEVNULL
        return subprocess.Popen(argv, stdin=null, stdout=out, stderr=err, start_new_session=True).pid

    return start


def fmctl(arguments: list[str]) -> Start:
    """The installed fmctl."""
    main = _imported()

    def start(out: IO[bytes], err: IO[bytes]) -> int:
        if pid := os.fork():
            return pid
        os.setsid()
        with Path(os.devnull).open("rb") as null:
            for number, stream in enumerate((null, out, err)):
                os.dup2(stream.fileno(), number)
        sys.argv = ["fmctl", *arguments]
        try:
            main()
        finally:
            os._exit(1)

    return start


def _imported() -> Callable[[], None]:
    """fmctl's main, and everything imported that a command may need."""
    import fmctl.cli
    import fmctl.local
    import fmctl.rpc
    from fmctl.cli.main import main

    for package in (fmctl.cli, fmctl.rpc):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    return main


def _ends(pid: int, timeout: float) -> bool:
    """Whether that child ends within so many seconds."""
    descriptor = os.pidfd_open(pid)
    try:
        return bool(select.select([descriptor], [], [], timeout)[0])
    finally:
        os.close(descriptor)


def main() -> None:
    with PORT.open("r+b", buffering=0) as port:
        port.write(b'{"hello": true}\n')
        pending = b""
        while chunk := port.read(65536):
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                asked = json.loads(line)
                start = shell(asked["command"]) if "command" in asked else fmctl(asked["fmctl"])
                answer = json.dumps(run(start, asked["timeout"])).encode() + b"\n"
                while answer:
                    answer = answer[port.write(answer) :]


if __name__ == "__main__":
    main()
