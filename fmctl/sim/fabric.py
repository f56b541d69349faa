# SPDX-License-Identifier: Apache-2.0
"""Fabric Manager's rules in shared NVSwitch mode: no I/O and no clock, every method is told the time in seconds.

`sim.fmserver` puts these rules behind a socket, `sim.nvfm` behind the port `FabricManager`. The sources are the public
SDK headers and the Fabric Manager User Guide; what neither confirms says so here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum

from fmctl.core.errors import BadRequest
from fmctl.core.fmcode import FmCode
from fmctl.core.partition import Gpu, Partition, PartitionList
from fmctl.core.platform import ErrorFamily, PartitionRow, Platform
from fmctl.sim.saved import SavedState, gpu_uuid
from fmctl.sim.sysfs import gpu_addresses

RESTART_WINDOW = 60.0
"""Seconds in which a restarted Fabric Manager must be told the active partitions (FM User Guide)."""

_ALREADY_ACTIVE = {ErrorFamily.NVL4: FmCode.IN_USE, ErrorFamily.NVL5: FmCode.PARTITION_ID_IN_USE}
_NOT_ACTIVE = {ErrorFamily.NVL4: FmCode.UNINITIALIZED, ErrorFamily.NVL5: FmCode.PARTITION_ID_NOT_IN_USE}


class Phase(Enum):
    """How far Fabric Manager got."""

    INITIALISING = "initialising"
    AWAITING_ACTIVE_LIST = "awaiting active list"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True)
class FailedDevice:
    """A device none of whose NVLinks work."""

    uuid: str
    pci_bus_id: str
    ports: int
    """How many NVLink ports it has; they count from 0."""


class Rejected(Exception):
    """Fabric Manager's answer is another code than success."""

    def __init__(self, code: FmCode) -> None:
        super().__init__(code.name)
        self.code = code


