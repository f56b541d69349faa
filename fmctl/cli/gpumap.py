# SPDX-License-Identifier: Apache-2.0
"""`fmctl gpumap`: which GPU has which physical id, who says so, and whether it counts."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fmctl import files
from fmctl.cli import failure, options, render
from fmctl.cli.options import Connection
from fmctl.cli.table import table
from fmctl.core.mapsource import MapState, SourceKind
from fmctl.core.mapstatus import MapStatus

if TYPE_CHECKING:
    from fmctl.rpc.gpumap_client import GpuMapClient

_FORMATS = {"auto": None, "nvidia-smi": SourceKind.NVIDIA_SMI, "yaml": SourceKind.FILE}
_DISCOVERY_TIMEOUT = 300.0
"""Seconds for all GPUs of a board, each of which may take ten to start."""

_style = options.output("text", "json", "yaml", "map")


@click.group()
def gpumap() -> None:
    """Show the GPU map, and bring it about.

    Which GPU has which physical id is not in PCI. Nothing is activated before two independent sources agree on it, or a
    person accepts it.
    """


@contextlib.contextmanager
def dialled(connection: Connection, default: float = options.DEFAULT_TIMEOUT) -> Iterator[tuple[GpuMapClient, float]]:
    """A client of the daemon's GPU map, and how long it waits, `default` seconds unless the user said so."""
    from fmctl.rpc.gpumap_client import GpuMapClient

    with contextlib.closing(GpuMapClient(connection.address or options.DEFAULT_ADDRESS)) as client:
        yield client, connection.timeout or default


@gpumap.command()
@_style
@options.connection
def show(connection: Connection, style: str) -> None:
    """Show the GPU map, who says so, and whether it counts.

    With -o map it is what `import` reads.
    """
    with dialled(connection) as (client, timeout):
        status = client.show(timeout=timeout)
    click.echo(_shown(status, style), nl=False)


@gpumap.command()
@_style
@options.connection
@click.pass_context
def discover(context: click.Context, connection: Connection, style: str) -> None:
    """Ask every source that can be asked.

    A GPU that nobody uses is opened, which resets it. One that a VM or an active partition has is left alone, and keeps
    what it said since the host booted. Exit status 8 tells that the map is not verified.
    """
    with dialled(connection, _DISCOVERY_TIMEOUT) as (client, timeout):
        status = client.discover(actor=options.calling_user(), timeout=timeout)
    _end(context, status, style)


@gpumap.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--format", "form", type=click.Choice(list(_FORMATS)), default="auto", show_default=True, help="What FILE is."
)
@_style
@options.connection
@click.pass_context
def import_command(context: click.Context, connection: Connection, file: Path, form: str, style: str) -> None:
    """Take a map from FILE, as one source.

    It is the output of `nvidia-smi -q` on this host, or YAML with the PCI address of each physical id. Exit status 8
    tells that the map is not verified.
    """
    text = files.read(file)
    with dialled(connection) as (client, timeout):
        status = client.bring(text, str(file), _FORMATS[form], actor=options.calling_user(), timeout=timeout)
    _end(context, status, style)


@gpumap.command()
@options.connection
@click.pass_context
def verify(context: click.Context, connection: Connection) -> None:
    """Tell whether the GPU map counts, and if not, why and what to do.

    Exit status 8 tells that it does not.
    """
    with dialled(connection) as (client, timeout):
        status = client.show(timeout=timeout)
    click.echo(_judged(status), nl=False)
    _exit(context, status)


@gpumap.command()
@click.option("--fingerprint", required=True, metavar="TEXT", help="The fingerprint that `show` shows, typed.")
@options.connection
def accept(connection: Connection, fingerprint: str) -> None:
    """Let your word verify the GPU map.

    Compare it with the chassis first: a wrong map gives a tenant another tenant's NVLinks. It counts for this map on
    this board alone, and never where sources contradict each other.
    """
    with dialled(connection) as (client, timeout):
        status = client.accept(fingerprint, actor=options.calling_user(), timeout=timeout)
    click.echo(_judged(status), nl=False)


def _end(context: click.Context, status: MapStatus, style: str) -> None:
    click.echo(_shown(status, style), nl=False)
    _exit(context, status)


def _exit(context: click.Context, status: MapStatus) -> None:
    if status.state is not MapState.VERIFIED:
        context.exit(failure.UNVERIFIED_MAP)


def _shown(status: MapStatus, style: str) -> str:
    if style == "map":
        known = sorted((gpu.physical_id, gpu.address) for gpu in status.gpus if gpu.physical_id is not None)
        return "".join(f"{number}: '{address}'\n" for number, address in known)
    if style != "text":
        return render.document(_plain(status), style)
    rows = [
        (str(gpu.physical_id or "?"), str(gpu.address), _said(status, gpu.address), gpu.unread) for gpu in status.gpus
    ]
    rows.sort(key=lambda row: (row[0] == "?", int(row[0]) if row[0] != "?" else 0, row[1]))
    sources = "".join(f"{s.kind.value}: {_when(s.time)}{f', {s.detail}' if s.detail else ''}\n" for s in status.sources)
    gpus = table(("PHYSICAL ID", "ADDRESS", "SAID BY", "NOT READ"), rows) if rows else ""
    return f"{gpus}\n{sources}{_judged(status)}".lstrip("\n")


def _judged(status: MapStatus) -> str:
    lines = [f"{status.state.value}: {status.why}", f"board: {status.board}"]
    if status.fingerprint:
        lines.append(f"fingerprint: {status.fingerprint}")
    if status.state is not MapState.VERIFIED:
        lines.append(f"do: {status.fix}")
    return "".join(f"{line}\n" for line in lines)


def _said(status: MapStatus, address: object) -> str:
    """Who names a GPU; with the number where they differ."""
    said = {s.kind.value: s.readings[bdf] for s in status.sources for bdf in s.readings if bdf == address}
    if len(set(said.values())) > 1:
        return ", ".join(f"{kind} ({number})" for kind, number in said.items())
    return ", ".join(said)


def _when(time: float) -> str:
    return datetime.datetime.fromtimestamp(time, datetime.timezone.utc).isoformat(timespec="seconds")


def _plain(status: MapStatus) -> dict[str, Any]:
    accepted = status.accepted
    return {
        "state": status.state.value,
        "why": status.why,
        "fix": status.fix,
        "fingerprint": status.fingerprint,
        "board": status.board,
        "gpus": [{**vars(gpu), "address": str(gpu.address)} for gpu in status.gpus],
        "sources": [source.plain() for source in status.sources],
        "accepted": {"by": accepted.by, "time": _when(accepted.time)} if accepted else None,
        "simulated": status.simulated,
    }
