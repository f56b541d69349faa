# SPDX-License-Identifier: Apache-2.0
"""Run scenarios: one boot a variant, a line a scenario, the evidence of each failure, and the sum at the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
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


@dataclass
class Tally:
    """What came of the scenarios so far."""

    passed: int = 0
    failed: int = 0
    started: float = field(default_factory=time.monotonic)

    def count(self, variant: Variant, name: str, seconds: float, trouble: str) -> None:
        """Print a scenario's line, and count it."""
        self.passed += not trouble
        self.failed += bool(trouble)
        click.echo(f"{'FAILED' if trouble else 'passed'}  {variant.value:8}  {seconds:6.1f} s  {name}")
        _tell(trouble)

    def note(self, variant: Variant, text: str, trouble: str) -> None:
        """Print what the emulation did, which is no scenario's failure."""
        click.echo(f"note    {variant.value:8}  {text}")
        _tell(trouble)


def _tell(trouble: str) -> None:
    for line in trouble.splitlines():
        click.echo(f"    {line}")


def run(variants: Sequence[Variant], disks: Disks, folder: Path, *, only: Sequence[str], limit: float) -> int:
    """Run the scenarios of those variants within `limit` seconds; the exit status."""
    tally = Tally()
    for variant in variants:
        chosen = [scenario for scenario in every() if variant in scenario.variants and _is_meant(scenario, only)]
        if chosen:
            scratch = folder / variant.value
            scratch.mkdir()
            _run_variant(variant, chosen, disks, scratch, tally, tally.started + limit)
    click.echo(f"\n{time.monotonic() - tally.started:.0f} s in all")
    click.echo(f"{tally.passed} passed, {tally.failed} failed")
    return 1 if tally.failed or not tally.passed else 0


def _is_meant(scenario: Scenario, only: Sequence[str]) -> bool:
    return not only or any(text in scenario.name for text in only)


def _run_variant(
    variant: Variant, chosen: Sequence[Scenario], disks: Disks, folder: Path, tally: Tally, deadline: float
) -> None:
    """Run them in one boot, or in more where the emulation itself dies."""
    click.echo(f"\n{variant.value}: {variant.about}")
    waiting = list(chosen)
    for death in range(1 + DEATHS):
        scratch = folder / str(death)
        scratch.mkdir()
        try:
            return _run_boot(variant, waiting, disks, scratch, tally, deadline)
        except HostDead as error:
            console = (scratch / "console.log").read_text(errors="replace").splitlines()[-TAIL:]
            trouble = "\n".join([str(error), *console])
        if death == DEATHS or time.monotonic() > deadline:
            break
        tally.note(variant, f"the emulated host died in: {waiting[0].name}; it is booted once more", trouble)
    tally.count(variant, waiting.pop(0).name, 0.0, trouble)
    for scenario in waiting:
        tally.count(variant, scenario.name, 0.0, "not run")


def _run_boot(
    variant: Variant, waiting: list[Scenario], disks: Disks, folder: Path, tally: Tally, deadline: float
) -> None:
    """Run what waits; raises HostDead, with the scenario in which it died still waiting."""
    began = time.monotonic()
    with machine.booted(variant, disks, folder) as channel:
        tally.count(variant, "the emulated host boots", time.monotonic() - began, "")
        host = Host(channel, variant, deadline)
        while waiting:
            began = time.monotonic()
            trouble = _trouble(waiting[0], host)
            if trouble and host.has_lost_a_guest():
                tally.note(variant, f"a VM ended of itself in: {waiting[0].name}; it runs once more", trouble)
                trouble = _trouble(waiting[0], host)
            tally.count(variant, waiting.pop(0).name, time.monotonic() - began, trouble)


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
