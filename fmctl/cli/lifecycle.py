# SPDX-License-Identifier: Apache-2.0
"""`fmctl service-vm start`, `stop`, `destroy`, `upgrade`, `console` and `log`; `cli.servicevm` holds the group."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from fmctl.cli import options, render
from fmctl.cli.options import Connection
from fmctl.cli.partitions import dialled
from fmctl.cli.status import service_vm_plain
from fmctl.core.answers import ServiceVmStatus
from fmctl.core.loglines import KeptLog

UPGRADE_TIMEOUT = 900.0
"""Seconds for an upgrade: twice the time that an image may take to be ready, since going back takes as long."""

F = TypeVar("F", bound=Callable[..., Any])


def _interrupt_tenants(command: F) -> F:
    return click.option(
        "--interrupt-tenants",
        is_flag=True,
        help="Do so even where a running VM holds two or more GPUs, whose NVLinks then fail.",
    )(command)


@click.command()
@_interrupt_tenants
@options.output("text", "json", "yaml")
@options.connection
def start(connection: Connection, style: str, *, interrupt_tenants: bool) -> None:
    """Start the Service VM, and keep it running.

    Returns once its domain runs; `fmctl wait` waits until it is ready. Exit status 4 where that would interrupt a VM.
    """
    with dialled(connection) as (client, timeout):
        _show(client.start_service_vm(interrupt_tenants=interrupt_tenants, timeout=timeout), style)


@click.command()
@_interrupt_tenants
@options.output("text", "json", "yaml")
@options.connection
def stop(connection: Connection, style: str, *, interrupt_tenants: bool) -> None:
    """Shut the Service VM down.

    It stays so until it is started or the daemon is. Exit status 4 where that would interrupt a VM.
    """
    with dialled(connection) as (client, timeout):
        _show(client.stop_service_vm(interrupt_tenants=interrupt_tenants, timeout=timeout), style)


@click.command()
@_interrupt_tenants
@options.output("text", "json", "yaml")
@options.connection
def destroy(connection: Connection, style: str, *, interrupt_tenants: bool) -> None:
    """End the Service VM at once, as if its power failed.

    It stays so until it is started or the daemon is. Exit status 4 where that would interrupt a VM.
    """
    with dialled(connection) as (client, timeout):
        _show(client.destroy_service_vm(interrupt_tenants=interrupt_tenants, timeout=timeout), style)


@click.command()
@click.argument("image")
@_interrupt_tenants
@options.output("text", "json", "yaml")
@options.connection
def upgrade(connection: Connection, image: str, style: str, *, interrupt_tenants: bool) -> None:
    """Let the Service VM take another image of the store.

    Where the agent alone differs it is replaced while the Service VM runs; else the Service VM is started anew, which
    exits with 4 where that would interrupt a VM. Returns once IMAGE is ready; where it does not become so, the image
    before is back and the exit status is 1. Waits 15 minutes unless --timeout says otherwise.
    """
    patient = replace(connection, timeout=connection.timeout or UPGRADE_TIMEOUT)
    with dialled(patient) as (client, timeout):
        answer = client.upgrade_service_vm(image, interrupt_tenants=interrupt_tenants, timeout=timeout)
    _show(answer, style)


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written, until Ctrl-C.")
@click.option("-n", "--lines", type=click.IntRange(0), default=50, show_default=True, help="How many last lines.")
@options.connection
def console(connection: Connection, lines: int, *, follow: bool) -> None:
    """Show what the Service VM wrote to its console."""
    with dialled(connection) as (client, timeout):
        log = client.status(timeout=timeout).service_vm.console_log
    if not log:
        raise click.UsageError("The Service VM is someone else's, so its console is not known here.")
    if not Path(log).exists():
        raise click.UsageError(f"{log} is not there: the Service VM has not been started yet.")
    from fmctl import process

    process.become(["tail", "-n", str(lines), *(["-F"] if follow else []), "--", log])


@click.command("log")
@click.option("-n", "--lines", type=click.IntRange(1), default=50, show_default=True, help="How many last lines.")
@options.output("text", "json", "yaml")
@options.connection
def log_command(connection: Connection, lines: int, style: str) -> None:
    """Show what Fabric Manager and the kernel logged in the Service VM.

    Of the kernel's lines only those about NVSwitch errors (SXid). The daemon keeps the newest 2,000 lines.
    """
    with dialled(connection) as (client, timeout):
        kept = client.service_vm_log(lines, timeout=timeout)
    if style == "text":
        for line in kept.lines:
            click.echo(f"{_time(line.time)} {line.source.value}: {line.text}")
    else:
        click.echo(render.document(_log(kept), style), nl=False)
    if kept.dropped:
        click.echo(f"fmctl: {kept.dropped} lines were lost since the daemon started", err=True)


def _log(kept: KeptLog) -> dict[str, Any]:
    lines = [{"time": _time(line.time), "source": line.source.value, "text": line.text} for line in kept.lines]
    return {"lines": lines, "dropped": kept.dropped}


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).isoformat(timespec="seconds")


def _show(status: ServiceVmStatus, style: str) -> None:
    if style == "text":
        image = f", from image {status.image}" if status.image else ""
        click.echo(f"the Service VM {status.name} is {status.state.value}{image}")
    else:
        click.echo(render.document(service_vm_plain(status), style), nl=False)


COMMANDS = (start, stop, destroy, upgrade, console, log_command)
