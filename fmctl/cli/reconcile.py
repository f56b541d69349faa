# SPDX-License-Identifier: Apache-2.0
"""`fmctl reconcile`: how leases and active partitions differ, and what is done about it."""

from __future__ import annotations

from pathlib import Path

import click

from fmctl import files
from fmctl.cli import failure, options, render
from fmctl.cli.lease import dialled
from fmctl.cli.options import Connection
from fmctl.core import schema
from fmctl.core.adopt import Owners
from fmctl.core.leased import Reconciliation


@click.command()
@click.option("--dry-run", is_flag=True, help="Change nothing. This is the default.")
@click.option("--accept", is_flag=True, help="On a host that is only observed: let it be done from now on.")
@options.output("text", "json", "yaml")
@options.connection
@click.pass_context
def reconcile(context: click.Context, connection: Connection, style: str, *, dry_run: bool, accept: bool) -> None:
    """Show how leases and active partitions differ.

    And what is planned, so that they become the same set; the daemon does it by itself. Exit status 6 tells that
    something is planned, or differs and is left alone; with --accept it is 0.
    """
    if dry_run and accept:
        raise click.UsageError("--dry-run and --accept exclude each other.")
    with dialled(connection) as (client, timeout):
        plan = client.plan(timeout=timeout)
        if accept:
            client.accept(actor=options.calling_user(), timeout=timeout)
    click.echo(_text(plan, accepted=accept) if style == "text" else render.document(dict(vars(plan)), style), nl=False)
    if not accept and (plan.steps or plan.drift):
        context.exit(failure.DRIFT)


@click.command()
@click.option("--owners", type=click.Path(path_type=Path), metavar="FILE", help="YAML: an owner by VM name or UUID.")
@click.option("--dry-run", is_flag=True, help="Change nothing.")
@options.output("text", "json", "yaml")
@options.connection
@click.pass_context
def adopt(context: click.Context, connection: Connection, owners: Path | None, style: str, *, dry_run: bool) -> None:
    """Make leases of what ran before fmctl came.

    Each active partition that no lease holds is paired with the one running VM that has exactly its GPUs. The owner is
    whom --owners names, else whom the domain's metadata does. Nothing is activated, reset or restarted. Exit status 6
    tells that something is left.
    """
    named = schema.load(Owners, files.read(owners), str(owners)).by_vm if owners else {}
    with dialled(connection) as (client, timeout):
        made, left = client.adopt(named, dry_run=dry_run, timeout=timeout)
    if style == "text":
        would = "would be " if dry_run else ""
        lines = [*(f"{would}adopted: {text}" for text in made), *(f"left: {text}" for text in left)]
        click.echo("".join(f"{line}\n" for line in lines) or "nothing to adopt\n", nl=False)
    else:
        click.echo(render.document({"made": made, "left": left}, style), nl=False)
    if left:
        context.exit(failure.DRIFT)


def _text(plan: Reconciliation, *, accepted: bool) -> str:
    lines = [*(f"to do: {step}" for step in plan.steps), *(f"left alone: {text}" for text in plan.drift)]
    if not lines:
        lines = ["leases and active partitions are the same set"]
    if accepted:
        lines.append("from now on what is to do is done")
    elif plan.observed:
        lines.append(f"nothing is done before `fmctl reconcile --accept`: {plan.observed}")
    return "".join(f"{line}\n" for line in lines)
