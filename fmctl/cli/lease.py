# SPDX-License-Identifier: Apache-2.0
"""`fmctl allocate`, `release` and `lease`: leases made, shown, changed and ended."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from fmctl.cli import leaserender, options, params
from fmctl.cli.options import Connection
from fmctl.core.allocate import Shape
from fmctl.core.errors import Retryable
from fmctl.core.partition import MAX_GPUS
from fmctl.core.request import Request

if TYPE_CHECKING:
    from fmctl.core.pci import Bdf
    from fmctl.rpc.lease_client import LeaseClient

shape = click.option(
    "--shape",
    type=click.Choice([each.value for each in Shape]),
    default=Shape.EXACT.value,
    show_default=True,
    help="What serves a count that no partition has: nothing, the next larger one, or single GPUs without NVLink.",
)
numa_node = click.option("--numa-node", type=click.IntRange(0, 1023), metavar="N", help="Where the GPUs should be.")
_labels = click.option(
    "--label", "labels", type=params.LABEL, multiple=True, metavar="K=V", help="A label of yours; may be repeated."
)
_style = options.output("text", "json", "yaml", "name")


@contextlib.contextmanager
def dialled(connection: Connection) -> Iterator[tuple[LeaseClient, float]]:
    """The daemon's leases, and the seconds that a call may take."""
    from fmctl.rpc.lease_client import LeaseClient

    with contextlib.closing(LeaseClient(connection.address or options.DEFAULT_ADDRESS)) as client:
        yield client, connection.timeout or options.DEFAULT_TIMEOUT


