# SPDX-License-Identifier: Apache-2.0
"""`fmctl service-vm`: the Service VM's document. `cli.lifecycle` starts and ends the Service VM."""

from __future__ import annotations

from pathlib import Path

import click

from fmctl.cli import config, lifecycle
from fmctl.core.settings import DaemonSettings


@click.group("service-vm")
def service_vm() -> None:
    """Show and run the Service VM, which has the NVSwitches."""


for _command in (lifecycle.start, lifecycle.stop, lifecycle.destroy, lifecycle.console):
    service_vm.add_command(_command)


@service_vm.command()
@config.config_file
@click.option("--platform", default="", metavar="NAME|FILE", help="The board.  [default: what the host has]")
@click.option("--simulate", metavar="NAME|FILE", help="Render for a pretended host with this board.")
@click.option("--root", type=click.Path(path_type=Path), default="/", hidden=True)
def render(config_file: Path | None, platform: str, simulate: str | None, root: Path) -> None:
    """Print the libvirt document that the Service VM would be started with now.

    The daemon makes it anew at each start. Standard error tells what the board lacks of what the Service VM gets.
    """
    if simulate and platform:
        raise click.UsageError("--simulate brings its own --platform.")
    from fmctl import local
    from fmctl.core.inventory import Role

    settings = config.read(DaemonSettings, config_file)
    if simulate:
        found = local.simulated_inventory(simulate)
        rendered = local.simulated_service_vm(settings, found)
    else:
        found = local.inventory(platform or settings.platform, root / "sys")
        rendered = local.service_vm(settings, found)
    for problem in found.problems:
        if problem.role is not Role.GPU:
            click.echo(f"fmctl: {problem.fault.value}: {problem.text}", err=True)
    click.echo(rendered.xml, nl=False)
