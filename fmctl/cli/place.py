# SPDX-License-Identifier: Apache-2.0
"""The options by which a command that needs no daemon is told which host, and which board, it is about."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from fmctl.local import Host

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Place:
    """This host with the board `platform`, or a pretended one with the board `simulate`."""

    platform: str
    simulate: str | None
    root: Path

    def host(self, platform: str = "") -> Host:
        """The host; `platform` is its board where no option names one. Raises FmctlError."""
        from fmctl import local

        if self.simulate:
            return local.pretended_host(self.simulate)
        return local.this_host(self.platform or platform, self.root)


def place(command: F) -> F:
    """Add --platform and --simulate; the command gets a `place`."""

    @click.option("--platform", default="", metavar="NAME|FILE", help="The board.  [default: what the host has]")
    @click.option("--simulate", metavar="NAME|FILE", help="Take a pretended host with this board.")
    @click.option("--root", type=click.Path(path_type=Path), default="/", hidden=True)
    @functools.wraps(command)
    def wrapped(*args: Any, platform: str, simulate: str | None, root: Path, **kwargs: Any) -> Any:
        if simulate and platform:
            raise click.UsageError("--simulate brings its own --platform.")
        return command(*args, place=Place(platform, simulate, root), **kwargs)

    return wrapped  # type: ignore[return-value]
