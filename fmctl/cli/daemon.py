# SPDX-License-Identifier: Apache-2.0
"""`fmctl daemon`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from fmctl.cli import options, serving
from fmctl.cli.config import config_file, read
from fmctl.core.settings import DaemonSettings


@click.command()
@config_file
@serving.listen
@serving.insecure_tcp
@click.option(
    "--agent", type=options.ADDRESS, metavar="ADDRESS", help="The agent of a Service VM that is someone else's."
)
@click.option("--platform", metavar="NAME|FILE", help="The board.  [default: what the host has]")
@click.option("--simulate", metavar="NAME|FILE", help="Simulate this board, with a Fabric Manager and an agent.")
@click.option(
    "--state-dir", type=click.Path(path_type=Path), metavar="FOLDER", help="Where --simulate keeps its files."
)
@click.option(
    "--simulate-map",
    type=click.Choice(["none", "unconfirmed", "swapped", "duplicated", "missing"]),
    help="What is wrong with the GPU map of --simulate.  [default: none]",
)
@serving.log_level
def daemon(
    config_file: Path | None,
    simulate: str | None,
    state_dir: Path | None,
    simulate_map: str | None,
    log_level: str | None,
    *,
    insecure_tcp: bool,
    **overrides: Any,
) -> None:
    """Serve the API on the host.

    Until SIGINT or SIGTERM.
    """
    if state_dir and not simulate:
        raise click.UsageError("--state-dir goes with --simulate.")
    if simulate_map and not simulate:
        raise click.UsageError("--simulate-map goes with --simulate.")
    if simulate and (overrides["agent"] or overrides["platform"]):
        raise click.UsageError("--simulate brings its own --agent and --platform.")
    settings = serving.overridden(read(DaemonSettings, config_file), overrides, log_level)
    if overrides["agent"]:
        settings = dataclasses.replace(settings, service_vm=dataclasses.replace(settings.service_vm, managed=False))
    serving.log("fmctld", settings.log_level)
    from fmctl import daemon as root

    if simulate:
        root.run_simulated(settings, simulate, state_dir, insecure_tcp=insecure_tcp, gpu_map=simulate_map or "none")
    else:
        root.run(settings, insecure_tcp=insecure_tcp)
