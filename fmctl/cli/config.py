# SPDX-License-Identifier: Apache-2.0
"""`fmctl config`, and reading a settings file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from fmctl import files
from fmctl.core import schema

if TYPE_CHECKING:
    from fmctl.core.agentsettings import AgentSettings
    from fmctl.core.settings import DaemonSettings

T = TypeVar("T", bound="AgentSettings | DaemonSettings")

config_file = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Settings.  [default: /etc/fmctl/fmctld.yaml or agent.yaml, if it exists]",
)


def read(cls: type[T], path: Path | None) -> T:
    """The settings of a file, or of the default one, which may be missing; raises InvalidDocument."""
    file = path or Path(cls.FILE)
    if path is None and not file.exists():
        return cls()
    return schema.load(cls, files.read(file), str(file))


@click.group()
def config() -> None:
    """Show the settings of the daemon and of the agent."""


@config.command()
@click.argument("program", type=click.Choice(["daemon", "agent"]), required=False)
@click.option("--defaults", is_flag=True, help="The defaults, instead of what the settings file makes of them.")
@config_file
def show(program: str | None, config_file: Path | None, *, defaults: bool) -> None:
    """Show every setting with its meaning, of PROGRAM or of both."""
    if config_file and (defaults or not program):
        raise click.UsageError("--config goes with a program, and not with --defaults.")
    from fmctl.core.agentsettings import AgentSettings
    from fmctl.core.settings import DaemonSettings

    chosen: list[type[AgentSettings] | type[DaemonSettings]] = []
    if program != "agent":
        chosen.append(DaemonSettings)
    if program != "daemon":
        chosen.append(AgentSettings)
    parts = []
    for cls in chosen:
        shown = cls() if defaults else read(cls, config_file)
        parts.append(f"# {cls.FILE}\n\n{schema.documented(shown)}")
    click.echo("\n".join(parts), nl=False)
