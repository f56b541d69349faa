# SPDX-License-Identifier: Apache-2.0
"""The service of leases: each call one call of `control.leases`, `control.queries` or `control.controller`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import grpc

from fmctl.control import watch
from fmctl.control.controller import FabricController
from fmctl.control.parking import Parking
from fmctl.control.queries import Page
from fmctl.core.book import Entry
from fmctl.core.errors import BadRequest, Compacted, NoSuchLease, PolicyDenied
from fmctl.core.lease import Lease
from fmctl.core.leased import Event
from fmctl.rpc import convert_host, convert_lease
from fmctl.rpc.fmctl.v1 import lease_pb2 as messages
from fmctl.rpc.fmctl.v1.lease_pb2_grpc import LeaseServiceServicer
from fmctl.rpc.server import time_left
from fmctl.rpc.watches import Watches


class LeaseServicer(LeaseServiceServicer):
    """fmctl.v1.LeaseService."""

    def __init__(self, controller: FabricController, watches: Watches, parking: Parking | None = None) -> None:
        """Without `parking` GPUs are not made ready."""
        self._parking = parking
        self._controller = controller
        self._leases = controller.leases
        self._queries = controller.queries
        self._watches = watches

    def Allocate(self, request: messages.AllocateRequest, context: grpc.ServicerContext) -> messages.AllocateResponse:
        """Make a lease, or meet that of the same request; with `dry_run` only tell what it would be."""
        wanted = convert_lease.request_from(request)
        if request.dry_run:
            lease = convert_lease.granted(wanted, self._leases.try_out(wanted, timeout=time_left(context)))
        else:
            lease = self._leases.allocate(
                wanted, timeout=time_left(context), wait=not request.no_wait, alive=context.is_active
            )
        return messages.AllocateResponse(lease=self._shown(lease), simulated=self._simulated)

    def Release(self, request: messages.ReleaseRequest, context: grpc.ServicerContext) -> messages.ReleaseResponse:
        """End a lease."""
        owner = convert_lease.who(request.owner)
        lease = self._leases.release(
            request.lease_id, actor=owner, timeout=time_left(context), owner=owner, wait=request.wait
        )
        return messages.ReleaseResponse(lease=self._shown(lease), simulated=self._simulated)

    def UpdateLease(
        self, request: messages.UpdateLeaseRequest, context: grpc.ServicerContext
    ) -> messages.UpdateLeaseResponse:
        """Change what a lease has beside its GPUs."""
        owner = convert_lease.who(request.owner)
        lease = self._leases.update(
            request.lease_id,
            request.etag,
            actor=owner,
            timeout=time_left(context),
            owner=owner,
            vm_uuid=request.vm_uuid if request.HasField("vm_uuid") else None,
            lifetime=convert_lease.duration_from(request.lifetime) if request.HasField("lifetime") else None,
            labels=dict(request.labels.labels) if request.HasField("labels") else None,
        )
        return messages.UpdateLeaseResponse(lease=self._shown(lease), simulated=self._simulated)

    def PrepareLease(
        self, request: messages.PrepareLeaseRequest, context: grpc.ServicerContext
    ) -> messages.PrepareLeaseResponse:
        """Get the GPUs of a lease ready."""
        lease = self._gate().prepare(
            request.lease_id, timeout=time_left(context), owner=convert_lease.who(request.owner)
        )
        return messages.PrepareLeaseResponse(lease=self._shown(lease), simulated=self._simulated)

    def HandOverLease(
        self, request: messages.HandOverLeaseRequest, context: grpc.ServicerContext
    ) -> messages.HandOverLeaseResponse:
        """Let the lease's VM open them."""
        lease = self._gate().hand_over(
            request.lease_id, owner=convert_lease.who(request.owner), timeout=time_left(context)
        )
        return messages.HandOverLeaseResponse(lease=self._shown(lease), simulated=self._simulated)

    def _gate(self) -> Parking:
        if self._parking is None:
            raise PolicyDenied("no GPU is bound", why="this daemon has no board")
        return self._parking

    def GetLease(self, request: messages.GetLeaseRequest, context: grpc.ServicerContext) -> messages.GetLeaseResponse:
        """One lease."""
        lease = self._queries.lease(request.lease_id)
        return messages.GetLeaseResponse(lease=self._shown(lease), simulated=self._simulated)

    def ListLeases(
        self, request: messages.ListLeasesRequest, context: grpc.ServicerContext
    ) -> messages.ListLeasesResponse:
        """A page of leases."""
        page = self._page(request)
        devices = self._queries.devices(page.leases)
        return messages.ListLeasesResponse(
            leases=[
                convert_lease.lease_to(lease, devices, interrupted=self._queries.is_interrupted(lease))
                for lease in page.leases
            ],
            next_page_token=page.leases[-1].id if page.more else "",
            revision=page.revision,
            store_id=page.store_id,
            simulated=self._simulated,
        )

    def GetCapacity(
        self, request: messages.GetCapacityRequest, context: grpc.ServicerContext
    ) -> messages.GetCapacityResponse:
        """What could be granted now."""
        headroom = self._queries.capacity(owner=request.owner, timeout=time_left(context))
        return convert_host.capacity_to(headroom, self._queries.closed, self._queries.rules, simulated=self._simulated)

    def CanAllocate(
        self, request: messages.CanAllocateRequest, context: grpc.ServicerContext
    ) -> messages.CanAllocateResponse:
        """Whether several requests could be granted together."""
        if not request.counts:
            raise BadRequest("nothing is asked for", why="there are no counts", fix="name at least one")
        sizes, owner = tuple(request.counts), request.owner
        found = self._queries.can_allocate(sizes, owner=owner, timeout=time_left(context))
        rule = self._queries.ruled_out(sizes, owner=owner)
        return convert_host.fit_to(found, rule, simulated=self._simulated)

    def Explain(self, request: messages.ExplainRequest, context: grpc.ServicerContext) -> messages.ExplainResponse:
        """Why each candidate would win or lose."""
        verdicts = self._queries.explain(
            request.count,
            convert_lease.shape_from(request.shape),
            numa_node=request.numa_node if request.HasField("numa_node") else None,
            owner=request.owner,
            timeout=time_left(context),
        )
        return convert_host.explanation_to(verdicts, simulated=self._simulated)

    def GetHostInfo(
        self, request: messages.GetHostInfoRequest, context: grpc.ServicerContext
    ) -> messages.GetHostInfoResponse:
        """Which host this is."""
        return convert_host.host_info_to(self._queries.host_info(), simulated=self._simulated)

    def Watch(self, request: messages.WatchRequest, context: grpc.ServicerContext) -> Iterator[messages.WatchResponse]:
        """Every change, as long as the caller reads."""

        def follow(alive: Callable[[], bool]) -> Iterator[messages.WatchResponse]:
            entries = watch.follow(self._controller.store, request.revision, request.store_id, alive=alive)
            return map(convert_lease.event_to, map(self._event, entries))

        return self._watches.serve(context, follow)

    def CordonHost(
        self, request: messages.CordonHostRequest, context: grpc.ServicerContext
    ) -> messages.CordonHostResponse:
        """Take no new work."""
        self._controller.cordon(convert_host.reason(request.reason), actor=convert_lease.who(request.actor))
        return messages.CordonHostResponse(simulated=self._simulated)

    def UncordonHost(
        self, request: messages.UncordonHostRequest, context: grpc.ServicerContext
    ) -> messages.UncordonHostResponse:
        """Take new work again."""
        self._controller.uncordon(actor=convert_lease.who(request.actor))
        return messages.UncordonHostResponse(simulated=self._simulated)

    def PlanReconciliation(
        self, request: messages.PlanReconciliationRequest, context: grpc.ServicerContext
    ) -> messages.PlanReconciliationResponse:
        """What would be done."""
        plan = self._controller.reconciler.preview(timeout=time_left(context))
        return convert_host.plan_to(plan, self._controller.reconciler.observed, simulated=self._simulated)

    def AcceptReconciliation(
        self, request: messages.AcceptReconciliationRequest, context: grpc.ServicerContext
    ) -> messages.AcceptReconciliationResponse:
        """Let it be done."""
        self._controller.accept(actor=convert_lease.who(request.actor))
        return messages.AcceptReconciliationResponse(simulated=self._simulated)

    def Adopt(self, request: messages.AdoptRequest, context: grpc.ServicerContext) -> messages.AdoptResponse:
        """Make leases of what was there before."""
        found = self._controller.reconciler.adopt(
            dict(request.owners), dry_run=request.dry_run, timeout=time_left(context)
        )
        return messages.AdoptResponse(made=found.made, left=found.left, simulated=self._simulated)

    @property
    def _simulated(self) -> bool:
        return self._controller.simulated

    def _shown(self, lease: Lease) -> messages.Lease:
        devices = self._queries.devices((lease,))
        return convert_lease.lease_to(lease, devices, interrupted=self._queries.is_interrupted(lease))

    def _event(self, entry: Entry | int) -> Event | int:
        if isinstance(entry, int):
            return entry
        return Event(entry, entry.lease is not None and self._queries.is_interrupted(entry.lease))

    def _page(self, request: messages.ListLeasesRequest) -> Page:
        try:
            return self._queries.leases(
                owner=request.owner, over=request.over, after=request.page_token, limit=request.page_size
            )
        except NoSuchLease as error:
            raise Compacted("the page is gone", why=str(error), fix="list again from the start") from error
