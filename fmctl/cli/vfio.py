# SPDX-License-Identifier: Apache-2.0
"""`fmctl vfio`: which driver each function of the board has, and changing it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from fmctl.cli import options, params, render
from fmctl.cli import place as at
from fmctl.cli.place import Place
from fmctl.cli.table import table
from fmctl.core import vfio as core
from fmctl.core.errors import BadRequest
from fmctl.core.inventory import Role
from fmctl.core.pci import Bdf
from fmctl.core.vfio import Binding

if TYPE_CHECKING:
    from fmctl.core.inventory import Inventory
    from fmctl.core.vfio import Step, Usage

_HEADERS = ("ROLE", "ADDRESS", "DRIVER", "GROUP", "HELD BY")


class _Steps:
    """Prints each step, and tells at the end if there was none."""

    def __init__(self) -> None:
        self._count = 0

    def tell(self, step: Step) -> None:
        self._count += 1
        click.echo(str(step))

    def conclude(self) -> None:
        if not self._count:
            click.echo("nothing to do")


_gpus = click.option(
    "--gpus", type=params.ADDRESSES, default=(), metavar="ADDRESSES", help="Only these GPUs: 0000:17:00.0,0000:34:00.0."
)
_dry_run = click.option("--dry-run", is_flag=True, help="Print the steps, and take none.")


@click.group()
def vfio() -> None:
    """Give the board's functions to vfio-pci, and take them back.

    No daemon is needed. What a VM holds is never touched: exit status 4 names it.
    """


@vfio.command()
@options.output("table", "json", "yaml", "name")
@click.option("--no-headers", is_flag=True, help="Leave out the table's headers.")
@at.place
def status(place: Place, style: str, *, no_headers: bool) -> None:
    """Show each function's driver, and who holds its IOMMU group.

    A parked function has no driver, and none may claim it until it is bound.
    """
    host = place.host()
    drivers, board = host.vfio(tell=_Steps().tell), host.inventory()
    click.echo(_shown(board, drivers.status(board), style, show_headers=not no_headers), nl=False)


@vfio.command()
@_gpus
@_dry_run
@at.place
def bind(place: Place, gpus: tuple[Bdf, ...], *, dry_run: bool) -> None:
    """Bind what the Service VM gets to vfio-pci, and park the GPUs.

    The Service VM gets the NVSwitches and memory controllers. GPUs that a VM holds stay as they are. With --gpus these
    are bound for a VM, and nothing else is touched.
    """
    host, steps = place.host(), _Steps()
    drivers, board = host.vfio(tell=steps.tell, dry_run=dry_run), host.inventory()
    if gpus:
        drivers.bind(board, _only_gpus(board, gpus))
    else:
        drivers.bind(board, _addresses(board, [Role.NVSWITCH, Role.MEMORY_CONTROLLER]))
        for usage in drivers.park_unheld(board, _addresses(board, [Role.GPU])):
            click.echo(f"fmctl: {usage}, and stays as it is", err=True)
    steps.conclude()


@vfio.command()
@_gpus
@_dry_run
@at.place
def unbind(place: Place, gpus: tuple[Bdf, ...], *, dry_run: bool) -> None:
    """Park every function that no VM holds.

    Nothing goes back to a host driver. Exit status 4 names what is held.
    """
    host, steps = place.host(), _Steps()
    drivers, board = host.vfio(tell=steps.tell, dry_run=dry_run), host.inventory()
    held = drivers.park_unheld(board, _only_gpus(board, gpus) if gpus else _addresses(board, Role))
    steps.conclude()
    core.refuse_held(held)


def _addresses(board: Inventory, roles: Iterable[Role]) -> tuple[Bdf, ...]:
    wanted = set(roles)
    return tuple(device.function.bdf for device in board.devices if device.role in wanted)


def _only_gpus(board: Inventory, wanted: tuple[Bdf, ...]) -> tuple[Bdf, ...]:
    known = _addresses(board, [Role.GPU])
    for bdf in wanted:
        if bdf not in known:
            raise BadRequest(f"{bdf} is no GPU of the board", why=board.platform.title, fix="see `fmctl vfio status`")
    return wanted


def _shown(board: Inventory, usages: tuple[Usage, ...], style: str, *, show_headers: bool) -> str:
    if style == "name":
        return "".join(f"{usage.role.value}/{usage.function.bdf}\n" for usage in usages)
    if style == "table":
        return table(_HEADERS, [_cells(usage) for usage in usages], show_headers=show_headers)
    return render.document({"platform": board.platform.name, "functions": [_plain(u) for u in usages]}, style)


def _cells(usage: Usage) -> list[str]:
    function = usage.function
    none = "-" if usage.binding is Binding.FREE else usage.binding.value
    group = function.iommu_group
    holders = " ".join(f"{holder.command}[{holder.pid}]" for holder in usage.holders or ())
    return [
        usage.role.value,
        str(function.bdf),
        function.driver or none,
        "-" if group is None else str(group),
        (holders or "unseen") if usage.is_held else "-",
    ]


def _plain(usage: Usage) -> dict[str, Any]:
    return {
        "role": usage.role.value,
        "address": str(usage.function.bdf),
        "binding": usage.binding.value,
        "driver": usage.function.driver or None,
        "iommu_group": usage.function.iommu_group,
        "held": usage.is_held,
        "holders": [{"pid": holder.pid, "command": holder.command} for holder in usage.holders or ()],
    }
