# SPDX-License-Identifier: Apache-2.0
"""The procedure behind every call of the daemon's API, put together from the parts that share one turn.

`control.leases` makes and ends leases, `control.reconciler` brings them to their ends, `control.fabric` is Fabric
Manager; here is what only reads.
"""

from __future__ import annotations

import functools
import logging
import time
import uuid
from collections.abc import Callable, Sequence

from fmctl import __version__
from fmctl.control.admission import Admission
from fmctl.control.chooser import Chooser
from fmctl.control.fabric import Fabric, Turn
from fmctl.control.gpus import Gpus
from fmctl.control.layouts import Layouts
from fmctl.control.leases import Leases
from fmctl.control.marks import Marks
from fmctl.control.queries import Queries
from fmctl.control.reconciler import Reconciler
from fmctl.control.watch import WatchedStore
from fmctl.core import plan
from fmctl.core.answers import AgentInfo, AgentStatus, Changed, DaemonStatus, FabricState, GateStatus, Listed
from fmctl.core.book import Entry, Kind, Mark, MarkKind, of_mark, of_unmark
from fmctl.core.errors import AgentUnreachable, FabricNotReady, FmctlError, PolicyDenied
from fmctl.core.partition import PartitionList
from fmctl.core.plan import ACTOR
from fmctl.core.platform import Hardware, Platform, recognise
from fmctl.core.policy import Policy
from fmctl.core.ports import Agent, Gate, Store
from fmctl.core.rules import Rules

log = logging.getLogger(__name__)

STATUS_TIMEOUT = 5.0
"""Seconds after which a look at the agent is given up."""
LOOK_TIMEOUT = 2.0
"""Seconds after which a look at whether new work can be taken is given up."""
KEEP_LEASES = 24 * 3600.0
"""Seconds for which a lease that is over, and with it its request id, is kept."""
KEEP_ENTRIES = 30 * 24 * 3600.0
"""Seconds for which a watch can go back; the audit journal reaches further."""
COMPACT_INTERVAL = 3600.0
"""Seconds between two times that the store forgets what is older."""


