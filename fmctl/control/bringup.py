# SPDX-License-Identifier: Apache-2.0
"""Brings a lease to ACTIVE for a caller that waits, and leaves nothing of one that does not get there.

`control.leases` begins a lease and hands it on to this, with the turn. What cannot be undone at once,
`control.reconciler` undoes later; it also brings up the leases that nobody waits for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import replace

from fmctl.control.chooser import Chooser
from fmctl.control.fabric import Budget, Fabric
from fmctl.control.reconciler import Reconciler
from fmctl.core.errors import ActivationFailed, FabricNotReady, FmctlError, OutcomeUnknown
from fmctl.core.fmcode import ALREADY_ACTIVE
from fmctl.core.lease import Ending, Lease, LeaseState

log = logging.getLogger(__name__)


class Cancelled(FabricNotReady):
    """The caller is gone before its lease was ACTIVE, so the lease is undone."""


class BringUp:
    """Activates what leases hold. Every method is called with the turn."""

    def __init__(
        self,
        fabric: Fabric,
        chooser: Chooser,
        reconciler: Reconciler,
        *,
        generation: Callable[[], int],
        now: Callable[[], float],
        wake: Callable[[], object],
    ) -> None:
        """`wake` lets the reconciler look at once."""
        self._fabric = fabric
        self._chooser = chooser
        self._reconciler = reconciler
        self._generation = generation
        self._now = now
        self._wake = wake

    def bring_up(
        self, lease: Lease, budget: Budget, alive: Callable[[], bool], *, stood: Collection[int] = ()
    ) -> Lease:
        """Activate what the lease holds, and commit it; what fails is undone, or goes on where nobody waits for it.

        For the partitions that `stood` Fabric Manager may have been asked before, so an active one is the lease's. The
        commit is what makes the lease good: where it fails, the lease is as one whose caller died.
        """
        if lease.unattended:
            return self._advanced(lease, budget)
        active: list[int] = []
        try:
            while left := [partition for partition in lease.partitions if partition not in active]:
                try:
                    self._fabric.activate(left[0], budget, self._chooser.owners(), ours=left[0] in stood)
                    active.append(left[0])
                except ActivationFailed as error:
                    lease = self._moved(lease, error, budget)
            if not alive():
                raise Cancelled("the call was cancelled", why="its caller is gone", fix="make it again")
        except FmctlError as error:
            self._undo(lease, {*active, *stood, *self._fabric.unsettled, *_doubtful(lease, error)}, budget, error)
            raise
        done = replace(
            lease, state=LeaseState.ACTIVE, generation=self._generation(), unsettled_until=self._settles(lease)
        )
        return self._reconciler.put(done, "active", lease.owner)

    def _advanced(self, lease: Lease, budget: Budget) -> Lease:
        """A lease that the reconciler brings up, once it is ACTIVE; it goes on where this raises FabricNotReady."""
        lease = self._reconciler.advance(lease.id, budget) or lease
        if lease.state in (LeaseState.RELEASING, LeaseState.FAILED):
            raise ActivationFailed(f"lease {lease.id} failed", why=lease.reason, fix="use another host")
        if lease.state is not LeaseState.ACTIVE:
            raise FabricNotReady(
                f"lease {lease.id} is not active yet",
                why="another partition is in its way, and it goes on by itself",
                fix="see `fmctl reconcile --dry-run` for what is in the way",
            )
        return lease

    def _moved(self, lease: Lease, error: ActivationFailed, budget: Budget) -> Lease:
        """The lease on the next candidate; raises the error where there is none."""
        try:
            return self._reconciler.move(lease, error, budget)
        except FmctlError:
            raise error from None

    def _undo(self, lease: Lease, ours: Collection[int], budget: Budget, error: FmctlError) -> None:
        """Leave nothing of a request that failed: what was activated for it, or may be, is deactivated.

        A partition that is none of `ours` may be active for somebody, and stays. What cannot be done now, or not be
        written, the reconciler does later; while the outcome is unknown it waits for the same request again.
        """
        try:
            kept = tuple(partition for partition in lease.partitions if partition in ours)
            if not kept:
                gone = replace(lease, state=LeaseState.FAILED, ended=self._now())
                self._reconciler.forget(gone, "undone", lease.owner)
                return
            left = replace(
                lease,
                state=LeaseState.RELEASING,
                ending=Ending.UNDONE,
                reason=str(error),
                unsettled_until=self._settles(lease),
            )
            if kept != lease.partitions:
                listed = self._fabric.known(budget.look())
                gpus = tuple(gpu for partition in kept for gpu in listed.get(partition).gpu_ids)
                left = replace(left, partitions=kept, gpus=gpus, spare=())
            self._reconciler.put(left, "given up", lease.owner)
            if not isinstance(error, OutcomeUnknown):
                self._reconciler.advance(lease.id, budget)
        except FmctlError as problem:
            log.warning("lease %s is undone later: %s", lease.id, problem)
        self._wake()

    def _settles(self, lease: Lease) -> float:
        """From when on no call about its partitions that was given up can take effect."""
        unsettled = self._fabric.unsettled
        return max((lease.unsettled_until, *(unsettled.get(partition, 0.0) for partition in lease.partitions)))


def _doubtful(lease: Lease, error: FmctlError) -> tuple[int, ...]:
    """What is kept for the same request again, which settles the matter; nothing that was in use before it."""
    unknown = isinstance(error, OutcomeUnknown) and error.fm_code not in ALREADY_ACTIVE
    return lease.partitions if unknown else ()
