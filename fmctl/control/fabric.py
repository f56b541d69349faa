# SPDX-License-Identifier: Apache-2.0
"""Fabric Manager's partitions: as they were last listed, and changed so that the outcome is known.

`core.outcome` judges every answer but success over a fresh list. `control.leases` and `control.reconciler` say what to
change, one change at a time, under the one `Turn`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from fmctl.core import outcome
from fmctl.core.errors import FabricNotReady, FmctlError, OutcomeUnknown
from fmctl.core.fmcode import ALREADY_ACTIVE, NO_VERDICT, NOT_ACTIVE
from fmctl.core.partition import PartitionList
from fmctl.core.plan import LATE
from fmctl.core.ports import Agent


@dataclass(frozen=True)
class Budget:
    """The time that a caller leaves: three quarters of what is left for a change, the rest to see what came of it.

    No single call to Fabric Manager takes more than `most` seconds.
    """

    deadline: float
    most: float
    clock: Callable[[], float] = time.monotonic

    def change(self) -> float:
        """Seconds for a change."""
        return min(self.most, 0.75 * self.left)

    def look(self) -> float:
        """Seconds for a list."""
        return min(self.most, self.left)

    @property
    def left(self) -> float:
        """Seconds until the deadline, and some even after it."""
        return max(0.05, self.deadline - self.clock())


class Turn:
    """The one lock of this host's leases and partitions. Whoever has it may wait for Fabric Manager, never libvirt."""

    def __init__(self, most: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`most` is how many seconds a call to Fabric Manager may take."""
        self._lock = threading.Lock()
        self._most = most
        self._clock = clock

    @contextlib.contextmanager
    def within(self, timeout: float) -> Iterator[Budget]:
        """Wait half the time at most, so that no change is begun with too little left to see it through.

        Raises FabricNotReady where another change takes longer.
        """
        budget = Budget(self._clock() + timeout, self._most, self._clock)
        if not self._lock.acquire(timeout=max(0.0, timeout / 2)):
            raise FabricNotReady(
                "another change is under way", why=f"it did not end within {timeout / 2:.1f} s", fix="try again shortly"
            )
        try:
            yield budget
        finally:
            self._lock.release()


class Fabric:
    """Fabric Manager behind the agent. All but `seen` and `peek` belong to whoever has the turn."""

    def __init__(
        self, agent: Agent, now: Callable[[], float] = time.time, permit: Callable[[], None] = lambda: None
    ) -> None:
        """`now` is in seconds since the epoch; `permit` raises where nothing may be activated."""
        self._agent = agent
        self.permit = permit
        self._now = now
        self._seen: PartitionList | None = None
        self._changes = 0
        self._unsettled: dict[int, float] = {}
        self._deactivating: set[int] = set()

    @property
    def changes(self) -> int:
        """How often a change was begun or ended: a list from in between tells what no longer counts."""
        return self._changes

    @property
    def seen(self) -> PartitionList | None:
        """The partitions as they were last seen, with what was changed since; None before the first list."""
        return self._seen

    @property
    def unsettled(self) -> Mapping[int, float]:
        """Until when a call about a partition may take effect that was given up, in seconds since the epoch."""
        return self._unsettled

    def may_end(self, partitions: Iterable[int]) -> bool:
        """Whether a call that was given up may yet deactivate one of these."""
        return any(partition in self._unsettled and partition in self._deactivating for partition in partitions)

    def unsettle(self, partitions: Iterable[int], *, deactivating: bool = True) -> None:
        """Know that a call about these partitions may have been given up just now; with what it was for, if known."""
        partitions = tuple(partitions)
        self._unsettled = {**self._unsettled, **dict.fromkeys(partitions, self._now() + LATE)}
        if deactivating:
            self._deactivating.update(partitions)

    def peek(self, timeout: float) -> PartitionList:
        """The partitions as Fabric Manager lists them now; raises what `list_partitions` does."""
        before = self._changes
        listed = self._agent.list_partitions(timeout=timeout)
        if self._seen is None and before == self._changes:
            self._seen = listed
        return listed

    def look(self, timeout: float) -> PartitionList:
        """The same, to go on from."""
        began = self._now()
        listed = self.note(self._agent.list_partitions(timeout=timeout))
        self._unsettled = {partition: until for partition, until in self._unsettled.items() if until > began}
        self._deactivating.intersection_update(self._unsettled)
        return listed

    def note(self, listed: PartitionList) -> PartitionList:
        """Go on from that list, which is newer than the last change."""
        self._seen = listed
        return listed

    def known(self, timeout: float) -> PartitionList:
        """The partitions as last seen; as they are now if they never were, or may have changed by themselves since."""
        return self.look(timeout) if self._seen is None or self._unsettled else self._seen

    def activate(self, partition_id: int, budget: Budget, owners: Mapping[int, str], *, ours: bool) -> bool:
        """Activate a partition; whether it was active before. `ours` tells that its lease stood before this call.

        Raises PartitionHeld, ActivationFailed, MapUnverified, FabricNotReady, AgentUnreachable, or OutcomeUnknown.
        """
        self.permit()
        try:
            with self._changing():
                self._agent.activate(partition_id, timeout=budget.change())
        except OutcomeUnknown as failure:
            listed = self._look_after(failure, partition_id, budget, deactivating=False)
            outcome.settle_activation(failure, listed, partition_id, owners, ours=ours)
            return failure.fm_code in ALREADY_ACTIVE
        self._changed(partition_id, active=True)
        return False

    def deactivate(self, partition_id: int, budget: Budget) -> bool:
        """Deactivate a partition; whether it was inactive before. Raises as `activate` does."""
        try:
            with self._changing():
                self._agent.deactivate(partition_id, timeout=budget.change())
        except OutcomeUnknown as failure:
            listed = self._look_after(failure, partition_id, budget, deactivating=True)
            outcome.settle_deactivation(failure, listed, partition_id)
            return failure.fm_code in NOT_ACTIVE
        self._changed(partition_id, active=False)
        return False

    def _look_after(
        self, failure: OutcomeUnknown, partition_id: int, budget: Budget, *, deactivating: bool
    ) -> PartitionList:
        """A fresh list, without which the change's outcome stays unknown.

        A call that was given up may take effect after it, even where the list shows what the call was for: another tool
        may have done that.
        """
        if failure.fm_code is None or failure.fm_code in NO_VERDICT:
            self.unsettle((partition_id,), deactivating=deactivating)
        try:
            return self.look(budget.look())
        except FmctlError as error:
            self._seen = None
            raise OutcomeUnknown(
                failure.what,
                why=f"{failure.why}; and the partitions cannot be listed: {error}",
                fix=failure.fix,
                fm_code=failure.fm_code,
                partition_id=failure.partition_id,
            ) from error

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        self._changes += 1
        try:
            yield
        finally:
            self._changes += 1

    def _changed(self, partition_id: int, *, active: bool) -> None:
        if self._seen is not None:
            self._seen = self._seen.with_active(partition_id, active=active)
