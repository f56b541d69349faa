# SPDX-License-Identifier: Apache-2.0
"""Types of parameters that few commands have; each fails as a usage error. `cli.options` has those of many."""

from __future__ import annotations

import re
from typing import Any

import click

from fmctl.core.pci import Bdf

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_UUID = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


class Addresses(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.5 on
    """PCI addresses, such as `0000:17:00.0,0000:3d:00.0`."""

    name = "addresses"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Bdf, ...]:
        """Read the addresses."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(Bdf.parse(part.strip()) for part in value.split(","))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Uuid(click.ParamType):  # type: ignore[type-arg]
    """A VM's UUID, as libvirt writes it."""

    name = "uuid"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Read the UUID."""
        if not re.fullmatch(_UUID, value.lower()):
            self.fail(f"{value!r} is no UUID", param, ctx)
        return str(value.lower())


class LeaseId(Uuid):
    """A lease's id, also as `-o name` prints it."""

    name = "lease"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Read the id."""
        return super().convert(value.removeprefix("lease/"), param, ctx)


class Label(click.ParamType):  # type: ignore[type-arg]
    """One label, such as `job=42`."""

    name = "label"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Read the label."""
        if isinstance(value, tuple):
            return value
        key, equals, text = value.partition("=")
        if not key or not equals:
            self.fail(f"{value!r} is no label such as job=42", param, ctx)
        return key, text


class Duration(click.ParamType):  # type: ignore[type-arg]
    """Seconds, or with a unit minutes, hours or days, such as `90`, `90s`, `15m`, `2h` or `7d`."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read the duration, in seconds."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([smhd]?)", value)
        if not found or not float(found[1]):
            self.fail(f"{value!r} is no duration such as 90s, 15m, 2h or 7d", param, ctx)
        return float(found[1]) * _UNITS[found[2]]


ADDRESSES = Addresses()
UUID = Uuid()
LEASE_ID = LeaseId()
LABEL = Label()
DURATION = Duration()
