# SPDX-License-Identifier: Apache-2.0
"""What `fmctl daemon` and `fmctl agent` share: settings from a file, single ones overridden by options."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import click

from fmctl.cli import options
from fmctl.core.address import Address
from fmctl.core.values import LogLevel

listen = click.option("--listen", type=options.ADDRESS, metavar="ADDRESS", help="Where to serve: unix:PATH.")
insecure_tcp = click.option(
    "--insecure-tcp", is_flag=True, help="Let --listen be HOST:PORT on loopback, open to every local user."
)
log_level = click.option("--log-level", type=click.Choice([level.value for level in LogLevel]), help="How much to log.")


def overridden(settings: Any, overrides: dict[str, Address | str | float | None], level: str | None) -> Any:
    """The settings, with what options give in their place."""
    given: dict[str, Any] = {name: value for name, value in overrides.items() if value is not None}
    if level:
        given["log_level"] = LogLevel(level)
    return dataclasses.replace(settings, **given)


def log(program: str, level: LogLevel) -> None:
    """Log to standard error from here on."""
    line = f"%(asctime)s {program} %(levelname)s %(message)s"
    logging.basicConfig(level=level.value.upper(), format=line, datefmt="%Y-%m-%dT%H:%M:%S%z")
