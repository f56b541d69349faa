# SPDX-License-Identifier: Apache-2.0
"""The platform files that come with fmctl, one per board, and reading one from elsewhere."""

from __future__ import annotations

import difflib
from functools import cache
from importlib import resources
from pathlib import Path

from fmctl import files
from fmctl.core import platform
from fmctl.core.errors import BadRequest, InvalidDocument
from fmctl.core.platform import Platform


def names() -> tuple[str, ...]:
    """The names of the boards that come with fmctl."""
    beside = resources.files(__name__).iterdir()
    return tuple(sorted(file.name.removesuffix(".yaml") for file in beside if file.name.endswith(".yaml")))


@cache
def load(name: str) -> Platform:
    """The board of that name; raises BadRequest."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        raise BadRequest(
            f"there is no platform {name!r}" + (f"; did you mean {near[0]}?" if near else ""),
            why=f"fmctl knows {', '.join(names())}",
            fix="choose one of these",
        )
    found = platform.parse(resources.files(__name__).joinpath(f"{name}.yaml").read_text("utf-8"), f"{name}.yaml")
    if found.name != name:
        raise InvalidDocument(f"{name}.yaml is refused", why=f"name: it is {found.name!r}", fix="name it as its file")
    return found


def read(path: Path) -> Platform:
    """The board that a file of the operator's describes; raises InvalidDocument."""
    return platform.parse(files.read(path), str(path))


def resolve(name_or_path: str) -> Platform:
    """The board of that name, or of that file if it has a slash or ends in `.yaml`; raises BadRequest."""
    if "/" in name_or_path or name_or_path.endswith(".yaml"):
        return read(Path(name_or_path))
    return load(name_or_path)


def every() -> tuple[Platform, ...]:
    """All boards that come with fmctl."""
    return tuple(load(name) for name in names())
