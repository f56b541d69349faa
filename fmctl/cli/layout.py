# SPDX-License-Identifier: Apache-2.0
"""`fmctl layout`: which partitions of the table this host uses, and what is not so yet."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fmctl.cli import failure, options, render
from fmctl.cli.leaserender import ids
from fmctl.cli.options import DEFAULT_ADDRESS, DEFAULT_TIMEOUT, Connection
from fmctl.cli.table import table
from fmctl.core.layout import NONE, Layout, LayoutState

if TYPE_CHECKING:
    from fmctl.rpc.layout_client import LayoutClient

F = TypeVar("F", bound=Callable[..., Any])


class LayoutName(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.5 on
    """`4x2`, `4+2+1+1` or `none`."""

    name = "layout"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Read the layout; fails as a usage error."""
        try:
            return NONE if value == NONE else str(Layout.parse(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _layout(command: F) -> F:
    """Add LAYOUT, and whether it is kept active."""
    kept = click.option(
        "--keep-active/--no-keep-active",
        default=None,
        help="Whether its partitions are active while nobody leases them.  [default: as the settings say]",
    )
    return click.argument("name", metavar="[LAYOUT]", type=LayoutName(), required=False)(kept(command))


@click.group()
def layout() -> None:
    """Show, compare and set which partitions are used.

    A layout such as 4x2 (four partitions of two GPUs) or 4+2+1+1 lets new leases have its partitions alone.
    """


@layout.command()
@options.output("text", "json", "yaml")
@options.connection
def show(connection: Connection, style: str) -> None:
    """Show the layout in force, and who holds what of it."""
    with _dialled(connection) as (client, timeout):
        found = client.layout(timeout=timeout)
    click.echo(_shown(found) if style == "text" else render.document(_plain(found), style), nl=False)


@layout.command()
@_layout
@options.output("text", "json", "yaml")
@options.connection
@click.pass_context
def diff(
    context: click.Context, connection: Connection, name: str | None, style: str, *, keep_active: bool | None
) -> None:
    """Tell how the host differs from its layout.

    Or from LAYOUT, as it would be after `fmctl layout apply LAYOUT`. Exit status 6 tells that it differs.
    """
    _refuse_flag_alone(name, keep_active=keep_active)
    with _dialled(connection) as (client, timeout):
        found = client.layout(name or "", keep_active=keep_active, timeout=timeout)
    click.echo(_differences(found) if style == "text" else render.document(_plain(found), style), nl=False)
    if found.differences:
        context.exit(failure.DRIFT)


@layout.command()
@_layout
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until what can be done now is done.")
@click.option("--dry-run", is_flag=True, help="Change nothing, and tell how the host differs from it.")
@options.output("text", "json", "yaml")
@options.connection
@click.pass_context
def apply(
    context: click.Context,
    connection: Connection,
    name: str | None,
    style: str,
    *,
    keep_active: bool | None,
    wait: bool,
    dry_run: bool,
) -> None:
    """Let only the partitions of LAYOUT be used.

    Without LAYOUT that of the settings; none ends it. What tenants hold stays theirs until they release it. Exit status
    6 tells that the host differs from it still.
    """
    with _dialled(connection) as (client, timeout):
        found = client.apply(
            name or "",
            keep_active=keep_active,
            actor=options.calling_user(),
            timeout=timeout,
            dry_run=dry_run,
            wait=wait,
        )
    click.echo(_differences(found) if style == "text" else render.document(_plain(found), style), nl=False)
    if found.differences:
        context.exit(failure.DRIFT)


def _refuse_flag_alone(name: str | None, *, keep_active: bool | None) -> None:
    if name is None and keep_active is not None:
        raise click.UsageError("--keep-active and --no-keep-active go with LAYOUT.")


@contextlib.contextmanager
def _dialled(connection: Connection) -> Iterator[tuple[LayoutClient, float]]:
    from fmctl.rpc.layout_client import LayoutClient

    with contextlib.closing(LayoutClient(connection.address or DEFAULT_ADDRESS)) as client:
        yield client, connection.timeout or DEFAULT_TIMEOUT


def _shown(found: LayoutState) -> str:
    rows = [
        [str(row.partition_id), "Active" if row.active else "Inactive", ids(row.gpus), row.owner or "-"]
        for row in found.rows
    ]
    partitions = f"\n{table(('PARTITION', 'STATUS', 'GPUs', 'OWNER'), rows)}" if rows else ""
    settings = f"settings    {found.settings}\n" if found.settings else ""
    return f"layout      {found.applied or NONE}\n{settings}{partitions}"


def _differences(found: LayoutState) -> str:
    same = f"this host is as the layout {found.shown} has it" if found.shown else "this host has no layout"
    lines = found.differences or (same,)
    return "".join(f"{line}\n" for line in lines)


def _plain(found: LayoutState) -> dict[str, Any]:
    rows = [
        {"partition": row.partition_id, "gpus": list(row.gpus), "active": row.active, "owner": row.owner}
        for row in found.rows
    ]
    return {**vars(found), "rows": rows, "differences": list(found.differences)}
