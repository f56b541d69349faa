# SPDX-License-Identifier: Apache-2.0
"""Answers libvirt's hook: `core.hook` decides, from what is known here without asking anybody.

Libvirt waits while its hook runs, so nothing here calls libvirt. What is decided on is looked at before, by `look`.
`control.parking` makes GPUs ready, and hands them over.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from fmctl.control.discovery import NoBoard
from fmctl.control.fabric import Fabric
from fmctl.control.leases import Leases
from fmctl.core import hook
from fmctl.core.answers import HookLoad
from fmctl.core.asking import DECIDES, MAX_DOCUMENT, Asking, Decision, Verdict
from fmctl.core.errors import BadRequest, FabricNotReady, FmctlError
from fmctl.core.gpumap import GpuMap
from fmctl.core.hook import Board, Known, Rules
from fmctl.core.inventory import Inventory
from fmctl.core.lease import LeaseState
from fmctl.core.plan import ACTOR
from fmctl.core.ports import HookFiles, Store
from fmctl.core.request import Request

log = logging.getLogger(__name__)

UNSEEN_LIFETIME = 600.0
"""Seconds after which a lease that was made as a VM starts ends if that VM was never seen."""
START_TIMEOUT = 120.0
"""Seconds within which a VM that may start is seen; it is not taken for one that is gone meanwhile."""
RELEASE_TIMEOUT = 30.0
"""Seconds that the end of such a lease may take; what is not done then is tried at the next look."""


class Readiness(Protocol):
    """What makes a lease's GPUs ready for its VM; `control.parking` is it."""

    @property
    def ready(self) -> frozenset[str]:
        """The leases whose GPUs are ready for their VMs, or are theirs."""

    def prepare(self, lease_id: str, *, timeout: float) -> object:
        """Get the GPUs of a lease ready; raises FmctlError."""

    def hand_over(self, lease_id: str) -> object:
        """Let its VM open them, now; raises FmctlError."""

    def take_back(self, lease_id: str) -> object:
        """Its VM has ended, or did not start: let nobody open them any more; never raises."""


@dataclass(frozen=True)
class ServiceVmStart:
    """Which domain is the Service VM: its UUID, and the fingerprint with which fmctl starts it.

    The fingerprint is empty where it does not, and None where somebody else may.
    """

    uuid: str
    fingerprint: Callable[[], str | None]


