# SPDX-License-Identifier: Apache-2.0
"""Fabric Manager's configuration file: our keys from a template, over those of NVIDIA's own file.

`fmctl.templates` finds the template, and `guest.fmservice` writes what is made here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fmctl.core.address import Address
from fmctl.core.errors import FmctlError, InvalidDocument
from fmctl.core.template import Template

_API = "FM_CMD_"
"""How the keys begin that say where Fabric Manager takes calls; which transport wins hangs on all of them."""


@dataclass(frozen=True)
class ConfigValues:
    """What the template is filled with."""

    api: Address
    state_file: str
    log_file: str
    log_max_mib: int


def parse(text: str) -> dict[str, str]:
    """The keys and values of a file, stripped: NVIDIA's own has a value that ends in a space."""
    config = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.lstrip().startswith("#"):
            config[key.strip()] = value.strip()
    return config


def make(template: Template, values: ConfigValues, stock: str = "") -> str:
    """The file to start Fabric Manager with: the template filled, then what else stands in NVIDIA's own.

    Raises FmctlError where the template cannot be filled, or a value would be read as something else.
    """
    ours = _filled(template, values)
    settled = parse(ours)
    others = {key: value for key, value in parse(stock).items() if key not in settled and not key.startswith(_API)}
    lines = [f"{key}={value}" for key, value in others.items()]
    return "\n".join([ours.rstrip("\n"), "# As in NVIDIA's own file.", *lines, ""])


def _filled(template: Template, values: ConfigValues) -> str:
    try:
        import jinja2
        import jinja2.sandbox
    except ImportError as error:
        raise FmctlError(
            "fabricmanager.cfg cannot be made", why="jinja2 is not installed", fix="install fmctl again"
        ) from error
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    try:
        return environment.from_string(template.text).render(_checked(values))
    except jinja2.TemplateError as error:
        raise InvalidDocument(
            f"the template {template.path} cannot be filled", why=str(error), fix="install fmctl again"
        ) from error


def _checked(values: ConfigValues) -> Mapping[str, Any]:
    """The values by name; raises InvalidDocument for one that a line of the file cannot hold."""
    plain = {"state_file": values.state_file, "log_file": values.log_file}
    for name, value in (*plain.items(), ("api", str(values.api))):
        if not value.isprintable() or value != value.strip():
            raise InvalidDocument(
                "fabricmanager.cfg cannot be made",
                why=f"{name} {value!r} holds what a line of it cannot",
                fix="correct agent.yaml",
            )
    return {**plain, "log_max_mib": values.log_max_mib, "api": values.api.where}


def api(config: Mapping[str, str]) -> Address:
    """Where a Fabric Manager with that configuration takes calls; raises ValueError."""
    if path := config.get("FM_CMD_UNIX_SOCKET_PATH"):
        return Address.parse(f"unix:{path}")
    if cid := config.get("FM_CMD_VSOCK_CID"):
        return Address.parse(f"vsock:{cid}:{config.get('FM_CMD_VSOCK_PORT_NUMBER') or DEFAULT_VSOCK_PORT}")
    host = config.get("FM_CMD_BIND_INTERFACE") or "127.0.0.1"
    return Address.parse(f"{f'[{host}]' if ':' in host else host}:{config.get('FM_CMD_PORT_NUMBER') or DEFAULT_PORT}")


DEFAULT_PORT = 6666
DEFAULT_VSOCK_PORT = 1447971919
