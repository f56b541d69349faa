# SPDX-License-Identifier: Apache-2.0
"""`fmctl capacity`, `can-allocate` and `explain`: what could be granted now, and why."""

from __future__ import annotations

import textwrap
from typing import Any

import click

from fmctl.cli import failure, options, render
from fmctl.cli.lease import dialled, numa_node, shape
from fmctl.cli.leaserender import WIDTH, ids
from fmctl.cli.options import Connection
from fmctl.cli.table import table
from fmctl.core.allocate import Shape
from fmctl.core.leased import Candidate, Capacity, Explanation, Fit
from fmctl.core.partition import MAX_GPUS

_COUNT = click.IntRange(1, MAX_GPUS)


_owner = click.option("--owner", default="", metavar="NAME", help="For whom.  [default: owners who hold nothing]")


@click.command()
@_owner
@options.output("table", "json", "yaml")
@options.connection
def capacity(connection: Connection, owner: str, style: str) -> None:
    """Tell what could be granted now.

    Each size stands with how many leases of it could be, if no other was.
    """
    with dialled(connection) as (client, timeout):
        found = client.capacity(owner=owner, timeout=timeout)
    click.echo(_capacity(found) if style == "table" else render.document(_plain(found), style), nl=False)


@click.command("can-allocate")
@click.argument("counts", metavar="N...", type=_COUNT, nargs=-1, required=True)
@_owner
@options.output("text", "json", "yaml")
@options.connection
@click.pass_context
def can_allocate(
    context: click.Context, connection: Connection, counts: tuple[int, ...], owner: str, style: str
) -> None:
    """Tell whether requests of these sizes fit together.

    Exit status 7 tells that they could not be granted now.
    """
    with dialled(connection) as (client, timeout):
        fit = client.can_allocate(counts, owner=owner, timeout=timeout)
    click.echo(_fit(fit, counts) if style == "text" else render.document(_plain_fit(fit), style), nl=False)
    if fit.partitions is None:
        context.exit(failure.NO_CAPACITY)


@click.command()
@click.option("--count", type=_COUNT, required=True, metavar="N", help="So many GPUs.")
@shape
@numa_node
@_owner
@options.output("text", "json", "yaml")
@options.connection
def explain(connection: Connection, count: int, shape: str, numa_node: int | None, owner: str, style: str) -> None:
    """Tell which partition a request would get, and why."""
    with dialled(connection) as (client, timeout):
        found = client.explain(count, Shape(shape), numa_node=numa_node, owner=owner, timeout=timeout)
    text = "".join(map(_candidate, found.candidates))
    click.echo(text if style == "text" else render.document(_plain_candidates(found), style), nl=False)


def _capacity(found: Capacity) -> str:
    rows = [[str(size), str(leases)] for size, leases in found.headroom.partitions.items()]
    gpus = found.headroom.gpus
    counts = {
        "free": gpus.free,
        "busy": gpus.busy,
        "being cleaned": gpus.cleaning,
        "quarantined": gpus.quarantined,
        "cordoned": gpus.cordoned,
        "outside the layout": gpus.outside,
    }
    text = ", ".join(f"{count} {state}" for state, count in counts.items() if count or state == "free")
    cordon = f"this host takes no new work: {found.cordoned}\n" if found.cordoned else ""
    rules = "".join(f"rule: {rule}\n" for rule in found.rules)
    return f"{table(('GPUs', 'LEASES'), rows)}\n{gpus.total} GPUs: {text}\n{rules}{cordon}"


def _plain(found: Capacity) -> dict[str, Any]:
    sizes = [{"gpus": size, "leases": leases} for size, leases in found.headroom.partitions.items()]
    gpus = dict(vars(found.headroom.gpus))
    beside = {"rules": list(found.rules), "cordoned": found.cordoned, "simulated": found.simulated}
    return {"sizes": sizes, "gpus": gpus, **beside}


def _fit(fit: Fit, counts: tuple[int, ...]) -> str:
    if fit.partitions is None:
        return f"no: {fit.rule or 'they could not be granted together now'}\n"
    pairs = ", ".join(f"{count} by partition {found}" for count, found in zip(counts, fit.partitions, strict=False))
    return f"yes: {pairs}\n"


def _plain_fit(fit: Fit) -> dict[str, Any]:
    possible = fit.partitions is not None
    found = {"possible": possible, "partitions": list(fit.partitions or ()), "rule": fit.rule}
    return {**found, "simulated": fit.simulated}


def _candidate(candidate: Candidate) -> str:
    verdict = "is taken" if candidate.taken else "is not"
    why = textwrap.fill(candidate.why, WIDTH, initial_indent="  ", subsequent_indent="  ")
    return f"partition {candidate.partition_id} of GPUs {ids(candidate.gpus)} {verdict}:\n{why}\n"


def _plain_candidates(found: Explanation) -> dict[str, Any]:
    candidates = [
        {"partition": each.partition_id, "gpus": list(each.gpus), "taken": each.taken, "why": each.why}
        for each in found.candidates
    ]
    return {"candidates": candidates, "simulated": found.simulated}
