# SPDX-License-Identifier: Apache-2.0
"""The settings of the daemon and of the agent, each one YAML file.

The dataclasses are the whole description: `core.schema` reads a file by them, and `documented` prints them with their
texts. The command line overrides single values.
"""

from __future__ import annotations

import dataclasses
from enum import Enum
from pathlib import PurePosixPath

from fmctl.core import schema
from fmctl.core.address import Address
from fmctl.core.schema import setting


class LogLevel(str, Enum):
    """How much is written to standard error."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclasses.dataclass(frozen=True)
class AbsolutePath:
    """A path that does not depend on where a process was started."""

    path: PurePosixPath

    @classmethod
    def parse(cls, value: object) -> AbsolutePath:
        """Read a path; raises ValueError."""
        if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
            raise ValueError(f"an absolute path is wanted, not {value!r}")
        return cls(PurePosixPath(value))

    def __str__(self) -> str:
        return str(self.path)


@dataclasses.dataclass(frozen=True)
class AgentSettings:
    """The agent in the Service VM (agent.yaml)."""

    listen: Address = setting(Address.parse("unix:/run/fmctl/agent.sock"), doc="where the agent serves: unix:PATH")
    socket_group: str = setting("", doc="group that may call, by name; empty for the group the agent runs as")
    fm_address: Address = setting(
        Address.parse("127.0.0.1:6666"),
        doc="Fabric Manager's API: HOST:PORT, unix:PATH or vsock:CID:PORT, as fabricmanager.cfg's FM_CMD_* keys say",
    )
    library: str = setting("", doc="path of libnvfm.so.1; empty to leave it to the system's loader")
    connect_timeout_s: float = setting(1.0, doc="seconds to wait for a connection to Fabric Manager", low=0.05, high=60)
    call_timeout_s: float = setting(
        30.0, doc="seconds after which a call to Fabric Manager is given up, and its process killed", low=0.1, high=600
    )
    reflection: bool = setting(default=False, doc="serve gRPC reflection (needs the extra `reflection`)")
    log_level: LogLevel = setting(LogLevel.INFO, doc="debug, info, warning or error")


@dataclasses.dataclass(frozen=True)
class DaemonSettings:
    """The daemon on the host (fmctld.yaml)."""

    listen: Address = setting(Address.parse("unix:/run/fmctl/fmctld.sock"), doc="where the daemon serves: unix:PATH")
    socket_group: str = setting("", doc="group that may call, by name; empty for the group the daemon runs as")
    agent: Address = setting(
        Address.parse("unix:/run/fmctl/agent.sock"), doc="where the agent serves: unix:PATH or HOST:PORT"
    )
    platform: str = setting(
        "", doc="the board, by name or by path of a platform file; empty to know it by Fabric Manager's table"
    )
    claims_file: AbsolutePath = setting(
        AbsolutePath.parse("/run/fmctl/claims.json"),
        doc="which owner asked for which partition; it must survive the daemon, but not the host's reboot",
    )
    call_timeout_s: float = setting(
        30.0,
        doc="seconds that one call to Fabric Manager may take",
        low=0.1,
        high=600,
    )
    poll_interval_s: float = setting(5.0, doc="seconds between two looks at Fabric Manager's state", low=0.1, high=3600)
    reflection: bool = setting(default=False, doc="serve gRPC reflection (needs the extra `reflection`)")
    log_level: LogLevel = setting(LogLevel.INFO, doc="debug, info, warning or error")


def documented(settings: AgentSettings | DaemonSettings) -> str:
    """The settings as YAML that reads back to the same, each under its text."""
    lines = []
    for field in dataclasses.fields(settings):
        low, high = field.metadata["low"], field.metadata["high"]
        limits = f" ({low:g} to {high:g})" if low is not None else ""
        lines.append(f"# {field.metadata['doc']}{limits}")
        lines.append(schema.dump_entry(field.name, schema.plain(getattr(settings, field.name))))
    return "\n".join(lines) + "\n"
