# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.lab`: a shell in the emulated HGX host, or its scenarios one after the other."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from fmctl.core.errors import FmctlError
from tests.lab import bench, images, machine, payload, runner, scenarios
from tests.lab.channel import HostDead
from tests.lab.host import Failed, Host
from tests.lab.machine import Disks, Variant

BENCH_LIMIT = 1200.0
"""Seconds that the benchmark may take."""
_VARIANTS = [variant.value for variant in Variant]


@click.group()
def lab() -> None:
    """An HGX host under QEMU, with real libvirt, VFIO, IOMMU and vsock."""


@lab.command()
@click.option("--variant", type=click.Choice(_VARIANTS), default="groups", show_default=True, help="IOMMU groups.")
def shell(variant: str) -> None:
    """Boot the emulated host, and leave a root shell in it on this terminal."""
    with _disks() as (disks, folder):
        click.echo(f"Booting the emulated host, {Variant(variant).about}. `exit` ends it.", err=True)
        sys.exit(machine.shell(Variant(variant), disks, folder))


@lab.command()
@click.option("--variant", "variants", type=click.Choice(_VARIANTS), multiple=True, help="Only this variant.")
@click.option("--only", multiple=True, metavar="TEXT", help="Only scenarios with this text in their names.")
@click.option("--round", "rounds", type=click.Choice(list(scenarios.ROUNDS)), multiple=True, help="Only this round.")
@click.option("--limit", default=2700, metavar="SECONDS", show_default=True, help="When the run is over at the latest.")
def test(variants: tuple[str, ...], rounds: tuple[str, ...], only: tuple[str, ...], limit: int) -> None:
    """Run the scenarios of every variant; exit status 1 where one fails."""
    chosen = [Variant(name) for name in variants or _VARIANTS]
    with _disks() as (disks, folder):
        sys.exit(runner.run(chosen, rounds or tuple(scenarios.ROUNDS), disks, folder, only=only, limit=limit))


@lab.command("bench")
def measure() -> None:
    """Measure the Service VM's start; exit status 1 where it is over its limit.

    The emulated host has two processors for it, so that the daemon and libvirt do not take that of the guest.
    """
    with _disks() as (disks, folder), machine.booted(Variant.GROUPS, disks, folder, processors=2) as channel:
        host = Host(channel, Variant.GROUPS, time.monotonic() + BENCH_LIMIT)
        sys.exit(bench.run(host, disks.images.service_vm))


@lab.command("images")
def show_images() -> None:
    """Make the images unless the cache has them, and print their folder."""
    click.echo(_images().folder)


def _images() -> images.Images:
    cache = images.cache_folder(os.environ)
    if not images.are_cached(cache):
        click.echo("Making the lab's images, which takes about a minute.", err=True)
    return images.cached(cache)


@contextmanager
def _disks() -> Iterator[tuple[Disks, Path]]:
    """What the emulated host boots from, and a folder for what it leaves."""
    ready = _images()
    with tempfile.TemporaryDirectory(prefix="fmctl-lab-") as scratch:
        folder = Path(scratch)
        rom = folder / "gpu.rom"
        rom.write_bytes(machine.blank_rom())
        yield Disks(ready, payload.make(ready, folder), rom), folder


def main() -> None:
    """Run the command line; an error is told as fmctl tells its own."""
    try:
        lab(prog_name="python -m tests.lab")
    except (FmctlError, HostDead, Failed) as error:
        sys.exit(f"lab: {error}")


if __name__ == "__main__":
    main()
