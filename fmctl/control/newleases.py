# SPDX-License-Identifier: Apache-2.0
"""The first commit of a lease: on partitions that nobody has, or in the place of a lease of the layout's.

`control.leases` asks for it, with the turn, once the host takes the request, and has it brought to ACTIVE.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import replace

from fmctl.control.admission import Admission
from fmctl.control.bringup import Cancelled
from fmctl.control.chooser import Chooser
from fmctl.control.fabric import Budget, Fabric
from fmctl.control.reconciler import Reconciler
from fmctl.core import standing
from fmctl.core.allocate import Grant
from fmctl.core.book import of_lease
from fmctl.core.lease import Lease, LeaseState
from fmctl.core.ports import Store
from fmctl.core.request import Request


class NewLeases:
    """Begins leases. Every method is called with the turn."""

    def __init__(
        self,
        store: Store,
        fabric: Fabric,
        chooser: Chooser,
        reconciler: Reconciler,
        admission: Admission,
        *,
        generation: Callable[[], int] = lambda: 0,
        now: Callable[[], float] = time.time,
        new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
    ) -> None:
        self._store = store
        self._fabric = fabric
        self._chooser = chooser
        self._reconciler = reconciler
        self._admission = admission
        self._generation = generation
        self._now = now
        self._new_id = new_id

    def begin(
        self, request: Request, budget: Budget, alive: Callable[[], bool], *, unattended: bool
    ) -> tuple[Lease, tuple[int, ...]]:
        """A lease for the request, and those of its partitions that Fabric Manager was asked for before.

        It is PENDING or ACTIVATING; where the layout keeps all of its partitions active it is ACTIVE at once, by the
        one commit that ends the layout's leases. Raises what `Chooser.grant` does, and VmRunning where somebody holds
        GPUs of the layout's.
        """
        grant = self._chooser.grant(request, budget)
        lease = self._lease(request, grant, unattended=unattended)
        takeable = standing.takeable(self._store.book)
        ends = [takeable[partition] for partition in lease.partitions if partition in takeable]
        if not ends:
            return self._reconciler.put(lease, lease.state.value, request.owner), ()
        self._reconciler.refuse_open(tuple(gpu for end in ends for gpu in end.held))
        lease, stood = self._in_the_place_of(ends, lease, budget)
        if lease.state is LeaseState.ACTIVE and not alive():
            raise Cancelled("the call was cancelled", why="its caller is gone", fix="make it again")
        now = self._now()
        detail = f"lease {lease.id} of {lease.owner} takes its place"
        before = [
            of_lease(
                replace(end, state=LeaseState.RELEASED, ended=now, reason=detail),
                "taken over",
                actor=request.owner,
                detail=detail,
            )
            for end in ends
        ]
        return self._reconciler.put(lease, lease.state.value, request.owner, *before), stood

    def _in_the_place_of(self, ends: list[Lease], lease: Lease, budget: Budget) -> tuple[Lease, tuple[int, ...]]:
        """The lease as it begins where those leases of the layout's end, after a look at what is active."""
        listed = self._fabric.look(budget.look())
        asked_for = {p for end in ends if end.state is not LeaseState.PENDING for p in end.partitions}
        stood = tuple(partition for partition in lease.partitions if partition in asked_for)
        lease = replace(lease, unsettled_until=max(end.unsettled_until for end in ends))
        if stood == lease.partitions and all(listed.get(partition).active for partition in stood):
            return replace(lease, state=LeaseState.ACTIVE, generation=self._generation()), stood
        return (replace(lease, state=LeaseState.ACTIVATING) if stood else lease), stood

    def _lease(self, request: Request, grant: Grant, *, unattended: bool) -> Lease:
        now = self._now()
        return Lease(
            id=self._new_id(),
            owner=request.owner,
            request_id=request.request_id,
            request=request.canonical(),
            state=LeaseState.PENDING if unattended else LeaseState.ACTIVATING,
            partitions=tuple(partition.id for partition in grant.partitions),
            gpus=grant.gpus,
            spare=grant.spare,
            created=now,
            expires=now + request.lifetime if request.lifetime else None,
            vm_uuid=request.vm_uuid,
            labels=dict(request.labels),
            unattended=unattended,
            fm_version=self._admission.fm_version,
            required_guest_driver=self._admission.required_guest_driver,
        )
