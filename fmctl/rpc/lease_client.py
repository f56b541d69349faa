# SPDX-License-Identifier: Apache-2.0
"""The daemon's leases as a scheduler and the CLI use them; `rpc.leases` is the other side.

`rpc.following` makes a watch of it that outlives lost connections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import grpc

from fmctl.core.address import Address
from fmctl.core.allocate import Shape
from fmctl.core.answers import HostInfo
from fmctl.core.errors import AgentUnreachable, Compacted, FmctlError
from fmctl.core.leased import Capacity, Event, Explanation, Fit, Leased, LeaseList, Reconciliation
from fmctl.core.request import Request
from fmctl.rpc import convert_host, convert_lease, errors, keepalive
from fmctl.rpc.dial import Client
from fmctl.rpc.fmctl.v1 import lease_pb2 as messages
from fmctl.rpc.fmctl.v1.lease_pb2_grpc import LeaseServiceStub

PAGE_SIZE = 500
"""Leases of one answer, so that it stays far below gRPC's 4 MiB."""


class LeaseClient(Client):
    """Leases, and what can be asked of the host that grants them. Every method may be called from any thread."""

    def __init__(self, address: Address) -> None:
        super().__init__(address, "fmctld", options=keepalive.client())
        self._stub = LeaseServiceStub(self.channel)

    def allocate(self, request: Request, *, timeout: float, wait: bool = True, dry_run: bool = False) -> Leased:
        """The lease that serves the request: ACTIVE, PENDING without `wait`, or with `dry_run` one without id.

        After a Retryable error the same request again, with the same request id, settles the matter.
        """
        message = convert_lease.request_to(request, wait=wait, dry_run=dry_run)
        return _leased(self.call(self._stub.Allocate, message, timeout, changes=not dry_run))

    def release(self, lease_id: str, *, timeout: float, owner: str = "", wait: bool = False) -> Leased:
        """End a lease, for good; with `wait` its GPUs are free once this returns. With `owner` it must be theirs."""
        request = messages.ReleaseRequest(lease_id=lease_id, owner=owner, wait=wait)
        return _leased(self.call(self._stub.Release, request, timeout, changes=True))

    def update(
        self,
        lease_id: str,
        *,
        timeout: float,
        etag: str = "",
        owner: str = "",
        vm_uuid: str | None = None,
        lifetime: float | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Leased:
        """Bind a VM (empty for none), renew the expiry in seconds (0 for none), or set labels; None leaves as it is."""
        request = messages.UpdateLeaseRequest(lease_id=lease_id, etag=etag, owner=owner, vm_uuid=vm_uuid)
        if lifetime is not None:
            request.lifetime.CopyFrom(convert_lease.duration_to(lifetime))
        if labels is not None:
            request.labels.CopyFrom(messages.Labels(labels=labels))
        return _leased(self.call(self._stub.UpdateLease, request, timeout, changes=True))

    def prepare(self, lease_id: str, *, timeout: float, owner: str = "") -> Leased:
        """Get a lease's GPUs ready, and keep everybody from them until they are handed over."""
        request = messages.PrepareLeaseRequest(lease_id=lease_id, owner=owner)
        return _leased(self.call(self._stub.PrepareLease, request, timeout, changes=True))

    def hand_over(self, lease_id: str, *, timeout: float, owner: str = "") -> Leased:
        """Let the lease's VM open its GPUs, once this returns."""
        request = messages.HandOverLeaseRequest(lease_id=lease_id, owner=owner)
        return _leased(self.call(self._stub.HandOverLease, request, timeout, changes=True))

    def lease(self, lease_id: str, *, timeout: float) -> Leased:
        """One lease, also one that is over; raises NoSuchLease."""
        return _leased(self.call(self._stub.GetLease, messages.GetLeaseRequest(lease_id=lease_id), timeout))

    def leases(self, *, timeout: float, owner: str = "", over: bool = False) -> LeaseList:
        """All leases, of one owner if it is named, and with `over` those that are over, too."""
        while True:
            try:
                return self._pages(messages.ListLeasesRequest(owner=owner, over=over, page_size=PAGE_SIZE), timeout)
            except Compacted:
                continue  # a lease at a page's end was forgotten meanwhile

    def _pages(self, request: messages.ListLeasesRequest, timeout: float) -> LeaseList:
        first = answer = self.call(self._stub.ListLeases, request, timeout)
        found = list(first.leases)
        while answer.next_page_token:
            request.page_token = answer.next_page_token
            answer = self.call(self._stub.ListLeases, request, timeout)
            found.extend(answer.leases)
        leases = tuple(convert_lease.lease_from(message, simulated=first.simulated) for message in found)
        return LeaseList(leases, first.revision, first.store_id, first.simulated)

    def capacity(self, *, owner: str = "", timeout: float) -> Capacity:
        """What could be granted now, to that owner or to several who hold nothing."""
        request = messages.GetCapacityRequest(owner=owner)
        return convert_host.capacity_from(self.call(self._stub.GetCapacity, request, timeout))

    def can_allocate(self, counts: Sequence[int], *, owner: str = "", timeout: float) -> Fit:
        """Whether requests of these sizes could be granted together."""
        request = messages.CanAllocateRequest(counts=counts, owner=owner)
        return convert_host.fit_from(self.call(self._stub.CanAllocate, request, timeout))

    def explain(
        self, count: int, shape: Shape, *, numa_node: int | None = None, owner: str = "", timeout: float
    ) -> Explanation:
        """Why each candidate would win or lose."""
        request = messages.ExplainRequest(
            count=count, shape=convert_lease.shape_to(shape), numa_node=numa_node, owner=owner
        )
        return convert_host.explanation_from(self.call(self._stub.Explain, request, timeout))

    def host_info(self, *, timeout: float) -> HostInfo:
        """Which host this is, and the versions on it."""
        return convert_host.host_info_from(self.call(self._stub.GetHostInfo, messages.GetHostInfoRequest(), timeout))

    def watch(self, revision: int, store_id: str, *, timeout: float | None = None) -> WatchCall:
        """What comes after that revision of that store, for at most so many seconds."""
        request = messages.WatchRequest(revision=revision, store_id=store_id)
        return WatchCall(self._stub.Watch(request, timeout=timeout), self._who)

    def cordon(self, reason: str, *, actor: str, timeout: float) -> None:
        """Let the host take no new work."""
        self.call(self._stub.CordonHost, messages.CordonHostRequest(reason=reason, actor=actor), timeout, changes=True)

    def uncordon(self, *, actor: str, timeout: float) -> None:
        """Let the host take new work again."""
        self.call(self._stub.UncordonHost, messages.UncordonHostRequest(actor=actor), timeout, changes=True)

    def plan(self, *, timeout: float) -> Reconciliation:
        """What would be done so that leases and active partitions are the same set."""
        request = messages.PlanReconciliationRequest()
        return convert_host.plan_from(self.call(self._stub.PlanReconciliation, request, timeout))

    def accept(self, *, actor: str, timeout: float) -> None:
        """Let what is planned be done from now on."""
        request = messages.AcceptReconciliationRequest(actor=actor)
        self.call(self._stub.AcceptReconciliation, request, timeout, changes=True)

    def adopt(self, owners: Mapping[str, str], *, dry_run: bool, timeout: float) -> tuple[list[str], list[str]]:
        """Make leases of what was there before, in words: which, and what is left."""
        request = messages.AdoptRequest(owners=owners, dry_run=dry_run)
        answer = self.call(self._stub.Adopt, request, timeout, changes=not dry_run)
        return list(answer.made), list(answer.left)


class WatchCall:
    """A watch under way: events, and now and then a revision alone. Keepalive watches its connection."""

    def __init__(self, call: Any, who: str) -> None:
        self._call = call
        self._who = who

    def __iter__(self) -> WatchCall:
        return self

    def __next__(self) -> Event | int:
        """The next one; raises FmctlError where the daemon tells no more."""
        try:
            return convert_lease.event_from(next(self._call))
        except grpc.RpcError as error:
            raise self._failure(cast("grpc.Call", error)) from None

    def close(self) -> None:
        """End it."""
        self._call.cancel()

    def _failure(self, error: grpc.Call) -> FmctlError:
        if error.code() is grpc.StatusCode.CANCELLED:
            return AgentUnreachable(
                f"{self._who} cut the watch off",
                why="it was read too slowly, or the daemon stopped",
                fix="watch again from the last revision",
            )
        return errors.from_rpc_error(error, who=self._who, changes=False)


def _leased(answer: Any) -> Leased:
    return convert_lease.lease_from(answer.lease, simulated=answer.simulated)
