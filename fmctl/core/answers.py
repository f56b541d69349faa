# SPDX-License-Identifier: Apache-2.0
"""What the daemon answers, as values: `control` makes them, `rpc` carries them, `cli` shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fmctl.core.partition import Partition, PartitionList
from fmctl.core.ports import FabricState


@dataclass(frozen=True)
class Listed:
    """The partitions, and the owner of each that has one."""

    list: PartitionList
    owners: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Changed:
    """A partition as an activation or a deactivation left it; `already` if it was so before."""

    partition: Partition
    owner: str = ""
    already: bool = False
    simulated: bool = False


@dataclass(frozen=True)
class AgentInfo:
    """The agent, as the daemon sees it; version and library are empty while it is unreachable."""

    address: str
    reachable: bool = False
    version: str = ""
    library: str = ""


@dataclass(frozen=True)
class DaemonStatus:
    """The daemon, and what it sees behind it. `started` is in seconds since the epoch."""

    version: str
    started: float
    agent: AgentInfo
    fabric_state: FabricState
    fabric_message: str = ""
    platform: str = ""
    simulated: bool = False
