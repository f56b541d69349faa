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
    NOT_STARTED = "not started"
    ENDED = "ended"
    INITIALISING = "initialising"
    AWAITING_ACTIVE_LIST = "awaiting active list"
    READY = "ready"
    FAILED = "failed"


class ProcessState(str, Enum):
    """Fabric Manager's process, as the agent knows it; unmanaged where the agent is not the one who starts it."""

    UNMANAGED = "unmanaged"
    NOT_STARTED = "not started"
    RUNNING = "running"
    ENDED = "ended"


class StartMode(str, Enum):
    """How Fabric Manager starts: initialising the NVSwitches, or taking up where it was while traffic goes on."""

    FRESH = "fresh"
    RESTART = "restart"


@dataclass(frozen=True)
class FabricFacts:
    """What is known of Fabric Manager's program: as read when it last started, or the agent did.

    Versions are empty while unknown, `config` is the fabricmanager.cfg that it was started with, and `nvlsm` the state
    of the NVLink subnet manager, empty where the hardware has none. `fabric_start` names the fresh start by which the
    NVSwitches are set up: another text after each one, the same after a restart; empty while unknown.
    """

    fm_version: str = ""
    driver_version: str = ""
    config: Mapping[str, str] = field(default_factory=dict)
    nvlsm: str = ""
    fabric_start: str = ""


@dataclass(frozen=True)
class AgentStatus:
    """What the agent tells of itself and of Fabric Manager; `message` explains a state that is not ready.

    `digest` is the SHA-256 of the archive that the agent runs from, empty where it was installed otherwise;
    `versions_differ` tells how Fabric Manager's version differs from the driver's, and `fm_log` ends with the newest
    line; `has_daemon` tells that a daemon reads the agent's logs. The others are as in FabricFacts.
    """

    version: str
    state: FabricState
    message: str = ""
    library: str = ""
    simulated: bool = False
    digest: str = ""
    fm_version: str = ""
    driver_version: str = ""
    versions_differ: str = ""
    fm_log: tuple[str, ...] = ()
    fm_config: Mapping[str, str] = field(default_factory=dict)
    nvlsm: str = ""
    fabric_start: str = ""
    has_daemon: bool = False


class ServiceVmState(str, Enum):
    """How far the Service VM is."""

    UNMANAGED = "unmanaged"
    ABSENT = "absent"
    STARTING = "starting"
    BOOTING = "booting"
    AGENT_UP = "agent up"
    INITIALISING = "FM initialising"
    AWAITING_ACTIVE_LIST = "awaiting active list"
    READY = "ready"
    FAILED = "failed"


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
    """The agent, as the daemon sees it; all but the address is empty while it is unreachable."""

    address: str
    reachable: bool = False
    version: str = ""
    library: str = ""
    digest: str = ""
    fm_version: str = ""
    driver_version: str = ""
    versions_differ: str = ""


@dataclass(frozen=True)
class ServiceVmStatus:
    """The Service VM, as the daemon sees it.

    `message` explains a state that is not ready, `changed` tells that its next start takes another domain than the one
    that runs, and `degraded` why the host takes no new work, where it takes none. `image` is what the running domain
    was started from and `next_image` what its next start takes, both empty where the settings name the files;
    `upgrade` tells why the last upgrade was not kept. `fabric_generation` counts Fabric Manager's fresh starts.
    """

    state: ServiceVmState = ServiceVmState.UNMANAGED
    message: str = ""
    name: str = ""
    uuid: str = ""
    cid: int = 0
    changed: bool = False
    degraded: str = ""
    console_log: str = ""
    image: str = ""
    next_image: str = ""
    upgrade: str = ""
    fabric_generation: int = 0


class HookLoad(str, Enum):
    """Whether libvirt calls fmctl's hook, as far as that has been seen; unknown where libvirt is not fmctl's matter."""

    UNKNOWN = "unknown"
    NOT_INSTALLED = "not installed"
    NOT_LOADED = "not loaded"
    LOADED = "loaded"


@dataclass(frozen=True)
class GateStatus:
    """The gate that keeps VMs from GPUs that are not theirs.

    `degraded` tells which of its locks is open, and `alarms` which VMs have what they were not given.
    """

    hook: HookLoad = HookLoad.UNKNOWN
    degraded: str = ""
    alarms: tuple[str, ...] = ()


@dataclass(frozen=True)
class NewWork:
    """Why this host takes no new work, and what to do about it; both empty where it takes some.

    It is `passing` where nobody need do anything: GPUs are still being asked which they are.
    """

    refused: str = ""
    fix: str = ""
    passing: bool = False


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
    service_vm: ServiceVmStatus = ServiceVmStatus()
    gate: GateStatus = GateStatus()
    new_work: NewWork = NewWork()


@dataclass(frozen=True)
class HostInfo:
    """Which host this is: what a scheduler compares before it sends work. Versions are empty while unknown.

    `board` is a fingerprint of the partition table, and `store_id` names the store that revisions are of.
    `api_version` is that of the API which told it, empty before.
    """

    host_id: str = ""
    board: str = ""
    platform: str = ""
    fm_version: str = ""
    driver_version: str = ""
    image: str = ""
    required_guest_driver: str = ""
    version: str = ""
    store_id: str = ""
    fabric_generation: int = 0
    api_version: str = ""
    simulated: bool = False
