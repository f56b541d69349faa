# SPDX-License-Identifier: Apache-2.0
"""The options by which a command that needs no daemon is told which host, and which board, it is about."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fmctl.cli import config
from fmctl.core.settings import DaemonSettings

if TYPE_CHECKING:
    from fmctl.local import Host

F = TypeVar("F", bound=Callable[..., Any])
_PLATFORM_HELP = "The board.  [default: that of the settings, or what the host has]"


@dataclass(frozen=True)
class Place:
    """This host with the board `platform`, or a pretended one with the board `simulate`."""

    platform: str
    simulate: str | None
    root: Path

    def host(self, settings: DaemonSettings | None = None) -> Host:
        """The host; its board is that of the settings where no option names one. Raises FmctlError.

        They are those of the default file where the command takes none.
        """
        from fmctl import local

        if self.simulate:
            return local.pretended_host(self.simulate)
        platform = self.platform or (settings or config.read(DaemonSettings, None)).platform
        return local.this_host(platform, self.root)


def place(command: F) -> F:
    """Add --platform and --simulate; the command gets a `place`."""

    @click.option("--platform", default="", metavar="NAME|FILE", help=_PLATFORM_HELP)
    @click.option("--simulate", metavar="NAME|FILE", help="Take a pretended host with this board.")
    @click.option("--root", type=click.Path(path_type=Path), default="/", hidden=True)
    @functools.wraps(command)
    def wrapped(*args: Any, platform: str, simulate: str | None, root: Path, **kwargs: Any) -> Any:
        if simulate and platform:
            raise click.UsageError("--simulate brings its own --platform.")
        return command(*args, place=Place(platform, simulate, root), **kwargs)

    return wrapped  # type: ignore[return-value]