class Fabric:
    """One run of Fabric Manager, from its start to its end."""

    def __init__(
        self, platform: Platform, state: SavedState, *, ready_at: float, awaiting: bool, awaiting_code: FmCode
    ) -> None:
        """`started` and `restarted` are the ways to make one."""
        self.platform = platform
        self.state = state
        """What a restart needs; it stays the same for the whole run."""
        self.ready_at = ready_at
        self._restart = awaiting
        self._awaiting = awaiting
        self._awaiting_code = awaiting_code
        self._listed = PartitionList(
            partitions=tuple(_partition(platform, row) for row in state.partitions),
            max_partitions=len(platform.partitions),
            simulated=True,
        )

    @classmethod
    def started(
        cls, platform: Platform, *, now: float, missing_gpus: Collection[int] = (), start_seconds: float = 0.0
    ) -> Fabric:
        """A normal start, which forgets what was active; it takes `start_seconds` to be ready."""
        _check_gpus(platform, missing_gpus)
        state = SavedState.of(platform, missing_gpus)
        return cls(platform, state, ready_at=now + start_seconds, awaiting=False, awaiting_code=FmCode.NOT_CONFIGURED)

    @classmethod
    def restarted(
        cls,
        platform: Platform,
        saved: SavedState,
        source: str,
        *,
        now: float,
        missing_gpus: Collection[int] = (),
        start_seconds: float = 0.0,
        awaiting_code: FmCode = FmCode.NOT_CONFIGURED,
    ) -> Fabric:
        """A start with --restart from what an earlier run saved; raises StateUnusable if the board is another now.

        It then waits for `set_activated`. What the real one answers to other calls meanwhile is unconfirmed, beyond
        that it rejects them: `awaiting_code` is a guess.
        """
        _check_gpus(platform, missing_gpus)
        saved.require_same(SavedState.of(platform, missing_gpus), source)
        return cls(platform, saved, ready_at=now + start_seconds, awaiting=True, awaiting_code=awaiting_code)

    @property
    def fails_at(self) -> float | None:
        """When the run ends unless it is told the active partitions first; None where it will not."""
        return self.ready_at + RESTART_WINDOW if self._awaiting else None

    def phase(self, now: float) -> Phase:
        """How far it got."""
        if now < self.ready_at:
            return Phase.INITIALISING
        if self.fails_at is None:
            return Phase.READY
        return Phase.AWAITING_ACTIVE_LIST if now < self.fails_at else Phase.FAILED

    def partitions(self, now: float) -> PartitionList:
        """The supported partitions with their states; the same object until one of them changes."""
        self._require_ready(now)
        return self._listed

    def activate(self, partition_id: int, now: float) -> None:
        """Activate a partition that is inactive and shares no GPU with an active one."""
        partition = self._find(partition_id, now)
        if partition.active:
            raise Rejected(_ALREADY_ACTIVE[self.platform.error_family])
        if self._listed.blockers(partition):
            raise Rejected(FmCode.IN_USE)
        self._listed = self._listed.with_active(partition_id, active=True)

    def deactivate(self, partition_id: int, now: float) -> None:
        """Deactivate a partition that is active."""
        partition = self._find(partition_id, now)
        if not partition.active:
            raise Rejected(_NOT_ACTIVE[self.platform.error_family])
        self._listed = self._listed.with_active(partition_id, active=False)

    def set_activated(self, partition_ids: Sequence[int], now: float) -> None:
        """Take the list of active partitions that a restart waits for.

        That a list which contradicts itself is BADPARAM, and a list nobody waits for NOT_SUPPORTED, is unconfirmed.
        """
        self._require_initialised(now)
        if not self._awaiting:
            raise Rejected(FmCode.NOT_SUPPORTED)
        listed = self._listed
        for partition_id in partition_ids:
            partition = listed.find(partition_id)
            if partition is None or partition.active or listed.blockers(partition):
                raise Rejected(FmCode.BADPARAM)
            listed = listed.with_active(partition_id, active=True)
        self._listed = listed
        self._awaiting = False

    def activate_with_vfs(self, now: float) -> None:
        """Reject what only Fabric Manager's vGPU mode serves."""
        self._require_ready(now)
        raise Rejected(FmCode.NOT_SUPPORTED)

    def failed_devices(self, now: float) -> tuple[FailedDevice, ...]:
        """The GPUs that the board lost; that a missing one counts as failed is unconfirmed. No others fail here."""
        self._require_initialised(now)
        if self._restart and self.platform.drops_failed_gpus:
            raise Rejected(FmCode.NOT_SUPPORTED)
        kept = {gpu for gpu, _ in self.state.gpus}
        return tuple(_failed(self.platform, gpu) for gpu in self.platform.physical_ids if gpu not in kept)

    def unsupported(self, now: float) -> tuple[PartitionRow, ...]:
        """The rows of the table that this board lost with its missing GPUs."""
        self._require_initialised(now)
        kept = {row.id for row in self.state.partitions}
        return tuple(row for row in self.platform.partitions if row.id not in kept)

    def _find(self, partition_id: int, now: float) -> Partition:
        self._require_ready(now)
        found = self._listed.find(partition_id)
        if found is None:
            raise Rejected(FmCode.BADPARAM)
        return found

    def _require_ready(self, now: float) -> None:
        self._require_initialised(now)
        if self._awaiting:
            raise Rejected(self._awaiting_code)

    def _require_initialised(self, now: float) -> None:
        phase = self.phase(now)
        if phase is Phase.INITIALISING:
            raise Rejected(FmCode.NOT_CONFIGURED)
        if phase is Phase.FAILED:
            raise Rejected(FmCode.CONNECTION_NOT_VALID)


def _check_gpus(platform: Platform, missing_gpus: Collection[int]) -> None:
    unknown = sorted(set(missing_gpus) - set(platform.physical_ids))
    if unknown:
        raise BadRequest(
            f"GPU {unknown[0]} cannot be missing",
            why=f"{platform.name} has GPUs {', '.join(map(str, platform.physical_ids))}",
            fix="name a GPU that the board has",
        )


def _partition(platform: Platform, row: PartitionRow) -> Partition:
    return Partition(id=row.id, gpus=tuple(_gpu(platform, gpu, row.nvlinks_per_gpu) for gpu in row.gpu_ids))


def _gpu(platform: Platform, physical_id: int, nvlinks: int) -> Gpu:
    """A GPU as Fabric Manager reports it: with a uuid and a PCI address up to NVLink 3 only."""
    return Gpu(
        physical_id=physical_id,
        nvlinks=nvlinks,
        nvlinks_max=nvlinks,
        line_rate_mbps=platform.line_rate_mbps.value if platform.line_rate_mbps else 0,
        uuid=gpu_uuid(platform, physical_id),
        pci_bus_id=_pci_bus_id(platform, physical_id),
    )


def _failed(platform: Platform, physical_id: int) -> FailedDevice:
    ports = max(row.nvlinks_per_gpu for row in platform.partitions if physical_id in row.gpu_ids)
    return FailedDevice(gpu_uuid(platform, physical_id), _pci_bus_id(platform, physical_id), ports)


def _pci_bus_id(platform: Platform, physical_id: int) -> str:
    """The address that a pretended host has the GPU at; bus 0 from NVLink 4 on."""
    bus = gpu_addresses(platform)[physical_id].bus if platform.drops_failed_gpus else 0
    return f"00000000:{bus:02X}:00.0"
