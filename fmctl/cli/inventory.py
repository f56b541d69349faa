# SPDX-License-Identifier: Apache-2.0
"""`fmctl inventory`: the board's PCI functions, and what is wrong with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from fmctl.cli import failure, options, render
from fmctl.cli import place as at
from fmctl.cli.place import Place
from fmctl.cli.table import table

if TYPE_CHECKING:
    from fmctl.core.inventory import Device, Inventory
    from fmctl.core.pci import Link

_HEADERS = ("ROLE", "ADDRESS", "MODEL", "DRIVER", "IOMMU GROUP", "NUMA NODE")
_WIDE_HEADERS = ("ID", "LINK", "RESET METHODS", "PORT")


@click.command()
@options.output("table", "wide", "json", "yaml", "name")
@click.option("--no-headers", is_flag=True, help="Leave out the header of table and wide.")
@at.place
@click.pass_context
def inventory(context: click.Context, place: Place, style: str, *, no_headers: bool) -> None:
    """List the board's PCI functions on this host.

    They are its GPUs, NVSwitches and memory controllers. Exit status 6 tells that something is missing, extra, dead or
    degraded; standard error says what.
    """
    found = place.host().inventory()
    click.echo(_shown(found, style, show_headers=not no_headers), nl=False)
    for problem in found.problems:
        click.echo(f"fmctl: {problem.fault.value}: {problem.text}", err=True)
    if found.problems:
        context.exit(failure.DRIFT)


def _shown(found: Inventory, style: str, *, show_headers: bool) -> str:
    if style == "name":
        return "".join(f"{device.role.value}/{device.function.bdf}\n" for device in found.devices)
    if style in ("json", "yaml"):
        problems = [{"fault": problem.fault.value, "text": problem.text} for problem in found.problems]
        plain = {"platform": found.platform.name, "devices": [_plain(d) for d in found.devices], "problems": problems}
        return render.document(plain, style)
    wide = style == "wide"
    rows = [[*_cells(device), *_wide_cells(device)] if wide else _cells(device) for device in found.devices]
    return table([*_HEADERS, *_WIDE_HEADERS] if wide else _HEADERS, rows, show_headers=show_headers)


def _cells(device: Device) -> list[str]:
    function = device.function
    group, node = function.iommu_group, function.numa_node
    return [
        device.role.value,
        str(function.bdf),
        device.model,
        function.driver or "-",
        "-" if group is None else str(group),
        "-" if node is None else str(node),
    ]


def _wide_cells(device: Device) -> list[str]:
    state, ports = device.state, device.function.ports
    link = state.link if state else None
    return [
        str(device.function.id),
        f"{link.speed:g} GT/s x{link.width}" if link else "-",
        ",".join(state.reset_methods) if state and state.reset_methods else "-",
        str(ports[-1]) if ports else "-",
    ]


def _plain(device: Device) -> dict[str, Any]:
    function, state = device.function, device.state
    link = state.link if state else None
    return {
        "role": device.role.value,
        "address": str(function.bdf),
        "model": device.model,
        "id": str(function.id),
        "subsystem": str(function.subsystem) if function.subsystem else None,
        "driver": function.driver or None,
        "iommu_group": function.iommu_group,
        "numa_node": function.numa_node,
        "ports": [str(port) for port in function.ports],
        "answers": bool(state and state.answers),
        "link": _link(link) if link else None,
        "bars": list(state.bars) if state else [],
        "reset_methods": list(state.reset_methods) if state else [],
    }


def _link(link: Link) -> dict[str, float]:
    return {"gts": link.speed, "lanes": link.width, "max_gts": link.max_speed, "max_lanes": link.max_width}
