# SPDX-License-Identifier: Apache-2.0
"""`fmctl service-vm`: the Service VM's document. `cli.lifecycle` starts and ends the Service VM."""

from __future__ import annotations

from pathlib import Path

import click

from fmctl.cli import config, lifecycle, versions
from fmctl.cli import place as at
from fmctl.cli.place import Place
from fmctl.core.settings import DaemonSettings


@click.group("service-vm")
def service_vm() -> None:
    """Show and run the Service VM, which has the NVSwitches."""


for _command in (*lifecycle.COMMANDS, versions.check):
    service_vm.add_command(_command)


@service_vm.command()
@versions.image_option
@config.config_file
@at.place
def render(place: Place, image: str, config_file: Path | None) -> None:
    """Print the Service VM's libvirt document.

    It is what a start would take now: the daemon makes it anew each time. Standard error tells what the board lacks of
    what the Service VM gets.
    """
    from fmctl.core.inventory import Role

    settings = config.read(DaemonSettings, config_file)
    host = place.host(settings)
    found = host.inventory()
    boots_image = image or host.images(settings) is not None
    rendered = host.service_vm(settings, found, versions.image_of(image, settings) if boots_image else None)
    for problem in found.problems:
        if problem.role is not Role.GPU:
            click.echo(f"fmctl: {problem.fault.value}: {problem.text}", err=True)
    click.echo(rendered.xml, nl=False)
