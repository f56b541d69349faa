# SPDX-License-Identifier: Apache-2.0
"""`fmctl doctor`: what is wrong on this host, and what to do about it. `core.doctor` judges what the parts say."""

from __future__ import annotations

import contextlib
import functools
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fmctl.cli import config, failure, options, render
from fmctl.cli import place as at
from fmctl.cli.options import Connection
from fmctl.cli.place import Place
from fmctl.core import doctor as checks
from fmctl.core.doctor import Check, Level
from fmctl.core.errors import FmctlError
from fmctl.core.settings import DaemonSettings

if TYPE_CHECKING:
    from fmctl.core.answers import DaemonStatus
    from fmctl.local import Host

_WIDTH = 80
_COLOURS = {Level.OK: "green", Level.WARNING: "yellow", Level.FAILED: "red"}
_NO_DAEMON = "see `systemctl status fmctld` and `journalctl -u fmctld`"


@click.command()
@options.output("text", "json", "yaml")
@config.config_file
@at.place
@options.connection
@click.pass_context
def doctor(context: click.Context, connection: Connection, place: Place, config_file: Path | None, style: str) -> None:
    """Tell what is wrong on this host, and what to do.

    It changes nothing. Run it as root: to others the kernel does not show all of it. Without a daemon, the host itself
    is still looked at. Exit status 1 tells that something has failed.
    """
    settings = config.read(DaemonSettings, config_file)
    status, told = _daemon(connection)
    host = place.host(settings)
    found = (*_host(host, status), *told, *_gate(host, settings, status))
    click.echo(_text(found) if style == "text" else render.document(_plain(found), style), nl=False)
    if _worst(found) is Level.FAILED:
        context.exit(failure.FAILURE)


def _host(host: Host, status: DaemonStatus | None) -> tuple[Check, ...]:
    """What is wrong with the host itself, with the daemon or without."""
    try:
        found = host.inventory()
        return checks.of_findings(found.platform.name, host.findings(found))
    except FmctlError as error:
        return (checks.of_board("board", error, status),)


def _gate(host: Host, settings: DaemonSettings, status: DaemonStatus | None) -> Iterator[Check]:
    """Whether libvirt calls the hook, as the host itself shows where no daemon tells."""
    if status is None:
        yield from checks.of_hook(host.hook_files(Path(settings.run_dir.path)).load())
    else:
        yield from checks.of_hook(status.gate.hook)
        yield from checks.of_gate(status)


def _daemon(connection: Connection) -> tuple[DaemonStatus | None, tuple[Check, ...]]:
    """What the daemon answers, and what is wrong with that."""
    from fmctl.rpc.client import ControllerClient
    from fmctl.rpc.gpumap_client import GpuMapClient
    from fmctl.rpc.lease_client import LeaseClient
    from fmctl.rpc.mark_client import MarkClient

    address, timeout = connection.address or options.DEFAULT_ADDRESS, connection.timeout or options.DEFAULT_TIMEOUT
    with contextlib.ExitStack() as stack:
        controller = stack.enter_context(contextlib.closing(ControllerClient(address)))
        maps = stack.enter_context(contextlib.closing(GpuMapClient(address)))
        leases = stack.enter_context(contextlib.closing(LeaseClient(address)))
        marks = stack.enter_context(contextlib.closing(MarkClient(address)))
        try:
            status = controller.status(timeout=timeout)
        except FmctlError as error:
            return None, (Check("daemon", Level.FAILED, str(error), _NO_DAEMON),)
        told = [
            *checks.of_status(status, address),
            *_asked("store", lambda: [checks.of_leases(len(leases.leases(timeout=timeout).leases))]),
            *_asked("quarantine", lambda: checks.of_gpus(marks.gpus(timeout=timeout)[0])),
        ]
        try:
            told.append(checks.of_map(maps.show(timeout=timeout)))
        except FmctlError as error:
            told.append(checks.of_board("gpu-map", error, status))
        return status, tuple(told)


def _asked(name: str, ask: Callable[[], Iterable[Check]]) -> Sequence[Check]:
    """The checks that a question comes to; one that has failed where there is no answer."""
    try:
        return tuple(ask())
    except FmctlError as error:
        return (checks.of_error(name, error),)


def _worst(found: Iterable[Check]) -> Level:
    return max((check.level for check in found), key=list(Level).index)


def _plain(found: Sequence[Check]) -> dict[str, object]:
    shown = [{"name": c.name, "level": c.level.value, "what": c.what, "fix": c.fix} for c in found]
    return {"level": _worst(found).value, "checks": shown}


def _text(found: Sequence[Check]) -> str:
    """Every check, and what to do where it was not said before: an unverified map is also why there is no new work."""
    said: set[str] = set()
    lines = []
    for check in found:
        lines.append(_line(replace(check, fix="") if check.fix in said else check))
        said.add(check.fix)
    return "".join(lines)


def _line(check: Check) -> str:
    """What one check says, and below it what to do."""
    fill = functools.partial(textwrap.fill, width=_WIDTH, break_on_hyphens=False, break_long_words=False)
    indent = " " * 9
    what = fill(f"{check.name}: {check.what}", initial_indent=indent, subsequent_indent=indent).removeprefix(indent)
    fix = fill(check.fix, initial_indent=f"{indent}do: ", subsequent_indent=f"{indent}    ")
    word = click.style(check.level.value, fg=_COLOURS[check.level]) + indent[len(check.level.value) :]
    return f"{word}{what}\n" + (f"{fix}\n" if check.fix else "")
