# SPDX-License-Identifier: Apache-2.0
"""Partitions on request: the procedure behind every call of the daemon's API.

One change at a time. A claim is written before Fabric Manager is asked, so that an owner who asks again after any
crash is known; `core.outcome` judges every answer but success over a fresh list. Leases will take the claims' place.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from fmctl import __version__
from fmctl.core import outcome
from fmctl.core import owner as owners
from fmctl.core.answers import AgentInfo, AgentStatus, Changed, DaemonStatus, FabricState, Listed
from fmctl.core.errors import (
    AgentUnreachable,
    BadRequest,
    FabricNotReady,
    FmctlError,
    NoSuchPartition,
    OutcomeUnknown,
    PolicyDenied,
)
from fmctl.core.fmcode import ALREADY_ACTIVE, NOT_ACTIVE
from fmctl.core.partition import Partition, PartitionList
from fmctl.core.platform import Hardware, Platform, recognise
from fmctl.core.ports import Agent, Claims, Gate

log = logging.getLogger(__name__)

STATUS_TIMEOUT = 5.0
"""Seconds after which a look at the agent is given up."""


class _Budget:
    """The time that a caller leaves for a change: three quarters for the change, the rest to see what came of it."""

    def __init__(self, seconds: float, most: float, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._deadline = clock() + seconds
        self._most = most

    def change(self) -> float:
        return min(self._most, 0.75 * self._left())

    def look(self) -> float:
        return min(self._most, self._left())

    def _left(self) -> float:
        return max(0.05, self._deadline - self._clock())


class FabricController:
    """Lists, activates and deactivates partitions for owners, over the ports `Agent`, `Claims` and `Gate`."""

    def __init__(
        self,
        agent: Agent,
        claims: Claims,
        gate: Gate,
        *,
        agent_address: str = "",
        platform: Platform | None = None,
        known_platforms: Sequence[Platform] = (),
        call_timeout: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        started: float = 0.0,
        simulated: bool = False,
    ) -> None:
        """`platform` is the board if it is set; else it is told from `known_platforms` by Fabric Manager's table.

        `simulated` tells before the agent answers that it will use the simulator's library.
        """
        self._agent = agent
        self._claims = claims
        self._gate = gate
        self._agent_address = agent_address
        self._platform = platform
        self._known_platforms = known_platforms
        self._call_timeout = call_timeout
        self._clock = clock
        self._started = started
        self._simulated = simulated
        self._turn = threading.Lock()
        self._seen: PartitionList | None = None

    @property
    def simulated(self) -> bool:
        """Whether no hardware stands behind this daemon, as far as it has seen."""
        return self._simulated or (self._seen is not None and self._seen.simulated)

    def list_partitions(self, *, timeout: float) -> Listed:
        """Every partition as Fabric Manager lists it now, with its owner."""
        listed = self._agent.list_partitions(timeout=min(timeout, self._call_timeout))
        self._seen = self._seen or listed
        owners_now = self._claims.owners()
        return Listed(listed, {p.id: owners_now[p.id] for p in listed.partitions if p.active and p.id in owners_now})

    def activate(
        self, owner: str, *, partition_id: int | None = None, gpu_ids: Sequence[int] = (), timeout: float
    ) -> Changed:
        """Activate a partition, named by its id or by exactly its GPUs, for an owner.

        Raises NoSuchPartition, HostCordoned, PartitionHeld, PolicyDenied, ActivationFailed, FabricNotReady,
        AgentUnreachable, or OutcomeUnknown, after which the same call settles the matter.
        """
        owners.check(owner)
        with self._taking_turns(timeout) as budget:
            partition = self._resolve(partition_id, gpu_ids, budget)
            self._refuse_unsupported()
            self._gate.refuse_new_work()
            self._refuse_held(partition, owner, budget)
            already = self._activate(partition, owner, budget)
            if not already:
                log.info("partition %d is active for %s", partition.id, owner)
            return Changed(self._note(partition, active=True), owner, already, self.simulated)

    def deactivate(self, owner: str, partition_id: int, *, timeout: float) -> Changed:
        """Deactivate a partition that the owner, or nobody, holds; raises as `activate` does."""
        owners.check(owner)
        with self._taking_turns(timeout) as budget:
            partition = self._resolve(partition_id, (), budget)
            holder = self._claims.owners().get(partition_id)
            if holder not in (None, owner):
                self._refuse_held(partition, owner, budget)
            already = self._deactivate(partition, budget)
            self._claims.drop(partition_id)
            if not already:
                log.info("partition %d is inactive, on request of %s", partition.id, owner)
            return Changed(self._note(partition, active=False), already=already, simulated=self.simulated)

    def status(self, *, timeout: float) -> DaemonStatus:
        """The daemon's state, and the agent's and Fabric Manager's as far as they answer; never raises."""
        try:
            seen = self._agent.status(timeout=min(timeout, STATUS_TIMEOUT))
            agent = AgentInfo(
                self._agent_address,
                reachable=True,
                version=seen.version,
                library=seen.library,
                digest=seen.digest,
                fm_version=seen.fm_version,
                driver_version=seen.driver_version,
                versions_differ=seen.versions_differ,
            )
        except AgentUnreachable as error:
            seen = AgentStatus("", FabricState.UNREACHABLE, str(error))
            agent = AgentInfo(self._agent_address)
        board = self._board()
        return DaemonStatus(
            version=__version__,
            started=self._started,
            agent=agent,
            fabric_state=seen.state,
            fabric_message=seen.message,
            platform=board.name if board else "",
            simulated=self.simulated or seen.simulated,
            service_vm=self._gate.status(),
        )

    def active(self) -> tuple[int, ...]:
        """The partitions that are active as far as is known: as last seen or, before that, as claimed."""
        if self._seen is None:
            return tuple(sorted(self._claims.owners()))
        return tuple(partition.id for partition in self._seen.partitions if partition.active)

    def refresh(self) -> tuple[FabricState, str]:
        """Fabric Manager's state and what explains it, seen afresh with its partitions; never raises."""
        try:
            listed = self._agent.list_partitions(timeout=STATUS_TIMEOUT)
        except FmctlError:
            status = self.status(timeout=STATUS_TIMEOUT)
            return status.fabric_state, status.fabric_message
        if self._turn.acquire(blocking=False):
            self._seen = listed
            self._turn.release()
        return FabricState.READY, ""

    def _activate(self, partition: Partition, owner: str, budget: _Budget) -> bool:
        ours = self._claims.owners().get(partition.id) == owner
        if not ours:
            self._claims.put(partition.id, owner)
        try:
            self._agent.activate(partition.id, timeout=budget.change())
            return False
        except OutcomeUnknown as failure:
            return self._settle_activation(failure, partition.id, budget, ours=ours)
        except FmctlError:
            if not ours:
                self._claims.drop(partition.id)
            raise

    def _settle_activation(self, failure: OutcomeUnknown, partition_id: int, budget: _Budget, *, ours: bool) -> bool:
        listed = self._look_after(failure, budget)
        try:
            outcome.settle_activation(failure, listed, partition_id, self._claims.owners(), ours=ours)
        except OutcomeUnknown:
            raise
        except FmctlError:
            self._claims.drop(partition_id)
            raise
        return failure.fm_code in ALREADY_ACTIVE

    def _deactivate(self, partition: Partition, budget: _Budget) -> bool:
        try:
            self._agent.deactivate(partition.id, timeout=budget.change())
            return False
        except OutcomeUnknown as failure:
            outcome.settle_deactivation(failure, self._look_after(failure, budget), partition.id)
            return failure.fm_code in NOT_ACTIVE

    def _refuse_unsupported(self) -> None:
        platform = self._board()
        if platform is not None and platform.hardware is Hardware.UNSUPPORTED and not self.simulated:
            raise PolicyDenied(
                f"fmctl does not activate partitions on a real {platform.name}",
                why=platform.hardware_reason,
                fix="use a board that `fmctl platform list` shows as supported",
            )

    def _refuse_held(self, partition: Partition, owner: str, budget: _Budget) -> None:
        holder = self._claims.owners().get(partition.id)
        if holder == owner or (holder is None and not partition.active):
            return
        if self._look(budget.look()).get(partition.id).active:
            raise outcome.held(partition, holder)
        self._claims.drop(partition.id)

    def _resolve(self, partition_id: int | None, gpu_ids: Sequence[int], budget: _Budget) -> Partition:
        if (partition_id is None) == (not gpu_ids):
            raise BadRequest(
                "the partition is not named",
                why="an id or a set of GPUs is wanted, and not both",
                fix="give one of them",
            )

        def find(listed: PartitionList) -> Partition:
            return listed.with_gpus(gpu_ids) if partition_id is None else listed.get(partition_id)

        if self._seen is not None:
            with contextlib.suppress(NoSuchPartition):
                return find(self._seen)
        return find(self._look(budget.look()))

    def _look(self, timeout: float) -> PartitionList:
        self._seen = self._agent.list_partitions(timeout=timeout)
        return self._seen

    def _look_after(self, failure: OutcomeUnknown, budget: _Budget) -> PartitionList:
        """A fresh list, without which the change's outcome stays unknown."""
        try:
            return self._look(budget.look())
        except FmctlError as error:
            raise OutcomeUnknown(
                failure.what,
                why=f"{failure.why}; and the partitions cannot be listed: {error}",
                fix=failure.fix,
                fm_code=failure.fm_code,
                partition_id=failure.partition_id,
            ) from error

    def _note(self, partition: Partition, *, active: bool) -> Partition:
        if self._seen is not None:
            self._seen = self._seen.with_active(partition.id, active=active)
        return partition.with_active(active=active)

    def _board(self) -> Platform | None:
        if self._platform is None and self._seen is not None:
            return recognise(self._seen, self._known_platforms)
        return self._platform

    @contextlib.contextmanager
    def _taking_turns(self, timeout: float) -> Iterator[_Budget]:
        """Wait half the time at most, so that no change is begun with too little left to see it through."""
        budget = _Budget(timeout, self._call_timeout, self._clock)
        if not self._turn.acquire(timeout=max(0.0, timeout / 2)):
            raise FabricNotReady(
                "another change is under way", why=f"it did not end within {timeout / 2:.1f} s", fix="try again shortly"
            )
        try:
            yield budget
        finally:
            self._turn.release()
