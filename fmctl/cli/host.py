# SPDX-License-Identifier: Apache-2.0
"""`fmctl host`: whether passthrough is safe on this host, and what an operator must set once.

`cli.hostwork` has what the daemon does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from fmctl.cli import failure, hostwork, options, render
from fmctl.cli import place as at
from fmctl.cli.place import Place

if TYPE_CHECKING:
    from fmctl.core.hostprep import FileState, HostFile, Preparation


@click.group()
def host() -> None:
    """Set up a host, check it, and let it take new work or none."""


for _command in hostwork.COMMANDS:
    host.add_command(_command)


@host.command()
@options.output("text", "json", "yaml")
@at.place
@click.pass_context
def check(context: click.Context, place: Place, style: str) -> None:
    """Tell what makes passthrough unsafe or impossible on this host.

    Run it as root: to others the kernel does not show all of it. Exit status 1 tells that something was found.
    """
    host = place.host()
    found = host.inventory()
    findings, board = host.findings(found), found.platform.name
    text = render.findings(findings, style, nothing=f"this host can pass {board} on to VMs", platform=board)
    click.echo(text, nl=False)
    if findings:
        context.exit(failure.FAILURE)


@host.command()
@click.option("--dry-run", is_flag=True, help="Show what is to be set, and change nothing.")
@click.option("--write", is_flag=True, help="Write the files, but never the kernel's command line.")
@click.option("--force", is_flag=True, help="With --write, replace files that somebody else changed, too.")
@at.place
def prepare(place: Place, *, dry_run: bool, write: bool, force: bool) -> None:
    """Set up this host for passthrough, once.

    It takes files for modprobe, and parameters of the kernel. Either --dry-run or --write must be given. The kernel's
    command line is yours to change; this tells how.
    """
    if dry_run == write:
        raise click.UsageError("Give --dry-run or --write.")
    if write and place.simulate:
        raise click.UsageError("--write does not go with --simulate.")
    if force and not write:
        raise click.UsageError("--force goes with --write.")
    host = place.host()
    plan, states = host.prepare(force=force) if write else host.preparation()
    shown = _written(plan.files, states) if write else _planned(plan.files, states)
    click.echo("\n".join([*_command_line(plan), "", *shown, "", *_afterwards()]))


def _command_line(plan: Preparation) -> Iterator[str]:
    if plan.firmware:
        yield f"The IOMMU is off. Switch {plan.firmware} on in the firmware's setup."
    if not plan.add and not plan.take_off:
        yield "The kernel's command line needs no change."
        return
    yield "The kernel's command line, in /etc/default/grub or where your boot loader has it:"
    yield from (f"  add       {parameter}" for parameter in plan.add)
    yield from (f"  take off  {parameter}" for parameter in plan.take_off)
    yield "Then run update-grub, or what your boot loader wants, and reboot."


def _planned(files: Sequence[HostFile], states: Sequence[FileState]) -> Iterator[str]:
    for file, state in zip(files, states, strict=True):
        yield f"/{file.path} {_PLANNED[state.value]}"
        if state.value != "same":
            yield from (f"  {line}".rstrip() for line in file.text.splitlines())


def _written(files: Sequence[HostFile], states: Sequence[FileState]) -> Iterator[str]:
    for file, state in zip(files, states, strict=True):
        yield f"/{file.path} {_WRITTEN[state.value]}"


_PLANNED = {
    "missing": "would be written:",
    "same": "is as it should be.",
    "outdated": "would be replaced:",
    "foreign": "was written or changed by somebody else, and only --force replaces it. It would be:",
}
_WRITTEN = {
    "missing": "was written.",
    "same": "is as it should be.",
    "outdated": "was replaced.",
    "foreign": "was replaced, with what somebody else had written or changed.",
}


def _afterwards() -> Iterator[str]:
    from fmctl.core.hostprep import MODULES

    yield "Then load what is needed now, and give the initial RAM disk the same rules:"
    yield f"  modprobe -a {' '.join(MODULES)}"
    yield "  update-initramfs -u -k all    (on Fedora and its kin: dracut -f --regenerate-all)"