def end_at_once_if_interrupted() -> None:
    """Let SIGINT end the process as such: nothing is to be cleaned up, and gRPC may swallow its exception."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@click.command()
@click.option("--count", type=click.IntRange(1, MAX_GPUS), metavar="N", help="So many GPUs.")
@click.option("--gpu-ids", type=options.GPU_IDS, default=(), metavar="IDS", help="Exactly these, by physical id: 1,3.")
@click.option("--addresses", type=params.ADDRESSES, default=(), metavar="BDFS", help="Exactly these, by PCI address.")
@click.option("--partition", type=options.PARTITION_ID, metavar="ID", help="The partition with that id.")
@options.owner
@click.option("--request-id", default="", metavar="TEXT", help="The request's own name.  [default: a new UUID]")
@shape
@numa_node
@click.option("--vm", type=params.UUID, metavar="UUID", help="The VM that it is for.")
@_labels
@click.option("--lifetime", type=params.DURATION, metavar="TIME", help="When it ends if no VM starts: 90s, 15m, 2h.")
@click.option("--guest-driver", default="", metavar="VERSION", help="The NVIDIA driver in that VM.")
@click.option("--no-wait", is_flag=True, help="Do not wait until it is active.")
@click.option("--dry-run", is_flag=True, help="Show what would be granted, and change nothing.")
@_style
@options.connection
def allocate(connection: Connection, style: str, *, no_wait: bool, dry_run: bool, **asked: Any) -> None:
    """Lease GPUs: so many, or those that are named.

    The same request with the same --request-id gets the same lease. A request whose answer was lost is settled by
    making it again so.
    """
    request = _request(**asked)
    with dialled(connection) as (client, timeout):
        try:
            leased = client.allocate(request, timeout=timeout, wait=not no_wait, dry_run=dry_run)
        except (Retryable, KeyboardInterrupt):
            click.echo(f"fmctl: to make this request again: --request-id {request.request_id}", err=True)
            raise
    click.echo(leaserender.lease(leased, style, first=leaserender.sentence(leased.lease)), nl=False)


def _request(
    *,
    count: int | None,
    gpu_ids: tuple[int, ...],
    addresses: tuple[Bdf, ...],
    partition: int | None,
    request_id: str,
    shape: str,
    vm: str | None,
    labels: tuple[tuple[str, str], ...],
    **others: Any,
) -> Request:
    if [count is not None, bool(gpu_ids), bool(addresses), partition is not None].count(True) != 1:
        raise click.UsageError("Give one of --count, --gpu-ids, --addresses and --partition.")
    if not request_id:
        import uuid

        request_id = str(uuid.uuid4())
    return Request(
        request_id=request_id,
        count=count,
        gpu_ids=gpu_ids,
        addresses=addresses,
        partition_id=partition,
        shape=Shape(shape),
        vm_uuid=vm or "",
        labels=dict(labels),
        **others,
    ).check()


@click.command()
@click.argument("lease_id", metavar="LEASE", type=params.LEASE_ID)
@options.owner
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until its GPUs are free.")
@_style
@options.connection
def release(connection: Connection, lease_id: str, owner: str, style: str, *, wait: bool) -> None:
    """End the lease LEASE.

    Never while a VM holds its GPUs.
    """
    with dialled(connection) as (client, timeout):
        leased = client.release(lease_id, owner=owner, wait=wait, timeout=timeout)
    click.echo(leaserender.lease(leased, style, first=leaserender.sentence(leased.lease)), nl=False)


@click.group()
def lease() -> None:
    """Show and change leases."""


@lease.command("list")
@options.output("table", "wide", "json", "yaml", "csv", "name")
@click.option("--no-headers", is_flag=True, help="Leave out the header of table, wide and csv.")
@click.option("--owner", default="", metavar="NAME", help="Only those of this owner.")
@click.option("--all", "over", is_flag=True, help="Also those that are over, as far as they are kept.")
@options.connection
def list_command(connection: Connection, style: str, owner: str, *, no_headers: bool, over: bool) -> None:
    """List leases, oldest first."""
    with dialled(connection) as (client, timeout):
        listed = client.leases(owner=owner, over=over, timeout=timeout)
    click.echo(leaserender.leases(listed, style, show_headers=not no_headers), nl=False)


@lease.command()
@click.argument("lease_id", metavar="LEASE", type=params.LEASE_ID)
@_style
@options.connection
def show(connection: Connection, lease_id: str, style: str) -> None:
    """Show all about the lease LEASE.

    With its GPUs as a VM manager needs them.
    """
    with dialled(connection) as (client, timeout):
        leased = client.lease(lease_id, timeout=timeout)
    click.echo(leaserender.lease(leased, style), nl=False)


@lease.command()
@click.argument("lease_id", metavar="LEASE", type=params.LEASE_ID)
@options.owner
@click.option("--etag", default="", metavar="ETAG", help="Refuse if it was changed since it had this etag.")
@click.option("--vm", type=params.UUID, metavar="UUID", help="The VM that it is for.")
@click.option("--no-vm", is_flag=True, help="It is for no VM in particular.")
@click.option("--lifetime", type=params.DURATION, metavar="TIME", help="When it ends, from now, if no VM starts.")
@click.option("--no-expiry", is_flag=True, help="It never ends by itself.")
@_labels
@click.option("--no-labels", is_flag=True, help="It has no labels.")
@_style
@options.connection
def update(connection: Connection, lease_id: str, owner: str, style: str, etag: str, **given: Any) -> None:
    """Change the VM, the expiry or the labels of the lease LEASE.

    Labels take the place of all before. What is not given stays as it is.
    """
    changes = _changes(**given)
    with dialled(connection) as (client, timeout):
        leased = client.update(lease_id, etag=etag, owner=owner, timeout=timeout, **changes)
    click.echo(leaserender.lease(leased, style), nl=False)


@lease.command()
@click.argument("lease_id", metavar="LEASE", type=params.LEASE_ID)
@options.owner
@click.option("--hand-over", is_flag=True, help="Then let its VM open them, which must start at once.")
@_style
@options.connection
def prepare(connection: Connection, lease_id: str, owner: str, style: str, *, hand_over: bool) -> None:
    """Get the GPUs of the lease LEASE ready for its VM.

    They are bound to vfio-pci, and kept from everybody. Libvirt's hook does this, and hands them over, by itself; what
    starts VMs without libvirt does so with --hand-over right before each start.
    """
    with dialled(connection) as (client, timeout):
        leased = client.prepare(lease_id, owner=owner, timeout=timeout)
        if hand_over:
            leased = client.hand_over(lease_id, owner=owner, timeout=timeout)
    click.echo(leaserender.lease(leased, style), nl=False)


def _changes(
    *,
    vm: str | None,
    no_vm: bool,
    lifetime: float | None,
    no_expiry: bool,
    labels: tuple[tuple[str, str], ...],
    no_labels: bool,
) -> dict[str, Any]:
    """What is to be changed."""
    if (vm and no_vm) or (lifetime and no_expiry) or (labels and no_labels):
        raise click.UsageError("An option and its --no- form exclude each other.")
    found: dict[str, Any] = {}
    if vm or no_vm:
        found["vm_uuid"] = vm or ""
    if lifetime or no_expiry:
        found["lifetime"] = lifetime or 0.0
    if labels or no_labels:
        found["labels"] = dict(labels)
    if not found:
        raise click.UsageError("Give what is to be changed.")
    return found
