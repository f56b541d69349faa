# SPDX-License-Identifier: Apache-2.0
"""`fmctl platform`: the boards that fmctl knows, and checking a file that describes another."""

from __future__ import annotations

from pathlib import Path

import click

from fmctl import platforms
from fmctl.cli import options, render
from fmctl.cli.table import table
from fmctl.core import schema
from fmctl.core.platform import Platform


@click.group()
def platform() -> None:
    """Show boards, and check files that describe one."""


@platform.command("list")
@options.output("table", "json", "yaml", "name")
@click.option("--no-headers", is_flag=True, help="Leave out the table's headers.")
def list_command(style: str, *, no_headers: bool) -> None:
    """List the boards that come with fmctl."""
    boards = platforms.every()
    if style == "table":
        click.echo(_overview(boards, show_headers=not no_headers), nl=False)
    elif style == "name":
        click.echo("\n".join(board.name for board in boards))
    else:
        click.echo(render.document({"platforms": schema.plain(boards)}, style), nl=False)


@platform.command()
@click.argument("board", metavar="NAME|FILE")
@options.output("yaml", "json")
def show(board: str, style: str) -> None:
    """Show one board, by its name or its file.

    What has a slash or ends in .yaml is a file.
    """
    click.echo(render.document(schema.plain(platforms.resolve(board)), style), nl=False)


@platform.command()
@click.argument("file", type=click.Path(path_type=Path))
def validate(file: Path) -> None:
    """Check a platform file."""
    board = platforms.read(file)
    gpus, partitions = len(board.physical_ids), len(board.partitions)
    click.echo(f"{file} is a valid platform file: {board.name}, {gpus} GPUs, {partitions} partitions")


def _overview(boards: tuple[Platform, ...], *, show_headers: bool) -> str:
    rows = [
        (board.name, board.title, str(len(board.physical_ids)), str(board.nvlink_generation), board.hardware.value)
        for board in boards
    ]
    return table(("NAME", "TITLE", "GPUs", "NVLINK", "HARDWARE"), rows, show_headers=show_headers)
