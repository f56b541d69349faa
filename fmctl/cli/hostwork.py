# SPDX-License-Identifier: Apache-2.0
"""`fmctl host info`, `cordon`, `uncordon` and `drain`: what the daemon's host is, and whether it takes new work."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import click

from fmctl.cli import leaserender, options, render
from fmctl.cli.lease import dialled, end_at_once_if_interrupted
from fmctl.cli.options import Connection
from fmctl.core.errors import PartitionHeld
from fmctl.core.leased import LeaseList
from fmctl.core.owner import is_system

if TYPE_CHECKING:
    from fmctl.core.answers import HostInfo
    from fmctl.core.lease import Lease
    from fmctl.core.leased import Event

_ROWS = {
    "host_id": "host",
    "platform": "platform",
    "board": "board",
    "fm_version": "FM",
    "driver_version": "driver",
    "required_guest_driver": "guests need",
    "image": "image",
    "fabric_generation": "generation",
    "version": "fmctl",
    "api_version": "API",
    "store_id": "store",
}


@click.command()
@options.output("text", "json", "yaml")
@options.connection
def info(connection: Connection, style: str) -> None:
    """Tell which host this is, and the versions on it."""
    with dialled(connection) as (client, timeout):
        found = client.host_info(timeout=timeout)
    click.echo(_info(found) if style == "text" else render.document(dict(vars(found)), style), nl=False)


@click.command()
@click.option("--reason", required=True, metavar="TEXT", help="Why; shown to whoever is refused.")
@options.connection
def cordon(connection: Connection, reason: str) -> None:
    """Let the host take no new work.

    What is leased goes on, and can be ended.
    """
    with dialled(connection) as (client, timeout):
        client.cordon(reason, actor=options.calling_user(), timeout=timeout)
    click.echo("this host takes no new work")


@click.command()
@options.connection
def uncordon(connection: Connection) -> None:
    """Let the host take new work again."""
    with dialled(connection) as (client, timeout):
        client.uncordon(actor=options.calling_user(), timeout=timeout)
    click.echo("this host takes new work again")


@click.command()
@click.option("--reason", default="it is drained", show_default=True, metavar="TEXT", help="Why; as with cordon.")
@options.connection
def drain(connection: Connection, reason: str) -> None:
    """Cordon the host, and wait until no tenant's lease is left.

    For --timeout at most; exit status 4 tells that some are left, and standard error which. The host stays cordoned
    either way. No VM is stopped, and no lease ended: their owners do that.
    """
    from fmctl.rpc.following import Following

    end_at_once_if_interrupted()
    with dialled(connection) as (client, timeout):
        until = time.monotonic() + timeout
        client.cordon(reason, actor=options.calling_user(), timeout=timeout)
        left: dict[str, Lease] = {}
        for each in Following(client, timeout=timeout, until=until):
            left = _left(left, each)
            if not left:
                break
    if left:
        raise _undrained(left.values(), timeout)
    click.echo("this host takes no new work, and no lease is left on it")


def _left(before: Mapping[str, Lease], each: LeaseList | Event | int) -> dict[str, Lease]:
    """The leases of tenants that still hold something, after what was told; the layout's own are in nobody's way."""
    if isinstance(each, LeaseList):
        return {leased.lease.id: leased.lease for leased in each.leases if not is_system(leased.lease.owner)}
    left = dict(before)
    if not isinstance(each, int) and (lease := each.entry.lease) is not None:
        left.pop(lease.id, None)
        if not lease.state.over and not is_system(lease.owner):
            left[lease.id] = lease
    return left


def _undrained(left: Iterable[Lease], timeout: float) -> PartitionHeld:
    names = [f"{x.id} of {x.owner}, GPUs {leaserender.ids(x.held)}, {x.state.value}" for x in left]
    leases = "1 lease is" if len(names) == 1 else f"{len(names)} leases are"
    return PartitionHeld(
        f"{leases} left on this host after {timeout:g} s",
        why="; ".join(names),
        fix="have them released, or wait longer with --timeout; `fmctl host uncordon` ends the drain",
    )


def _info(found: HostInfo) -> str:
    rows = [(label, str(getattr(found, field))) for field, label in _ROWS.items()]
    simulated = "simulated   no hardware stands behind this host\n" if found.simulated else ""
    return "".join(f"{label:<11} {value or 'unknown'}\n" for label, value in rows) + simulated


COMMANDS = (info, cordon, uncordon, drain)
