# SPDX-License-Identifier: Apache-2.0
"""`fmctl store`: the file of leases on this host, with no daemon."""

from __future__ import annotations

from pathlib import Path

import click

from fmctl.cli import config
from fmctl.core.settings import DaemonSettings


@click.group()
def store() -> None:
    """Back up or rebuild the store of leases on this host."""


@store.command()
@click.argument("target", metavar="FILE", type=click.Path(path_type=Path))
@config.config_file
def backup(target: Path, config_file: Path | None) -> None:
    """Copy the store into a new FILE, also while the daemon runs."""
    from fmctl import local

    local.backup_store(config.read(DaemonSettings, config_file), target)
    click.echo(f"the store is copied to {target}")


@store.command()
@click.option("--from-host", is_flag=True, required=True, help="From the audit journal on this host.")
@click.option("--dry-run", is_flag=True, help="Change nothing, and print what the new store would hold.")
@config.config_file
def rebuild(config_file: Path | None, *, from_host: bool, dry_run: bool) -> None:
    """Make a damaged store anew, while the daemon is stopped.

    The old file is put aside. Leases are those that stood at the end of the journal; the host is only observed
    afterwards, until `fmctl reconcile --accept`.
    """
    from fmctl import local

    settings = config.read(DaemonSettings, config_file)
    aside, entries = local.rebuild_store(settings, dry_run=dry_run)
    for entry in entries:
        if entry.lease is not None:
            held = ",".join(map(str, entry.lease.held))
            click.echo(f"lease {entry.lease.id} of {entry.lease.owner}: {entry.lease.state.value}, GPUs {held}")
    leases = sum(entry.lease is not None for entry in entries)
    if dry_run:
        click.echo(f"a new store would have {leases} leases")
        return
    click.echo(f"the new store has {leases} leases" + (f"; the old one is {aside}" if aside else ""))
    click.echo(
        "next: start the daemon, then `fmctl reconcile`, `fmctl adopt --dry-run`, `fmctl reconcile --accept`", err=True
    )
