# SPDX-License-Identifier: Apache-2.0
"""`fmctl list`, `activate` and `deactivate`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from fmctl.cli import options, render
from fmctl.cli.options import Connection

if TYPE_CHECKING:
    from fmctl.rpc.client import ControllerClient


@contextlib.contextmanager
def dialled(connection: Connection) -> Iterator[tuple[ControllerClient, float]]:
    """The daemon, and the seconds that a call to it may take."""
    from fmctl.rpc.client import ControllerClient

    with contextlib.closing(ControllerClient(connection.address or options.DEFAULT_ADDRESS)) as client:
        yield client, connection.timeout or options.DEFAULT_TIMEOUT


@click.command("list")
@options.output("table", "wide", "json", "yaml", "csv", "name", "fmpm")
@click.option("--no-headers", is_flag=True, help="Leave out the header of table, wide and csv.")
@options.connection
def list_command(connection: Connection, style: str, *, no_headers: bool) -> None:
    """List the partitions of the board, with their states.

    fmpm is the JSON of NVIDIA's own client.
    """
    with dialled(connection) as (client, timeout):
        listed = client.list_partitions(timeout=timeout)
    click.echo(render.partitions(listed, style, show_headers=not no_headers), nl=False)


@click.command()
@click.argument("partition_id", metavar="[ID]", type=options.PARTITION_ID, required=False)
@click.option("--gpu-ids", type=options.GPU_IDS, metavar="IDS", help="Exactly these GPUs, by physical id: 1,3.")
@options.owner
@options.output("text", "json", "yaml", "name")
@options.connection
def activate(
    connection: Connection, partition_id: int | None, gpu_ids: tuple[int, ...] | None, owner: str, style: str
) -> None:
    """Activate a partition by its ID, or by its GPUs.

    With --gpu-ids it is the one that has exactly these.
    """
    if (partition_id is None) == (gpu_ids is None):
        raise click.UsageError("Give either a partition ID or --gpu-ids.")
    with dialled(connection) as (client, timeout):
        changed = client.activate(owner, partition_id=partition_id, gpu_ids=gpu_ids or (), timeout=timeout)
    click.echo(render.changed(changed, style), nl=False)


@click.command()
@click.argument("partition_id", metavar="ID", type=options.PARTITION_ID)
@options.owner
@click.option("--force", is_flag=True, help="Also another owner's, yet never under a running VM.")
@options.output("text", "json", "yaml", "name")
@options.connection
def deactivate(connection: Connection, partition_id: int, owner: str, style: str, *, force: bool) -> None:
    """Deactivate the partition ID."""
    with dialled(connection) as (client, timeout):
        changed = client.deactivate(owner, partition_id, timeout=timeout, force=force)
    click.echo(render.changed(changed, style), nl=False)
