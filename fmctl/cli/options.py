# SPDX-License-Identifier: Apache-2.0
"""Options and parameter types that several commands share."""

from __future__ import annotations

import functools
import os
import pwd
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from fmctl.core.address import Address

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_ADDRESS = Address.parse("unix:/run/fmctl/fmctld.sock")
DEFAULT_TIMEOUT = 60.0


class AddressType(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.5 on
    """`unix:PATH` or `HOST:PORT`."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Address:
        """Read the address; fails as a usage error."""
        if isinstance(value, Address):
            return value
        try:
            return Address.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class PartitionId(click.ParamType):  # type: ignore[type-arg]
    """A partition's id: a whole number of 32 bits."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read the id; fails as a usage error."""
        if isinstance(value, int):
            return value
        if not _is_id(value):
            self.fail(f"{value!r} is no partition id: a whole number from 0 is wanted", param, ctx)
        return int(value)


class GpuIds(click.ParamType):  # type: ignore[type-arg]
    """Physical ids, such as `1,3`."""

    name = "ids"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Read the ids; fails as a usage error."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in value.split(",")]
        if not all(_is_id(part) and int(part) > 0 for part in parts):
            self.fail(f"{value!r} is no list of physical ids such as 1,3", param, ctx)
        ids = tuple(int(part) for part in parts)
        if len(set(ids)) != len(ids):
            self.fail(f"{value!r} names a GPU twice", param, ctx)
        return ids


def _is_id(text: str) -> bool:
    return re.fullmatch("[0-9]{1,10}", text) is not None and int(text) < 2**32


ADDRESS = AddressType()
PARTITION_ID = PartitionId()
GPU_IDS = GpuIds()


@dataclass(frozen=True)
class Connection:
    """Where the daemon is, or the agent that is asked past it, and how long it may take to answer."""

    address: Address | None = None
    timeout: float | None = None
    agent: Address | None = None

    def over(self, outer: Connection) -> Connection:
        """These, and the outer ones where none is given."""
        return Connection(self.address or outer.address, self.timeout or outer.timeout, self.agent or outer.agent)


def outer_connection(command: F) -> F:
    """Add --address and --timeout before the command's name; the environment counts here."""
    return _connection("FMCTL_ADDRESS")(command)


def connection(command: F) -> F:
    """Add --address and --timeout after the command's name, where they win over those before it."""
    return _connection(None)(command)


def _connection(envvar: str | None) -> Callable[[F], F]:
    def decorate(command: F) -> F:
        @click.option(
            "--address",
            type=ADDRESS,
            envvar=envvar,
            metavar="ADDRESS",
            help=f"The daemon, as unix:PATH or HOST:PORT; also from FMCTL_ADDRESS.  [default: {DEFAULT_ADDRESS}]",
        )
        @click.option(
            "--timeout",
            type=click.FloatRange(0, 3600, min_open=True),
            metavar="SECONDS",
            help=f"How long to wait for an answer.  [default: {DEFAULT_TIMEOUT:g}]",
        )
        @functools.wraps(command)
        def wrapped(*args: Any, address: Address | None, timeout: float | None, **kwargs: Any) -> Any:
            outer = click.get_current_context().find_object(Connection) or Connection()
            return command(*args, connection=Connection(address, timeout).over(outer), **kwargs)

        return wrapped  # type: ignore[return-value]

    return decorate


def output(*formats: str) -> Callable[[F], F]:
    """Add -o with these formats, the first of them the default."""
    return click.option(
        "-o", "--output", "style", type=click.Choice(formats), default=formats[0], show_default=True, help="Format."
    )


def calling_user() -> str:
    """The name of the user that runs this process, or its number where it has none."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


owner = click.option("--owner", default=calling_user, metavar="NAME", help="For whom.  [default: the calling user]")
