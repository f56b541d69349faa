# SPDX-License-Identifier: Apache-2.0
"""Run scenarios: a boot for each variant and round, a line a scenario, the evidence of each failure, and the sum."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path

import click

from tests.lab import machine
from tests.lab.channel import HostDead
from tests.lab.host import Host
from tests.lab.machine import Disks, Variant
from tests.lab.scenario import Scenario, every

TAIL = 40
"""How many last lines of the console are shown when the emulated host dies."""
DEATHS = 3
"""How often the emulated host is booted once more where the emulation itself dies, as QEMU's does of nested VMs."""
LANES = 2
"""How many emulated hosts run side by side, each of which keeps a processor busy."""


@dataclass(frozen=True)
class Boot:
    """What one boot of an emulated host is for."""

    variant: Variant
    round: str
    scenarios: tuple[Scenario, ...]

    def __str__(self) -> str:
        return f"{self.variant.value}/{self.round}"


@dataclass
class Tally:
    """What came of the scenarios so far."""

    passed: int = 0
    failed: int = 0
    started: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, boot: Boot, name: str, seconds: float, trouble: str) -> None:
        """Print a scenario's line, and count it."""
        with self._lock:
            self.passed += not trouble
            self.failed += bool(trouble)
            click.echo(f"{'FAILED' if trouble else 'passed'}  {boot!s:13}  {seconds:6.1f} s  {name}")
            _tell(trouble)

    def note(self, boot: Boot, text: str, trouble: str) -> None:
        """Print what the emulation did, which is no scenario's failure."""
        with self._lock:
            click.echo(f"note    {boot!s:13}  {text}")
            _tell(trouble)


def _tell(trouble: str) -> None:
    for line in trouble.splitlines():
        click.echo(f"    {line}")


def run(
    variants: Sequence[Variant], rounds: Sequence[str], disks: Disks, folder: Path, *, only: Sequence[str], limit: float
) -> int:
    """Run the scenarios of those variants and rounds within `limit` seconds; the exit status."""
    tally = Tally()
    for variant in variants:
        click.echo(f"{variant.value}: {variant.about}")
    with futures.ThreadPoolExecutor(LANES) as lanes:
        boots = _boots(variants, rounds, only)
        for done in [lanes.submit(_run, boot, disks, folder, tally, limit) for boot in boots]:
            done.result()
    click.echo(f"\n{time.monotonic() - tally.started:.0f} s in all")
    click.echo(f"{tally.passed} passed, {tally.failed} failed")
    return 1 if tally.failed or not tally.passed else 0


def _boots(variants: Sequence[Variant], rounds: Sequence[str], only: Sequence[str]) -> Iterator[Boot]:
    chosen = [scenario for scenario in every() if not only or any(text in scenario.name for text in only)]
    for variant in variants:
        for name in rounds:
            found = tuple(each for each in chosen if variant in each.variants and each.round == name)
            if found:
                yield Boot(variant, name, found)


def _run(boot: Boot, disks: Disks, folder: Path, tally: Tally, limit: float) -> None:
    """Run its scenarios, in more boots than one where the emulation itself dies."""
    waiting, deadline = list(boot.scenarios), tally.started + limit
    for death in range(1 + DEATHS):
        scratch = folder / f"{boot.variant.value}-{boot.round}-{death}"
        scratch.mkdir()
        try:
            return _run_boot(boot, waiting, disks, scratch, tally, deadline)
        except HostDead as error:
            console = (scratch / "console.log").read_text(errors="replace").splitlines()[-TAIL:]
            trouble = "\n".join([str(error), *console])
        if death == DEATHS or time.monotonic() > deadline:
            break
        tally.note(boot, f"the emulated host died in: {waiting[0].name}; it is booted once more", trouble)
    tally.count(boot, waiting.pop(0).name, 0.0, trouble)
    for scenario in waiting:
        tally.count(boot, scenario.name, 0.0, "not run")


def _run_boot(boot: Boot, waiting: list[Scenario], disks: Disks, folder: Path, tally: Tally, deadline: float) -> None:
    """Run what waits; raises HostDead, with the scenario in which it died still waiting."""
    began = time.monotonic()
    with machine.booted(boot.variant, disks, folder) as channel:
        tally.count(boot, "the emulated host boots", time.monotonic() - began, "")
        host = Host(channel, boot.variant, deadline, str(boot))
        while waiting:
            began = time.monotonic()
            trouble = _trouble(waiting[0], host)
            if trouble and host.has_lost_a_guest():
                tally.note(boot, f"a VM ended of itself in: {waiting[0].name}; it runs once more", trouble)
                trouble = _trouble(waiting[0], host)
            tally.count(boot, waiting.pop(0).name, time.monotonic() - began, trouble)


def _trouble(scenario: Scenario, host: Host) -> str:
    """Why the scenario failed, with what there is to read about it; empty where it passed."""
    try:
        host.begin()
        scenario.run(host)
    except HostDead:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {error}\n{host.evidence()}"
    return ""
