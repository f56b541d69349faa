# SPDX-License-Identifier: Apache-2.0
"""`fmctl watch`: every change, a line each."""

from __future__ import annotations

import errno
import json
import os
import select
import time
from collections.abc import Iterator

import click

from fmctl.cli import leaserender, options
from fmctl.cli.lease import dialled, end_at_once_if_interrupted
from fmctl.cli.options import Connection
from fmctl.core.book import Entry, Kind
from fmctl.core.errors import FmctlError
from fmctl.core.lease import GpuDevice
from fmctl.core.leased import Event, Leased, LeaseList

LISTED = "listed"
"""What a line says of a lease as it is, before the changes come, and where some were missed."""


@click.command()
@click.option("--since", type=click.IntRange(min=0), metavar="REVISION", help="Go on after this revision...")
@click.option("--store-id", metavar="ID", help="...of this store.")
@options.output("text", "json")
@options.connection
def watch(connection: Connection, since: int | None, store_id: str | None, style: str) -> None:
    """Print every change, a line each.

    Of leases, partitions, GPUs and the host. Each lease comes first as it is, unless --since and --store-id say where
    to go on, and again where changes were missed. A daemon that is away is waited for, --timeout at most. Standard
    error tells of both.
    """
    if (since is None) != (store_id is None):
        raise click.UsageError("--since and --store-id go together.")
    from fmctl.rpc.following import Following, Position

    position = None if since is None or store_id is None else Position(min(since, 2**63 - 1), store_id)
    end_at_once_if_interrupted()
    with dialled(connection) as (client, timeout):
        following = Following(client, timeout=timeout, position=position, tell=_tell)
        for each in following:
            for event in _events(each):
                click.echo(_line(event, following.position.store_id if following.position else "", style))
            _end_if_nobody_reads()


def _tell(error: FmctlError) -> None:
    click.echo(f"fmctl: {error}", err=True)


def _events(each: LeaseList | Event | int) -> Iterator[Event]:
    if isinstance(each, Event):
        yield each
    elif isinstance(each, LeaseList):
        now = time.time()
        for leased in each.leases:
            lease = leased.lease
            entry = Entry(Kind.LEASE, lease.id, LISTED, lease=lease, revision=each.revision, time=now)
            yield Event(entry, leased.interrupted)


def _line(event: Event, store_id: str, style: str) -> str:
    if style == "json":
        return json.dumps(_plain(event, store_id), ensure_ascii=False)
    entry = event.entry
    lease = entry.lease
    about = f"{lease.state.value}, GPUs {leaserender.ids(lease.gpus)} of {lease.owner}" if lease else ""
    by = f"by {entry.actor}" if entry.actor else ""
    beside = "; ".join(filter(None, (about, "NVLink interrupted" * event.interrupted, entry.detail, by)))
    subject = f"{entry.kind.value} {entry.subject}".rstrip()
    line = f"{entry.revision} {leaserender.moment(entry.time)} {subject}: {entry.what}"
    return f"{line} ({beside})" if beside else line


def _plain(event: Event, store_id: str) -> dict[str, object]:
    entry = event.entry
    lease = entry.lease
    return {
        "revision": entry.revision,
        "store_id": store_id,
        "time": leaserender.moment(entry.time),
        "kind": entry.kind.value,
        "subject": entry.subject,
        "what": entry.what,
        "detail": entry.detail,
        "actor": entry.actor,
        "lease": leaserender.plain(Leased(lease, tuple(map(GpuDevice, lease.gpus)), event.interrupted))
        if lease
        else None,
    }


def _end_if_nobody_reads() -> None:
    """Raise BrokenPipeError once nobody reads standard output, which a pipe otherwise tells at the next line."""
    poll = select.poll()
    poll.register(1, 0)
    if any(event & (select.POLLERR | select.POLLNVAL) for _, event in poll.poll(0)):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
