# SPDX-License-Identifier: Apache-2.0
"""`fmctl host`: whether passthrough is safe on this host, and what an operator must set once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fmctl.cli import failure, options, render

if TYPE_CHECKING:
    from fmctl.core.finding import Finding
    from fmctl.core.hostprep import FileState, HostFile, Preparation

_ROOT = click.option("--root", type=click.Path(path_type=Path), default="/", hidden=True)
_SIMULATE = click.option("--simulate", metavar="NAME|FILE", help="Look at a pretended host with this board.")


@click.group()
def host() -> None:
    """Check that this host is set up for passthrough, and set it up."""


@host.command()
@options.output("text", "json", "yaml")
@click.option("--platform", default="", metavar="NAME|FILE", help="The board.  [default: what the host has]")
@_SIMULATE
@_ROOT
@click.pass_context
def check(context: click.Context, style: str, platform: str, simulate: str | None, root: Path) -> None:
    """Tell what makes passthrough unsafe or impossible on this host.

    Run it as root: to others the kernel does not show all of it. Exit status 1 tells that something was found.
    """
    if simulate and platform:
        raise click.UsageError("--simulate brings its own --platform.")
    from fmctl import local

    board, findings = local.simulated_host_check(simulate) if simulate else local.host_check(platform, root)
    if style == "text":
        text = "".join(map(_finding, findings)) or f"nothing found: this host can pass {board.name} on to VMs\n"
    else:
        plain = {"platform": board.name, "findings": [dataclasses.asdict(finding) for finding in findings]}
        text = render.document(plain, style)
    click.echo(text, nl=False)
    if findings:
        context.exit(failure.FAILURE)


@host.command()
@click.option("--dry-run", is_flag=True, help="Show what is to be set, and change nothing.")
@click.option("--write", is_flag=True, help="Write the files, but never the kernel's command line.")
@click.option("--force", is_flag=True, help="With --write, replace files that somebody else changed, too.")
@_SIMULATE
@_ROOT
def prepare(simulate: str | None, root: Path, *, dry_run: bool, write: bool, force: bool) -> None:
    """Set up this host for passthrough, once: files for modprobe, and parameters of the kernel.

    Either --dry-run or --write must be given. The kernel's command line is yours to change; this tells how.
    """
    if dry_run == write:
        raise click.UsageError("Give --dry-run or --write.")
    if write and simulate:
        raise click.UsageError("--write does not go with --simulate.")
    if force and not write:
        raise click.UsageError("--force goes with --write.")
    from fmctl import local

    if simulate:
        plan, states = local.simulated_host_preparation(simulate)
    else:
        plan, states = local.prepare_host(root, write=write, force=force)
    shown = _written(plan.files, states) if write else _planned(plan.files, states)
    click.echo("\n".join([*_command_line(plan), "", *shown, "", *_afterwards()]))


def _finding(finding: Finding) -> str:
    return f"{finding.name}: {finding.what}\n  why: {finding.why}\n  do:  {finding.fix}\n"


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
