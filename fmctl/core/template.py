# SPDX-License-Identifier: Apache-2.0
"""Templates filled with values, in jinja2's sandbox. `templates` reads their texts, `core.domain_xml` has the values.

A template is ours or an operator's, so whatever goes wrong in one is told with its file and line. Values are escaped
for XML, and a name that a template mistypes is an error.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fmctl.core.errors import FmctlError

if TYPE_CHECKING:
    from jinja2 import Environment


class BadTemplate(FmctlError):
    """A template cannot be filled, or what it makes must not be started."""


@dataclass(frozen=True, order=True)
class Template:
    """The text of a template, and the file that it comes from."""

    path: str
    text: str


def fill(templates: Mapping[str, Template], name: str, values: Mapping[str, Any]) -> str:
    """The template of that name with these values; others may be imported from it. Raises BadTemplate."""
    environment = _environment(tuple(sorted(templates.items())))
    try:
        return environment.get_template(name).render(values)
    except Exception as error:  # a template can raise anything
        raise _broken(error, templates, name) from error


@functools.lru_cache(maxsize=4)
def _environment(items: tuple[tuple[str, Template], ...]) -> Environment:
    """One that has these templates compiled, once each."""
    try:
        import jinja2.sandbox
    except ImportError as error:
        raise FmctlError(
            "domain XML cannot be made",
            why="jinja2 is not installed",
            fix="pip install 'fmctl[host]', or install your distribution's python3-jinja2",
        ) from error

    templates = dict(items)

    def load(name: str) -> tuple[str, str, None] | None:
        found = templates.get(name)
        return (found.text, found.path, None) if found else None

    return jinja2.sandbox.ImmutableSandboxedEnvironment(
        loader=jinja2.FunctionLoader(load),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _broken(error: Exception, templates: Mapping[str, Template], name: str) -> BadTemplate:
    """Jinja2 makes an error's traceback show the template's own file and line, the innermost last."""
    paths = {template.path for template in templates.values()}
    path = where = templates[name].path if name in templates else name
    for frame, line in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename in paths:
            path = frame.f_code.co_filename
            where = f"{path}, line {line}"
    return BadTemplate(
        f"the template {path} cannot be filled",
        why=f"{where}: {error}",
        fix="correct it, or remove it to use fmctl's own",
    )
