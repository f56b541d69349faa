# SPDX-License-Identifier: Apache-2.0
"""`fmctl list`, `activate` and `deactivate`; `cli.breakglass` does the same at the agent itself."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fmctl.cli import options, render
from fmctl.cli.options import Connection

if TYPE_CHECKING:
    from fmctl.core.address import Address
    from fmctl.rpc.client import ControllerClient

F = TypeVar("F", bound=Callable[..., Any])


@contextlib.contextmanager
def dialled(connection: Connection) -> Iterator[tuple[ControllerClient, float]]:
    """The daemon, and the seconds that a call to it may take."""
    from fmctl.rpc.client import ControllerClient

    with contextlib.closing(ControllerClient(connection.address or options.DEFAULT_ADDRESS)) as client:
        yield client, connection.timeout or options.DEFAULT_TIMEOUT


@dataclass(frozen=True)
class Glass:
    """Whether a person changes partitions past the daemon, and why."""

    broken: bool
    reason: str


def _glass(command: F) -> F:
    """Add what a change at the agent itself takes."""

    @click.option("--break-glass", is_flag=True, help="With --agent: past the daemon, which must not run.")
    @click.option("--reason", default="", metavar="TEXT", help="With --break-glass: why; it is recorded.")
    @functools.wraps(command)
    def wrapped(*args: Any, break_glass: bool, reason: str, **kwargs: Any) -> Any:
        return command(*args, glass=Glass(break_glass, reason.strip()), **kwargs)

    return wrapped  # type: ignore[return-value]


def _past_daemon(glass: Glass, connection: Connection) -> Address | None:
    """The agent where the change goes past the daemon; raises UsageError where only half of that was said."""
    if not connection.agent:
        if glass.broken or glass.reason:
            raise click.UsageError("--break-glass and --reason go with `fmctl --agent ADDRESS`.")
        return None
    if not glass.broken or not glass.reason:
        raise click.UsageError(
            "Give --break-glass and --reason TEXT: the agent knows no leases and no running VMs, so a change at it goes"
            " past every check of fmctld's. It is recorded with your name and that reason."
        )
    return connection.agent


@click.command("list")
@options.output("table", "wide", "json", "yaml", "csv", "name", "fmpm")
@click.option("--no-headers", is_flag=True, help="Leave out the header of table, wide and csv.")
@options.connection
def list_command(connection: Connection, style: str, *, no_headers: bool) -> None:
    """List the partitions of the board, with their states.

    fmpm is the JSON of NVIDIA's own client.
    """
    if connection.agent:
        from fmctl.cli import breakglass

        listed = breakglass.listed(connection.agent, connection.timeout)
    else:
        with dialled(connection) as (client, timeout):
            listed = client.list_partitions(timeout=timeout)
    click.echo(render.partitions(listed, style, show_headers=not no_headers), nl=False)


@click.command()
@click.argument("partition_id", metavar="[ID]", type=options.PARTITION_ID, required=False)
@click.option("--gpu-ids", type=options.GPU_IDS, metavar="IDS", help="Exactly these GPUs, by physical id: 1,3.")
@options.owner
@_glass
@options.output("text", "json", "yaml", "name")
@options.connection
def activate(
    connection: Connection,
    partition_id: int | None,
    gpu_ids: tuple[int, ...] | None,
    owner: str,
    glass: Glass,
    style: str,
) -> None:
    """Activate a partition by its ID, or by its GPUs.

    With --gpu-ids it is the one that has exactly these.
    """
    if (partition_id is None) == (gpu_ids is None):
        raise click.UsageError("Give either a partition ID or --gpu-ids.")
    if agent := _past_daemon(glass, connection):
        from fmctl.cli import breakglass

        changed = breakglass.activate(agent, connection.timeout, partition_id, gpu_ids or (), glass.reason)
        click.echo(render.changed(changed, style), nl=False)
        return
    with dialled(connection) as (client, timeout):
        changed = client.activate(owner, partition_id=partition_id, gpu_ids=gpu_ids or (), timeout=timeout)
    click.echo(render.changed(changed, style), nl=False)


@click.command()
@click.argument("partition_id", metavar="ID", type=options.PARTITION_ID)
@options.owner
@click.option("--force", is_flag=True, help="Also another owner's, yet never under a running VM.")
@_glass
@options.output("text", "json", "yaml", "name")
@options.connection
def deactivate(connection: Connection, partition_id: int, owner: str, glass: Glass, style: str, *, force: bool) -> None:
    """Deactivate the partition ID."""
    if agent := _past_daemon(glass, connection):
        from fmctl.cli import breakglass

        changed = breakglass.deactivate(agent, connection.timeout, partition_id, glass.reason)
        click.echo(render.changed(changed, style), nl=False)
        return
    with dialled(connection) as (client, timeout):
        changed = client.deactivate(owner, partition_id, timeout=timeout, force=force)
    click.echo(render.changed(changed, style), nl=False)