class FabricController:
    """Lists, leases, activates and deactivates partitions for owners."""

    def __init__(
        self,
        agent: Agent,
        store: Store,
        gate: Gate,
        gpus: Gpus,
        *,
        rules: Rules | None = None,
        policy: Policy | None = None,
        agent_address: str = "",
        host_id: str = "",
        platform: Platform | None = None,
        known_platforms: Sequence[Platform] = (),
        call_timeout: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        started: float = 0.0,
        simulated: bool = False,
        wake: Callable[[], object] = lambda: None,
        require_map: Callable[[], None] = lambda: None,
        turn: Turn | None = None,
        new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
        lock: Callable[[], GateStatus] = GateStatus,
    ) -> None:
        """`platform` is the board if it is set; else it is told from `known_platforms` by Fabric Manager's table.

        `simulated` tells before the agent answers that it will use the simulator's library, `wake` lets the reconciler
        look at once, `new_id` names leases, and `lock` tells how the gate is that keeps VMs from GPUs. `require_map`
        raises while the GPU map is not verified, and `turn` is shared with who else changes what leases are made of.
        """
        self._agent = agent
        self.store = store if isinstance(store, WatchedStore) else WatchedStore(store)
        self._gate = gate
        self._gpus = gpus
        self._host_id = host_id
        self._agent_address = agent_address
        self._platform = platform
        self._known_platforms = known_platforms
        self._started = started
        self._simulated = simulated
        self._call_timeout = call_timeout
        self._now = now
        self._lock = lock
        self._last_status: AgentStatus | None = None
        self._compacted_at = -COMPACT_INTERVAL
        self.fabric = Fabric(agent, now, require_map)
        self.turn = turn or Turn(call_timeout, clock)
        self.policy = policy or Policy()
        self.chooser = Chooser(self.store, self.fabric, gpus, self.policy)
        self.reconciler = Reconciler(
            *(self.store, self.fabric, gpus, self.turn, rules or Rules()),
            generation=self.generation,
            now=now,
            beside=lambda seen: self.layouts.plan(seen),
        )
        self.admission = Admission(self.store, self.reconciler, self._refuse_new_work, self._versions)
        cleans = rules is not None and rules.clean
        self.marks = Marks(self.store, self.fabric, gpus, self.chooser, self.turn, cleans=cleans, now=now)
        self._new_id = new_id
        self._wake = wake

    @functools.cached_property
    def leases(self) -> Leases:
        """What makes, changes and ends leases."""
        return Leases(
            self.store,
            self.fabric,
            self.turn,
            self.chooser,
            self.reconciler,
            self.admission,
            generation=self.generation,
            now=self._now,
            new_id=self._new_id,
            wake=self._wake,
        )

    @functools.cached_property
    def layouts(self) -> Layouts:
        """What applies layouts, and plans for the one in force."""
        return Layouts(
            self.store,
            self.fabric,
            self.turn,
            self.reconciler,
            self.admission,
            self.policy,
            now=self._now,
            new_id=self._new_id,
            wake=self._wake,
        )

    @functools.cached_property
    def queries(self) -> Queries:
        """What only reads."""
        return Queries(
            self.store,
            self.fabric,
            self.chooser,
            self._gpus,
            host_id=self._host_id,
            versions=self._versions,
            service_vm=self._gate.status,
            platform=self._board,
            new_work=lambda: self.admission.new_work,
            policy=self.policy,
        )

    @property
    def simulated(self) -> bool:
        """Whether no hardware stands behind this daemon, as far as it has seen."""
        return self._simulated or (self.fabric.seen is not None and self.fabric.seen.simulated)

    def list_partitions(self, *, timeout: float) -> Listed:
        """Every partition as Fabric Manager lists it now, with its owner."""
        listed = self.fabric.peek(min(timeout, self._call_timeout))
        owners = self.chooser.owners()
        return Listed(listed, {p.id: owners[p.id] for p in listed.partitions if p.active and p.id in owners})

    def activate(
        self,
        owner: str,
        *,
        partition_id: int | None = None,
        gpu_ids: Sequence[int] = (),
        timeout: float,
        alive: Callable[[], bool] = lambda: True,
    ) -> Changed:
        """A lease on a partition, named by its id or by exactly its GPUs, for an owner; raises as `Leases.activate`."""
        lease, already = self.leases.activate(
            owner, partition_id=partition_id, gpu_ids=gpu_ids, timeout=timeout, alive=alive
        )
        listed = self._listed()
        named = listed.with_gpus(gpu_ids).id if partition_id is None else partition_id
        partition = listed.get(named if named in lease.partitions else lease.partitions[0])
        return Changed(partition.with_active(active=True), owner, already, self.simulated)

    def deactivate(self, owner: str, partition_id: int, *, timeout: float, force: bool = False) -> Changed:
        """End the lease on a partition; raises as `Leases.deactivate`."""
        already = self.leases.deactivate(owner, partition_id, timeout=timeout, force=force)
        partition = self._listed().get(partition_id)
        return Changed(partition.with_active(active=False), already=already, simulated=self.simulated)

    def _listed(self) -> PartitionList:
        """The table after a change, which is done, so that no more is asked about it than must be."""
        return self.fabric.seen or self.fabric.peek(STATUS_TIMEOUT)

    def status(self, *, timeout: float) -> DaemonStatus:
        """The daemon's state, and the agent's and Fabric Manager's as far as they answer; never raises."""
        seen, reachable = self._ask_agent(timeout)
        board = self._board()
        return DaemonStatus(
            version=__version__,
            started=self._started,
            agent=AgentInfo(
                self._agent_address,
                reachable=reachable,
                version=seen.version,
                library=seen.library,
                digest=seen.digest,
                fm_version=seen.fm_version,
                driver_version=seen.driver_version,
                versions_differ=seen.versions_differ,
            ),
            fabric_state=seen.state,
            fabric_message=seen.message,
            platform=board.name if board else "",
            simulated=self.simulated or seen.simulated,
            service_vm=self._gate.status(),
            gate=self._lock(),
            new_work=self.admission.new_work_within(min(timeout, LOOK_TIMEOUT)),
        )

    def _ask_agent(self, timeout: float) -> tuple[AgentStatus, bool]:
        """What the agent says of itself and of Fabric Manager, and whether it answered."""
        try:
            seen = self._last_status = self._agent.status(timeout=min(timeout, STATUS_TIMEOUT))
        except AgentUnreachable as error:
            return AgentStatus("", FabricState.UNREACHABLE, str(error)), False
        return seen, True

    def cordon(self, reason: str, *, actor: str) -> None:
        """Let the host take no new work, for good once this returns."""
        mark = Mark(MarkKind.CORDONED, reason, self._now())
        self.store.commit((of_mark(Kind.HOST, "", mark, actor=actor),), at=self._now())

    def uncordon(self, *, actor: str) -> None:
        """Let the host take new work again."""
        self._unmark(MarkKind.CORDONED, actor)

    def accept(self, *, actor: str) -> None:
        """End `observe`: from now on what is planned is done. Raises PolicyDenied where a setting says otherwise."""
        if self.reconciler.must_observe:
            raise PolicyDenied(
                "this host stays only observed",
                why=self.reconciler.observed,
                fix="set mode: manage, and restart fmctld",
            )
        self._unmark(MarkKind.OBSERVED, actor)

    def _unmark(self, kind: MarkKind, actor: str) -> None:
        if (Kind.HOST, "", kind) in self.store.book.marks:
            self.store.commit((of_unmark(Kind.HOST, "", kind, actor=actor),), at=self._now())

    def record(self, kind: Kind, what: str, detail: str = "") -> None:
        """Tell the journal and watchers what happened; never raises, since a repair must not wait for the store."""
        try:
            self.store.commit((Entry(kind, "", what, ACTOR, detail),), at=self._now())
        except FmctlError as error:
            log.warning("%s: %s is not recorded: %s", kind.value, what, error)

    def active(self) -> tuple[int, ...]:
        """The partitions that a Fabric Manager which takes up its state must be told are active.

        On a host that is only observed they are all that were seen active; raises FabricNotReady before they were.
        """
        if self.reconciler.is_observing:
            if self.fabric.seen is None:
                raise FabricNotReady(
                    "which partitions are active is not known",
                    why="this host is only observed, and Fabric Manager was not seen since this daemon started",
                    fix="`fmctl reconcile --accept`, which lets leases decide",
                )
            return tuple(partition.id for partition in self.fabric.seen.partitions if partition.active)
        return plan.to_set(self.store.book, self.fabric.seen)

    def refresh(self) -> tuple[FabricState, str]:
        """Fabric Manager's state and what explains it, with leases and partitions made the same set; never raises."""
        try:
            self._forget_old()
            self.reconciler.reconcile()
        except FmctlError:
            seen, _ = self._ask_agent(STATUS_TIMEOUT)
            return seen.state, seen.message
        if self._last_status is None or self._last_status.state is not FabricState.READY:
            self._ask_agent(STATUS_TIMEOUT)
        return FabricState.READY, ""

    def _forget_old(self) -> None:
        """Let the store forget what nobody asks for any more, now and then."""
        now = self._now()
        if now - self._compacted_at >= COMPACT_INTERVAL:
            self._compacted_at = now
            self.store.compact(leases_before=now - KEEP_LEASES, entries_before=now - KEEP_ENTRIES)

    def _versions(self) -> AgentStatus | None:
        """What the agent last said of itself."""
        return self._last_status

    def generation(self) -> int:
        """The fabric generation, as it was last seen."""
        return self._gate.status().fabric_generation

    def _refuse_new_work(self) -> None:
        self._refuse_unsupported()
        self._gate.refuse_new_work()
        self.fabric.permit()

    def _refuse_unsupported(self) -> None:
        platform = self._board()
        if platform is not None and platform.hardware is Hardware.UNSUPPORTED and not self.simulated:
            raise PolicyDenied(
                f"fmctl does not activate partitions on a real {platform.name}",
                why=platform.hardware_reason,
                fix="use a board that `fmctl platform list` shows as supported",
            )

    def _board(self) -> Platform | None:
        if self._platform is None and self.fabric.seen is not None:
            return recognise(self.fabric.seen, self._known_platforms)
        return self._platform
