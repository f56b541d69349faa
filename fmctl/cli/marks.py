# SPDX-License-Identifier: Apache-2.0
"""`fmctl gpu` and `fmctl partition`: who has what, and what a person sets aside."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fmctl.cli import markrender, options
from fmctl.cli.options import Connection

if TYPE_CHECKING:
    from fmctl.rpc.mark_client import MarkClient

F = TypeVar("F", bound=Callable[..., Any])

_reason = click.option("--reason", required=True, metavar="TEXT", help="Why; it is shown, and kept in the journal.")
_any_reason = click.option("--reason", default="", metavar="TEXT", help="Why; it is kept in the journal.")
_gpu_id = click.argument("physical_id", metavar="ID", type=options.PARTITION_ID)
_partition_id = click.argument("partition_id", metavar="ID", type=options.PARTITION_ID)
_list_style = options.output("table", "wide", "json", "yaml")
_style = options.output("text", "json", "yaml")


@contextlib.contextmanager
def _dialled(connection: Connection) -> Iterator[tuple[MarkClient, float]]:
    """The daemon, and the seconds that a call may take."""
    from fmctl.rpc.mark_client import MarkClient

    with contextlib.closing(MarkClient(connection.address or options.DEFAULT_ADDRESS)) as client:
        yield client, connection.timeout or options.DEFAULT_TIMEOUT


@click.group()
def gpu() -> None:
    """Show GPUs and who has them, and set them aside."""


@gpu.command("list")
@_list_style
@options.connection
def gpu_list(connection: Connection, style: str) -> None:
    """List the GPUs of this host."""
    with _dialled(connection) as (client, timeout):
        found, simulated = client.gpus(timeout=timeout)
    click.echo(markrender.gpus(found, style, simulated=simulated), nl=False)


@gpu.command("show")
@_gpu_id
@_style
@options.connection
def gpu_show(connection: Connection, physical_id: int, style: str) -> None:
    """Show the GPU with the physical id ID."""
    with _dialled(connection) as (client, timeout):
        (found,), _ = client.gpus(physical_id, timeout=timeout)
    click.echo(markrender.gpu(found, style), nl=False)


@gpu.command("cordon")
@_gpu_id
@_reason
@options.connection
def gpu_cordon(connection: Connection, physical_id: int, reason: str) -> None:
    """Grant the GPU ID to nobody, nor a partition that has it.

    A lease that has it goes on, and can be ended.
    """
    with _dialled(connection) as (client, timeout):
        client.cordon_gpu(physical_id, reason, actor=options.calling_user(), timeout=timeout)
    click.echo(f"GPU {physical_id} is cordoned")


@gpu.command("uncordon")
@_gpu_id
@_any_reason
@options.connection
def gpu_uncordon(connection: Connection, physical_id: int, reason: str) -> None:
    """Grant the GPU ID again."""
    with _dialled(connection) as (client, timeout):
        client.uncordon_gpu(physical_id, reason, actor=options.calling_user(), timeout=timeout)
    click.echo(f"GPU {physical_id} is not cordoned")


@gpu.command()
@_gpu_id
@_reason
@options.connection
def unquarantine(connection: Connection, physical_id: int, reason: str) -> None:
    """Grant the GPU ID again, which could not be cleaned.

    You vouch for it: say in --reason what was done. Exit status 4 while a VM has it open.
    """
    with _dialled(connection) as (client, timeout):
        client.unquarantine(physical_id, reason, actor=options.calling_user(), timeout=timeout)
    click.echo(f"GPU {physical_id} is not in quarantine")


@click.group()
def partition() -> None:
    """Show partitions and who has them, and set them aside."""


@partition.command("list")
@_list_style
@options.connection
def partition_list(connection: Connection, style: str) -> None:
    """List the partitions, and what is set aside."""
    with _dialled(connection) as (client, timeout):
        found, simulated = client.partitions(timeout=timeout)
    click.echo(markrender.partitions(found, style, simulated=simulated), nl=False)


@partition.command("show")
@_partition_id
@_style
@options.connection
def partition_show(connection: Connection, partition_id: int, style: str) -> None:
    """Show the partition ID, and all that keeps it from being granted."""
    with _dialled(connection) as (client, timeout):
        (found,), _ = client.partitions(partition_id, timeout=timeout)
    click.echo(markrender.partition(found, style), nl=False)


@partition.command("cordon")
@_partition_id
@_reason
@options.connection
def partition_cordon(connection: Connection, partition_id: int, reason: str) -> None:
    """Grant the partition ID to nobody.

    A lease that has it goes on, and can be ended.
    """
    with _dialled(connection) as (client, timeout):
        client.cordon_partition(partition_id, reason, actor=options.calling_user(), timeout=timeout)
    click.echo(f"partition {partition_id} is cordoned")


@partition.command("uncordon")
@_partition_id
@_any_reason
@options.connection
def partition_uncordon(connection: Connection, partition_id: int, reason: str) -> None:
    """Grant the partition ID again.

    Also where fmctl cordoned it because Fabric Manager found NVLink errors on it.
    """
    with _dialled(connection) as (client, timeout):
        client.uncordon_partition(partition_id, reason, actor=options.calling_user(), timeout=timeout)
    click.echo(f"partition {partition_id} is not cordoned")
