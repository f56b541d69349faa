# SPDX-License-Identifier: Apache-2.0
"""What the agent and the daemon answer, as values: `control` makes them, `rpc` carries them, `cli` shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from fmctl.core.partition import Partition, PartitionList


class FabricState(str, Enum):
    """What can be told of Fabric Manager from outside."""

    UNREACHABLE = "unreachable"
    INITIALISING = "initialising"
    AWAITING_ACTIVE_LIST = "awaiting active list"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True)
class AgentStatus:
    """What the agent tells of itself and of Fabric Manager; `message` explains a state that is not ready."""

    version: str
    state: FabricState
    message: str = ""
    library: str = ""
    simulated: bool = False


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