class Hook:
    """The daemon's side of the hook. Every method may be called from any thread, and `look` from one at a time."""

    def __init__(
        self,
        store: Store,
        fabric: Fabric,
        leases: Leases,
        readiness: Readiness,
        files: HookFiles,
        *,
        inventory: Callable[[], Inventory],
        gpu_map: Callable[[Inventory], GpuMap | None],
        generation: Callable[[], int],
        observed: Callable[[], str],
        service_vm: ServiceVmStart,
        rules: Rules,
        new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
        wake: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`inventory` raises NoBoard; `gpu_map` is the verified one, and may raise.

        `observed` tells why nothing is changed on this host.
        """
        self._store = store
        self._fabric = fabric
        self._leases = leases
        self._readiness = readiness
        self._files = files
        self._inventory = inventory
        self._gpu_map = gpu_map
        self._generation = generation
        self._observed = observed
        self._service_vm = service_vm
        self._rules = rules
        self._new_id = new_id
        self._wake = wake
        self._clock = clock
        self._lock = threading.Lock()
        self._board: Board | None = None
        self._began: dict[str, float] = {}
        self._ended: set[str] = set()

    @property
    def load(self) -> HookLoad:
        """Whether libvirt calls the hook."""
        return self._files.load()

    @property
    def board(self) -> Board | None:
        """The board as it was last seen; None before."""
        return self._board

    def look(self) -> None:
        """See which functions are the board's, and end the leases of VMs that they were made for; never raises."""
        self.see()
        if not self._observed():
            self._end_leases()

    def see(self) -> None:
        """See which functions are the board's, before which nothing is decided; never raises."""
        try:
            inventory = self._inventory()
            gpu_map = self._gpu_map(inventory)
            self._board = Board.of(inventory, gpu_map.addresses if gpu_map else {})
        except NoBoard:
            self._board = self._board or Board()
        except FmctlError as error:
            log.warning("which functions are the board's cannot be told: %s", error)
        if self._board is not None:
            self._files.keep(self._board.roles.keys())

    def check(self, operation: str, xml: str, caller: int) -> Decision:
        """Answer a call of the hook; raises BadRequest for a document that is none, and FabricNotReady before a look.

        Where the domain may start now, its VM can open its GPUs once this returns.
        """
        self._files.called(caller)
        asking = _asking(xml)
        if operation not in DECIDES:
            self._told(operation, asking)
            return Decision(Verdict.START)
        decision = self._decide(asking)
        if decision.verdict is Verdict.PREPARE and operation in ("migrate", "restore"):
            return replace(decision, verdict=Verdict.START)
        return self._start(asking, decision) if operation == "prepare" else decision

    def ready(self, xml: str, *, timeout: float) -> Decision:
        """After PREPARE: make the domain's lease where it has none, get its GPUs ready, and hand them over.

        Raises FmctlError where that fails.
        """
        asking = _asking(xml)
        decision = self._decide(asking)
        if decision.verdict is Verdict.PREPARE:
            lease_id = decision.lease_id or self._made(asking, decision.gpus, timeout)
            self._readiness.prepare(lease_id, timeout=timeout)
            decision = self._decide(asking)
        return self._start(asking, decision)

    def _decide(self, asking: Asking) -> Decision:
        if self._board is None:
            raise FabricNotReady("which functions are the board's is not known yet", fix="start the VM again shortly")
        seen = self._fabric.seen
        known = Known(
            self._board,
            self._store.book,
            frozenset(p.id for p in seen.partitions if p.active) if seen else frozenset(),
            self._generation(),
            self._readiness.ready,
            self._service_vm.uuid,
            self._service_vm.fingerprint(),
        )
        decision = hook.decide(asking, known, self._rules)
        if observed := self._observed():
            would = "" if decision.verdict is Verdict.START else f"this host is only observed ({observed}), and "
            warning = f"{would}would {decision.verdict.value} it: {decision.why}" if would else decision.warning
            decision = Decision(Verdict.START, warning=warning)
        if decision.verdict is Verdict.REFUSE or decision.warning:
            about = f"domain {asking.domain.name} ({asking.domain.uuid})"
            log.warning("%s: %s: %s", about, decision.verdict.value, decision.why or decision.warning)
        return decision

    def _start(self, asking: Asking, decision: Decision) -> Decision:
        """Hand over what the domain may have, if it may start."""
        if decision.verdict is Verdict.START and decision.lease_id:
            with self._lock:
                self._ended.discard(asking.domain.uuid)
                self._began[asking.domain.uuid] = self._clock()
            self._readiness.hand_over(decision.lease_id)
        return decision

    def _made(self, asking: Asking, gpus: tuple[int, ...], timeout: float) -> str:
        domain = asking.domain
        request = Request(
            domain.owner or "libvirt",
            hook.of_start(domain.uuid) + self._new_id(),
            gpu_ids=gpus,
            vm_uuid=domain.uuid,
            lifetime=UNSEEN_LIFETIME,
        )
        return self._leases.allocate(request.check(), timeout=timeout).id

    def _told(self, operation: str, asking: Asking) -> None:
        """Note what happened: with `release` a VM has ended, or did not start."""
        if operation == "release":
            with self._lock:
                self._began.pop(asking.domain.uuid, None)
                self._ended.add(asking.domain.uuid)
            for lease in tuple(self._store.book.leases.values()):
                if lease.vm_uuid == asking.domain.uuid:
                    self._readiness.take_back(lease.id)
        self._wake()

    def _end_leases(self) -> None:
        """End the leases that were made as their VMs started, of those that have ended."""
        for lease in tuple(self._store.book.leases.values()):
            if not lease.vm_uuid or not lease.request_id.startswith(hook.of_start(lease.vm_uuid)):
                continue
            with self._lock:
                begins = self._clock() - self._began.get(lease.vm_uuid, -math.inf) < START_TIMEOUT
                ended = lease.vm_uuid in self._ended or (lease.vm_gone is not None and not begins)
            if ended and lease.state is LeaseState.ACTIVE:
                try:
                    self._leases.release(lease.id, actor=ACTOR, timeout=RELEASE_TIMEOUT)
                except FmctlError as error:
                    log.info("lease %s, which was made as its VM started, is not ended yet: %s", lease.id, error)


def _asking(xml: str) -> Asking:
    """The domain that asks; raises BadRequest."""
    if len(xml) > MAX_DOCUMENT:
        raise BadRequest("the domain is refused", why=f"its document has more than {MAX_DOCUMENT} bytes")
    try:
        return Asking.from_xml(xml)
    except (ValueError, RecursionError) as error:
        raise BadRequest("the domain is refused", why=f"its document cannot be read: {error}") from error
