# SPDX-License-Identifier: Apache-2.0
"""`fmctl daemon` and `fmctl agent`: settings from a file, single ones overridden by options."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import click

from fmctl.cli import options
from fmctl.cli.config import config_file, read
from fmctl.core.address import Address
from fmctl.core.values import LogLevel

_listen = click.option("--listen", type=options.ADDRESS, metavar="ADDRESS", help="Where to serve: unix:PATH.")
_insecure_tcp = click.option(
    "--insecure-tcp", is_flag=True, help="Let --listen be HOST:PORT on loopback, open to every local user."
)
_log_level = click.option(
    "--log-level", type=click.Choice([level.value for level in LogLevel]), help="How much to log."
)


@click.command()
@config_file
@_listen
@_insecure_tcp
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
@_log_level
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
    from fmctl.core.settings import DaemonSettings

    settings = _overridden(read(DaemonSettings, config_file), overrides, log_level)
    if overrides["agent"]:
        settings = dataclasses.replace(settings, service_vm=dataclasses.replace(settings.service_vm, managed=False))
    _log("fmctld", settings.log_level)
    from fmctl import daemon as root

    if simulate:
        root.run_simulated(settings, simulate, state_dir, insecure_tcp=insecure_tcp, gpu_map=simulate_map or "none")
    else:
        root.run(settings, insecure_tcp=insecure_tcp)


@click.command()
@config_file
@_listen
@_insecure_tcp
@click.option("--fm-address", type=options.ADDRESS, metavar="ADDRESS", help="Fabric Manager's API.")
@click.option("--library", metavar="FILE", help="libnvfm.so.1.  [default: by the system's loader]")
@click.option(
    "--call-timeout", "call_timeout_s", type=click.FloatRange(0.1, 600), metavar="SECONDS", help="For a call."
)
@_log_level
def agent(config_file: Path | None, log_level: str | None, *, insecure_tcp: bool, **overrides: Any) -> None:
    """Serve Fabric Manager in the Service VM.

    Until SIGINT or SIGTERM.
    """
    from fmctl.core.agentsettings import AgentSettings

    settings = _overridden(read(AgentSettings, config_file), overrides, log_level)
    _log("fmctl-agent", settings.log_level)
    from fmctl import agent as root

    root.run(settings, insecure_tcp=insecure_tcp)


def _overridden(settings: Any, overrides: dict[str, Address | str | float | None], log_level: str | None) -> Any:
    given: dict[str, Any] = {name: value for name, value in overrides.items() if value is not None}
    if log_level:
        given["log_level"] = LogLevel(log_level)
    return dataclasses.replace(settings, **given)


def _log(program: str, level: LogLevel) -> None:
    line = f"%(asctime)s {program} %(levelname)s %(message)s"
    logging.basicConfig(level=level.value.upper(), format=line, datefmt="%Y-%m-%dT%H:%M:%S%z")
