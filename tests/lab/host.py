# SPDX-License-Identifier: Apache-2.0
"""The emulated host as a scenario sees it: commands in it, and waiting for what they show."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from tests.lab.channel import Answer, Channel, HostDead
from tests.lab.machine import Variant

TRACE = os.environ.get("FMCTL_LAB_TRACE", "")
"""A file that every command is written to, with the seconds that it took."""

T = TypeVar("T")


class Failed(Exception):
    """A scenario saw something else than it wanted."""


def want(condition: object, text: str) -> None:
    """Fail with that text unless the condition holds."""
    if not condition:
        raise Failed(text)


class Host:
    """One boot of one variant."""

    def __init__(self, channel: Channel, variant: Variant, deadline: float, name: str = "") -> None:
        """`deadline` is when the whole run must be over, of time.monotonic(); `name` is what notes are told under."""
        self.variant = variant
        self._name = name or variant.value
        self._channel = channel
        self._deadline = deadline
        self._began = 0.0
        self._ends = 0

    def run(self, command: str, timeout: float = 60.0) -> Answer:
        """Run a line of bash, whatever its exit status; raises HostDead."""
        return self._run(command, timeout, lambda within: self._channel.run(command, within))

    def try_fmctl(self, *arguments: str, timeout: float = 60.0) -> Answer:
        """Run fmctl, whatever its exit status; raises HostDead."""
        command = shlex.join(["fmctl", *arguments])
        return self._run(command, timeout, lambda within: self._channel.fmctl(arguments, within))

    def _run(self, command: str, timeout: float, call: Callable[[float], Answer]) -> Answer:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise HostDead("the run's time is over")
        began = time.monotonic()
        answer = call(min(timeout, left))
        if TRACE:
            with Path(TRACE).open("a") as file:
                file.write(f"{self._name}  {time.monotonic() - began:6.1f} s  {command[:150]!r}\n")
        want(not answer.timed_out, f"`{command}` did not end within {timeout:g} s\n{answer.out}{answer.err}")
        return answer

    def sh(self, command: str, timeout: float = 60.0) -> str:
        """Run a line of bash that must succeed; what it printed."""
        answer = self.run(command, timeout)
        want(answer.status == 0, f"`{command}` ended with {answer.status}\n{answer.out}{answer.err}")
        return answer.out

    def fmctl(self, *arguments: str, status: int = 0, timeout: float = 60.0) -> str:
        """Run fmctl, which must end with that exit status; standard output, or standard error after a failure."""
        answer = self.try_fmctl(*arguments, timeout=timeout)
        command = shlex.join(["fmctl", *arguments])
        want(answer.status == status, f"`{command}` ended with {answer.status}, not {status}\n{answer.out}{answer.err}")
        return answer.err if status else answer.out

    def ask(self, *arguments: str, timeout: float = 60.0) -> Any:
        """What fmctl says in JSON."""
        return json.loads(self.fmctl(*arguments, "--output", "json", timeout=timeout))

    def eventually(self, what: str, condition: Callable[[], T], within: float) -> T:
        """What `condition` returns once it is true; fails when `within` seconds pass first.

        To look takes the one processor from what is waited for, so that is left most of it.
        """
        deadline = time.monotonic() + within
        while True:
            began = time.monotonic()
            value = condition()
            if value:
                return value
            now = time.monotonic()
            want(now < deadline, f"not within {within:g} s: {what}")
            time.sleep(max(0.2, 2 * (now - began)))

    def reboot(self, within: float) -> None:
        """Let the emulated host boot again; raises HostDead."""
        self._channel.reboot(within)
        self.sh("systemctl is-system-running --wait || true", within)

    def note(self, text: str) -> None:
        """Tell beside the scenario's line what was odd and no failure."""
        click.echo(f"note    {self._name:13}  {text}")

    def begin(self) -> None:
        """Note the time, so that `evidence` and `has_lost_a_guest` tell only of what comes."""
        self._began = float(self.sh("date +%s"))
        self._ends = self._guest_ends()

    def has_lost_a_guest(self) -> bool:
        """Whether a VM ended of itself since the scenario began, as one does that the emulation loses."""
        return self._guest_ends() > self._ends

    def _guest_ends(self) -> int:
        """How often a VM ended that neither libvirt nor a signal ended, by libvirt's log."""
        return int(self.run("cat /var/log/libvirt/qemu/*.log | grep --count --text reason=shutdown").out)

    def evidence(self) -> str:
        """What to read after a failure: the journal since the scenario began, and what the VMs and QEMU wrote."""
        journal = f"journalctl --no-pager --since @{self._began:.0f} | tail --lines 80"
        logs = "tail --lines 25 /var/log/libvirt/qemu/*.log"
        return self._channel.run(f"{journal}; {logs} | cut --characters 1-300", 30).out
