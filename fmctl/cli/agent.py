# SPDX-License-Identifier: Apache-2.0
"""`fmctl agent`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fmctl.cli import options, serving
from fmctl.cli.config import config_file, read
from fmctl.core.agentsettings import AgentSettings


@click.command()
@config_file
@serving.listen
@serving.insecure_tcp
@click.option("--fm-address", type=options.ADDRESS, metavar="ADDRESS", help="Fabric Manager's API.")
@click.option("--library", metavar="FILE", help="libnvfm.so.1.  [default: by the system's loader]")
@click.option(
    "--call-timeout", "call_timeout_s", type=click.FloatRange(0.1, 600), metavar="SECONDS", help="For a call."
)
@serving.log_level
def agent(config_file: Path | None, log_level: str | None, *, insecure_tcp: bool, **overrides: Any) -> None:
    """Serve Fabric Manager in the Service VM.

    Until SIGINT or SIGTERM.
    """
    settings = serving.overridden(read(AgentSettings, config_file), overrides, log_level)
    serving.log("fmctl-agent", settings.log_level)
    from fmctl import agent as root

    root.run(settings, insecure_tcp=insecure_tcp)
