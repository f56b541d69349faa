# SPDX-License-Identifier: Apache-2.0
"""A command that goes on until it is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from tests.rpc.leasing import Host


class Running:
    """`fmctl ...`, and what it prints. Killed when its block ends."""

    def __init__(self, host: Host, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fmctl", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "FMCTL_ADDRESS": str(host.address)},
        )

    def line(self) -> str:
        """The next line, once there is one."""
        assert self.process.stdout
        return self.process.stdout.readline()

    def ended(self, number: int = 0, within: float = 30) -> tuple[int, str, str]:
        """The exit status, after that signal if it is one, and what was printed that nobody has read."""
        if number:
            self.process.send_signal(signal.Signals(number))
        out, err = self.process.communicate(timeout=within)
        return self.process.returncode, out, err

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()
