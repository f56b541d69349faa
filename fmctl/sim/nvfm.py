# SPDX-License-Identifier: Apache-2.0
"""Fabric Manager in memory: the port `FabricManager` over `sim.fabric`, with neither a process nor a library.

It raises what `guest.nvfm` and `guest.worker` raise in the same place, but never waits: a call that hangs has at once
taken as long as it might. `sim.fmserver` is the simulation with everything between.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from fmctl.core.errors import BadRequest, FmctlError
from fmctl.core.fmcode import FmCode, Operation, call_overran, call_refused, connect_refused
from fmctl.core.partition import PartitionList
from fmctl.sim.fabric import Fabric, Rejected
from fmctl.sim.faults import NO_FAULTS, Fault, FaultKind, FaultPlan, Faults

T = TypeVar("T")


class MemoryNvfm:
    """One Fabric Manager after another, any of which may be dead. Any number of threads may call."""

    def __init__(
        self, fabric: Fabric | None, faults: Faults = NO_FAULTS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start with `fabric`, or with none running. Raises BadRequest for a lie, which only bytes can tell."""
        if any(fault.kind is FaultKind.LIE for fault in faults.of_calls):
            raise BadRequest("a lie is refused", why="no counts are sent within one process", fix="simulate a process")
        self._fabric = fabric
        self._plan = FaultPlan(faults)
        self._clock = clock
        self._lock = threading.Lock()

    @property
    def fabric(self) -> Fabric | None:
        """The one that runs, for who wants to look without a call."""
        return self._fabric

    def fail(self, faults: Faults) -> None:
        """Let calls have these faults, counted from now on, and no others."""
        with self._lock:
            self._plan = FaultPlan(faults)

    def replace(self, fabric: Fabric | None) -> None:
        """Let this Fabric Manager run from now on, or none."""
        with self._lock:
            self._fabric = fabric

    def list_partitions(self, *, timeout: float) -> PartitionList:
        """The partitions, with their states."""
        return self._call(Operation.LIST, Fabric.partitions, timeout)

    def activate(self, partition_id: int, *, timeout: float) -> None:
        """Activate a partition."""
        self._call(Operation.ACTIVATE, lambda fm, now: fm.activate(partition_id, now), timeout, partition_id)

    def deactivate(self, partition_id: int, *, timeout: float) -> None:
        """Deactivate a partition."""
        self._call(Operation.DEACTIVATE, lambda fm, now: fm.deactivate(partition_id, now), timeout, partition_id)

    def set_activated(self, partition_ids: Sequence[int], *, timeout: float) -> None:
        """Tell a restarted Fabric Manager which partitions are active."""
        self._call(Operation.SET_ACTIVATED, lambda fm, now: fm.set_activated(partition_ids, now), timeout)

    def _call(
        self, operation: Operation, act: Callable[[Fabric, float], T], timeout: float, partition_id: int | None = None
    ) -> T:
        with self._lock:
            fabric = self._fabric
            if fabric is None:
                raise connect_refused(FmCode.CONNECTION_NOT_VALID, "memory")
            fault = self._plan.next(operation)
            if fault is not None and fault.kind is FaultKind.DELAY:  # nothing takes any time here
                fault = None
            try:
                if fault is None:
                    return act(fabric, self._clock())
                if fault.kind is FaultKind.DIE_AFTER:
                    act(fabric, self._clock())
            except Rejected as rejected:
                if fault is None:
                    raise call_refused(operation, rejected.code, partition_id) from rejected
            if fault.kind in (FaultKind.DIE_BEFORE, FaultKind.DIE_AFTER):
                self._fabric = None
        raise _failure(fault, operation, timeout, partition_id)


def _failure(fault: Fault, operation: Operation, timeout: float, partition_id: int | None) -> FmctlError:
    if fault.kind is FaultKind.HANG:
        return call_overran(operation, timeout, partition_id)
    code = fault.code if fault.kind is FaultKind.CODE else FmCode.CONNECTION_NOT_VALID
    return call_refused(operation, code, partition_id)
