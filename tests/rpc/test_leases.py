# SPDX-License-Identifier: Apache-2.0
"""The service of leases as a scheduler meets it: a real server and client, with a host in memory behind them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from fmctl import __version__
from fmctl.core.allocate import Shape
from fmctl.core.book import Kind, Mark, MarkKind, of_mark
from fmctl.core.errors import (
    BadRequest,
    Compacted,
    Fragmented,
    HostCordoned,
    NoCapacity,
    NoSuchLease,
    OutcomeUnknown,
    PartitionHeld,
    PolicyDenied,
    RequestIdReused,
    VersionMismatch,
    VmRunning,
)
from fmctl.core.lease import Lease, LeaseState
from fmctl.core.request import Request
from fmctl.core.rules import Mode
from fmctl.rpc import errors
from fmctl.rpc.client import ControllerClient
from fmctl.rpc.fmctl.v1 import fabric_controller_pb2
from fmctl.rpc.fmctl.v1 import lease_pb2 as messages
from fmctl.rpc.fmctl.v1.fabric_controller_pb2_grpc import FabricControllerServiceStub
from fmctl.rpc.fmctl.v1.lease_pb2_grpc import LeaseServiceStub
from fmctl.rpc.lease_client import LeaseClient
from tests.rpc.leasing import TIMEOUT, VERSION, Host, pair
from tests.support import eventually

VM = "11111111-2222-3333-4444-555555555555"


@pytest.fixture
def host(folder: Path) -> Iterator[Host]:
    host = Host(folder)
    yield host
    host.close()


@pytest.fixture
def client(host: Host) -> LeaseClient:
    return host.client


def made(client: LeaseClient, request: Request, **how: bool) -> Lease:
    return client.allocate(request, timeout=TIMEOUT, **how).lease


def test_two_gpus_are_leased_with_all_that_a_vm_manager_needs(host: Host, client: LeaseClient) -> None:
    leased = client.allocate(pair(), timeout=TIMEOUT)
    lease = leased.lease
    assert (lease.state, lease.owner, lease.request_id) == (LeaseState.ACTIVE, "a", "r")
    assert (host.active, leased.simulated) == (set(lease.partitions), True)
    known = {f.bdf: f for f in host.machine.bus.functions()}
    for physical_id, device in zip(lease.gpus, leased.devices, strict=True):
        assert device.physical_id == physical_id
        assert device.address and known[device.address].iommu_group == device.iommu_group
    assert (lease.fm_version, lease.required_guest_driver) == (VERSION, VERSION)
    assert client.lease(lease.id, timeout=TIMEOUT) == leased


def test_the_same_request_meets_the_same_lease_also_once_it_is_over(client: LeaseClient) -> None:
    first = made(client, pair())
    assert made(client, pair()) == first
    client.release(first.id, wait=True, timeout=TIMEOUT)
    again = client.allocate(pair(), timeout=TIMEOUT)
    assert (again.lease.id, again.lease.state) == (first.id, LeaseState.RELEASED)
    assert [device.address for device in again.devices] == [None, None]
    with pytest.raises(RequestIdReused):
        made(client, Request("a", "r", count=4))
    assert made(client, pair(owner="b")).id != first.id


def test_gpus_are_named_in_every_way(host: Host, client: LeaseClient) -> None:
    by_gpus = client.allocate(Request("a", "1", gpu_ids=(3, 1)), timeout=TIMEOUT)
    assert by_gpus.lease.partitions == (3,)
    assert made(client, Request("a", "2", partition_id=4)).gpus == (2, 4)
    addresses = tuple(device.address for device in by_gpus.devices if device.address)
    client.release(by_gpus.lease.id, wait=True, timeout=TIMEOUT)
    assert made(client, Request("a", "3", addresses=addresses)).partitions == (3,)


def test_shapes(client: LeaseClient) -> None:
    rounded = made(client, Request("a", "1", count=3, shape=Shape.ROUND_UP))
    assert (len(rounded.gpus), len(rounded.spare)) == (3, 1)
    single = made(client, Request("a", "2", count=3, shape=Shape.UNLINKED))
    assert (len(single.gpus), len(single.partitions)) == (3, 3)


def test_what_is_beside_the_gpus_is_kept(host: Host, client: LeaseClient) -> None:
    request = Request("a", "r", count=1, vm_uuid=VM, labels={"job": "42"}, lifetime=90.5, guest_driver=VERSION)
    lease = made(client, request)
    assert (lease.vm_uuid, lease.labels) == (VM, {"job": "42"})
    assert lease.expires and lease.expires - lease.created == pytest.approx(90.5)
    assert host.store.by_request("a", "r").request == request.canonical()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (messages.AllocateRequest(owner="a", count=2), "its request id must have 1 to 128"),
        (messages.AllocateRequest(owner="a", count=2, dry_run=True), "its request id must have 1 to 128"),
        (messages.AllocateRequest(owner="", request_id="r", count=2), "it is empty"),
        (messages.AllocateRequest(owner="a", request_id="r"), "it must name a count"),
        (messages.AllocateRequest(owner="a", request_id="r", count=0), "a count of 1 to 16"),
        (messages.AllocateRequest(owner="a", request_id="r", physical_ids=messages.PhysicalIds()), "must name a count"),
        (messages.AllocateRequest(owner="a", request_id="r", count=2, vm_uuid="x"), "'x' is no UUID"),
    ],
    ids=lambda value: str(value).replace("\n", " ") if not isinstance(value, str) else "",
)
def test_a_request_that_is_none_is_refused(host: Host, request_: messages.AllocateRequest, why: str) -> None:
    client = host.client
    with pytest.raises(BadRequest, match=why):
        client.call(LeaseServiceStub(client.channel).Allocate, request_, TIMEOUT)
    assert host.store.book.revision == 0


def test_a_dry_run_shows_the_lease_and_changes_nothing(host: Host) -> None:
    client = host.client
    request = messages.AllocateRequest(owner="a", request_id="r", count=3, shape=messages.SHAPE_ROUND_UP, dry_run=True)
    answer = client.call(LeaseServiceStub(client.channel).Allocate, request, TIMEOUT)
    assert (answer.lease.id, answer.lease.state, answer.lease.etag) == ("", messages.LEASE_STATE_UNSPECIFIED, "")
    assert (len(answer.lease.gpus), len(answer.lease.spare), answer.simulated) == (3, 1, True)
    assert answer.lease.gpus[0].pci_address
    assert (host.active, host.store.book.revision) == (set(), 0)


def test_a_dry_run_is_refused_as_the_request_would_be(client: LeaseClient) -> None:
    for place in "135":
        made(client, Request("a", place, gpu_ids=(int(place),)))
    with pytest.raises(Fragmented):
        made(client, Request("a", "r", count=4), dry_run=True)


def test_what_does_not_fit_says_so(client: LeaseClient) -> None:
    made(client, Request("a", "1", count=8))
    with pytest.raises(NoCapacity):
        made(client, pair())
    with pytest.raises(VersionMismatch, match="cannot use NVLink here"):
        made(client, Request("a", "2", count=1, guest_driver="535.1"))


def test_without_waiting_a_lease_is_pending_and_becomes_active_by_itself(host: Host, client: LeaseClient) -> None:
    lease = made(client, pair(), wait=False)
    assert (lease.state, host.active) == (LeaseState.PENDING, set())
    host.controller.refresh()
    assert client.lease(lease.id, timeout=TIMEOUT).lease.state is LeaseState.ACTIVE
    assert host.active == set(lease.partitions)


def spied(host: Host, name: str, monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], bool]]:
    """What calls of that method of the leases' are given to ask whether their callers still wait."""
    real, seen = getattr(host.controller.leases, name), []

    def spy(*arguments: Any, **how: Any) -> Any:
        seen.append(how["alive"])
        return real(*arguments, **how)

    monkeypatch.setattr(host.controller.leases, name, spy)
    return seen


def go_away(host: Host, call: Any, request: Any, seen: list[Callable[[], bool]]) -> None:
    """Make a call, and cancel it while Fabric Manager activates."""
    host.agent.may_activate.clear()
    under_way = call.future(request, timeout=TIMEOUT)
    assert host.agent.activating.wait(TIMEOUT)
    under_way.cancel()
    eventually(lambda: not seen[0]())
    host.agent.may_activate.set()
    eventually(lambda: host.store.book.revision > 1 and not host.store.book.leases)


def test_a_caller_that_goes_away_leaves_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    client = host.client
    request = messages.AllocateRequest(owner="a", request_id="r", count=2)
    go_away(host, LeaseServiceStub(client.channel).Allocate, request, spied(host, "allocate", monkeypatch))
    assert (host.active, client.leases(over=True, timeout=TIMEOUT).leases) == (set(), ())


def test_an_activation_whose_caller_goes_away_leaves_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    request = fabric_controller_pb2.ActivatePartitionRequest(owner="a", partition_id=3)
    call = FabricControllerServiceStub(host.client.channel).ActivatePartition
    go_away(host, call, request, spied(host, "activate", monkeypatch))
    assert host.active == set()


def test_an_unknown_outcome_is_settled_by_the_same_request(folder: Path) -> None:
    host = Host(folder, "hang@activate:1")
    try:
        with pytest.raises(OutcomeUnknown):
            made(host.client, pair())
        lease = made(host.client, pair())
        assert (lease.state, host.active) == (LeaseState.ACTIVE, set(lease.partitions))
    finally:
        host.close()


@pytest.mark.parametrize("wait", [True, False])
def test_a_release_frees_the_gpus(host: Host, client: LeaseClient, *, wait: bool) -> None:
    lease = made(client, pair())
    ended = client.release(lease.id, owner="a", wait=wait, timeout=TIMEOUT).lease
    assert ended.state is (LeaseState.RELEASED if wait else LeaseState.RELEASING)
    host.controller.refresh()
    assert host.active == set()
    again = client.release(lease.id, owner="a", timeout=TIMEOUT).lease
    assert again.state is LeaseState.RELEASED
    released = [e for e in host.store.entries(0, limit=100) if e.what == "releasing"]
    assert [entry.actor for entry in released] == ["a"]


def test_a_lease_is_its_owner_s_where_one_is_named(client: LeaseClient) -> None:
    lease = made(client, pair())
    with pytest.raises(PartitionHeld, match="of owner 'a'"):
        client.release(lease.id, owner="b", timeout=TIMEOUT)
    with pytest.raises(PartitionHeld, match="of owner 'a'"):
        client.update(lease.id, owner="b", labels={"x": "y"}, timeout=TIMEOUT)
    assert client.lease(lease.id, timeout=TIMEOUT).lease == lease
    assert client.release(lease.id, wait=True, timeout=TIMEOUT).lease.state is LeaseState.RELEASED


def test_nothing_is_released_under_a_running_vm(host: Host, client: LeaseClient) -> None:
    lease = made(client, pair())
    vm = host.vm(*lease.gpus)
    with pytest.raises(VmRunning):
        client.release(lease.id, wait=True, timeout=TIMEOUT)
    host.machine.hypervisor.kill(vm.uuid)
    assert client.release(lease.id, wait=True, timeout=TIMEOUT).lease.state is LeaseState.RELEASED


@pytest.mark.parametrize("call", ["lease", "release", "update"])
def test_a_lease_that_never_was_is_told(client: LeaseClient, call: str) -> None:
    with pytest.raises(NoSuchLease):
        getattr(client, call)("x", timeout=TIMEOUT)


def test_a_lease_is_changed(client: LeaseClient) -> None:
    lease = made(client, Request("a", "r", count=2, labels={"x": "y"}, lifetime=60))
    changed = client.update(lease.id, owner="a", vm_uuid=VM, lifetime=3600, labels={"job": "1"}, timeout=TIMEOUT).lease
    assert (changed.vm_uuid, changed.labels) == (VM, {"job": "1"})
    assert changed.expires and lease.expires and changed.expires - lease.expires > 3000
    bare = client.update(lease.id, vm_uuid="", lifetime=0, labels={}, timeout=TIMEOUT).lease
    assert (bare.vm_uuid, bare.labels, bare.expires) == ("", {}, None)
    assert client.update(lease.id, timeout=TIMEOUT).lease == bare


def test_a_change_that_another_one_overtook_is_refused(client: LeaseClient) -> None:
    lease = made(client, pair())
    changed = client.update(lease.id, etag=lease.etag, labels={"x": "1"}, timeout=TIMEOUT).lease
    assert changed.etag != lease.etag
    with pytest.raises(PartitionHeld, match="it was changed meanwhile"):
        client.update(lease.id, etag=lease.etag, labels={"x": "2"}, timeout=TIMEOUT)
    assert client.lease(lease.id, timeout=TIMEOUT).lease.labels == {"x": "1"}


@pytest.mark.parametrize("changes", [{"lifetime": -1.0}, {"lifetime": 1e9}, {"vm_uuid": "x"}, {"labels": {"": "x"}}])
def test_a_change_that_is_none_is_refused_whole(client: LeaseClient, changes: dict[str, Any]) -> None:
    lease = made(client, pair())
    with pytest.raises(BadRequest):
        client.update(lease.id, timeout=TIMEOUT, **{"labels": {"a": "b"}, **changes})
    assert client.lease(lease.id, timeout=TIMEOUT).lease == lease


def test_a_vm_that_lost_its_nvlinks_is_told(host: Host, client: LeaseClient, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = made(client, pair())
    monkeypatch.setattr(Lease, "interrupted", lambda self, generation: self.id == lease.id)
    assert client.lease(lease.id, timeout=TIMEOUT).interrupted
    assert [leased.interrupted for leased in client.leases(timeout=TIMEOUT).leases] == [True]


def test_leases_are_listed_oldest_first(host: Host, client: LeaseClient) -> None:
    found = [made(client, Request(owner, owner, count=1)) for owner in "abc"]
    client.release(found[0].id, wait=True, timeout=TIMEOUT)
    listed = client.leases(timeout=TIMEOUT)
    assert [leased.lease.owner for leased in listed.leases] == ["b", "c"]
    assert (listed.revision, listed.store_id) == (host.store.book.revision, host.store.book.store_id)
    assert listed.simulated and listed.leases[0] == client.lease(found[1].id, timeout=TIMEOUT)
    assert [x.lease.owner for x in client.leases(owner="c", timeout=TIMEOUT).leases] == ["c"]
    over = client.leases(over=True, timeout=TIMEOUT).leases
    assert [(x.lease.owner, x.lease.state.over) for x in over] == [("a", True), ("b", False), ("c", False)]


def test_pages_make_up_the_list(host: Host, client: LeaseClient, monkeypatch: pytest.MonkeyPatch) -> None:
    for owner in "abcde":
        made(client, Request(owner, owner, count=1))
    whole = client.leases(timeout=TIMEOUT)
    sizes = []
    pages = host.controller.queries.leases

    def counted(**asked: Any) -> Any:
        page = pages(**asked)
        sizes.append(len(page.leases))
        return page

    monkeypatch.setattr(host.controller.queries, "leases", counted)
    monkeypatch.setattr("fmctl.rpc.lease_client.PAGE_SIZE", 2)
    assert client.leases(timeout=TIMEOUT) == whole
    assert sizes == [2, 2, 1]


def test_a_page_after_a_lease_that_is_forgotten_must_begin_again(host: Host, client: LeaseClient) -> None:
    request = messages.ListLeasesRequest(page_size=1, page_token="gone")  # noqa: S106
    with pytest.raises(Compacted, match="the page is gone"):
        client.call(LeaseServiceStub(client.channel).ListLeases, request, TIMEOUT)


def test_capacity_counts_what_is_left(host: Host, client: LeaseClient) -> None:
    assert dict(client.capacity(timeout=TIMEOUT).headroom.partitions) == {1: 8, 2: 4, 4: 2, 8: 1}
    made(client, pair())
    found = client.capacity(timeout=TIMEOUT)
    assert dict(found.headroom.partitions) == {1: 6, 2: 3, 4: 1, 8: 0}
    gpus = found.headroom.gpus
    assert (gpus.total, gpus.free, gpus.busy, found.cordoned, found.simulated) == (8, 6, 2, "", True)
    assert gpus.cleaning == gpus.quarantined == gpus.cordoned == 0


def test_a_set_aside_gpu_is_counted_as_such(host: Host, client: LeaseClient) -> None:
    marks = {1: MarkKind.QUARANTINED, 2: MarkKind.CLEANING}
    for gpu, kind in marks.items():
        host.controller.store.commit((of_mark(Kind.GPU, str(gpu), Mark(kind, "x", 0.0)),), at=0.0)
    gpus = client.capacity(timeout=TIMEOUT).headroom.gpus
    assert (gpus.free, gpus.quarantined, gpus.cleaning, gpus.cordoned) == (6, 1, 1, 0)


def test_sizes_are_packed_together(client: LeaseClient) -> None:
    fit = client.can_allocate((2, 2, 4), timeout=TIMEOUT)
    assert fit.partitions and len(set(fit.partitions)) == 3
    for place, partition in enumerate(fit.partitions):
        made(client, Request("a", str(place), partition_id=partition))
    assert client.can_allocate((1,), timeout=TIMEOUT).partitions is None
    for counts in ((), (17,)):
        with pytest.raises(BadRequest):
            client.can_allocate(counts, timeout=TIMEOUT)


def test_an_explanation_names_the_one_that_is_taken(client: LeaseClient) -> None:
    found = client.explain(2, Shape.EXACT, numa_node=1, timeout=TIMEOUT)
    (taken,) = [candidate for candidate in found.candidates if candidate.taken]
    assert made(client, Request("a", "r", count=2, numa_node=1)).partitions == (taken.partition_id,)
    assert len(found.candidates) == 4 and all(candidate.why for candidate in found.candidates)
    assert made(client, Request("a", "s", count=2, numa_node=1)).gpus != taken.gpus


def test_the_host_says_who_it_is(host: Host, client: LeaseClient) -> None:
    client.leases(timeout=TIMEOUT)
    host.controller.refresh()
    info = client.host_info(timeout=TIMEOUT)
    assert (info.host_id, info.platform, info.fm_version) == ("a-host", "hgx-h100-8", VERSION)
    assert (info.version, info.api_version, info.simulated) == (__version__, "v1", True)
    assert info.store_id == host.store.book.store_id
    assert len(info.board) == 16


def test_a_cordoned_host_takes_no_new_work_and_keeps_what_it_has(host: Host, client: LeaseClient) -> None:
    lease = made(client, pair())
    client.cordon("a memory bank", actor="operator", timeout=TIMEOUT)
    with pytest.raises(HostCordoned, match="a memory bank"):
        made(client, pair("s"))
    assert made(client, pair()) == lease
    found = client.capacity(timeout=TIMEOUT)
    assert (found.cordoned, set(found.headroom.partitions.values())) == ("it is cordoned: a memory bank", {0})
    assert client.can_allocate((1,), timeout=TIMEOUT).partitions is None
    client.release(lease.id, wait=True, timeout=TIMEOUT)
    client.uncordon(actor="operator", timeout=TIMEOUT)
    made(client, pair("s"))
    told = [(e.what, e.actor, e.detail) for e in host.store.entries(0, limit=100) if e.kind is Kind.HOST]
    assert told == [("cordoned", "operator", "a memory bank"), ("no longer cordoned", "operator", "")]


def test_who_asks_is_checked(host: Host, client: LeaseClient) -> None:
    for call in (client.uncordon, client.accept):
        with pytest.raises(BadRequest):
            call(actor="system:x", timeout=TIMEOUT)
    with pytest.raises(BadRequest):
        client.cordon("why", actor="x\n", timeout=TIMEOUT)
    with pytest.raises(BadRequest):
        client.cordon("", actor="x", timeout=TIMEOUT)
    assert host.store.book.revision == 0


def test_an_observed_host_shows_what_it_would_do_and_does_it_once_accepted(host: Host, client: LeaseClient) -> None:
    lease = made(client, pair(), wait=False)
    host.nvfm.activate(14, timeout=TIMEOUT)
    mark = Mark(MarkKind.OBSERVED, "it was found with active partitions", 0.0)
    host.controller.store.commit((of_mark(Kind.HOST, "", mark),), at=0.0)
    host.controller.refresh()
    plan = client.plan(timeout=TIMEOUT)
    assert (plan.steps, plan.observed) == ((f"record of lease {lease.id}: activating",), mark.reason)
    assert plan.drift == ("partition 14 is active, and no lease holds it",)
    with pytest.raises(HostCordoned):
        made(client, pair("s"))
    client.accept(actor="operator", timeout=TIMEOUT)
    host.controller.refresh()
    plan = client.plan(timeout=TIMEOUT)
    assert (plan.steps, plan.observed) == ((), "")
    assert client.lease(lease.id, timeout=TIMEOUT).lease.state is LeaseState.ACTIVE


def test_a_host_that_is_set_to_observe_cannot_be_accepted(folder: Path) -> None:
    with contextlib.closing(Host(folder, mode=Mode.OBSERVE)) as host:
        with pytest.raises(PolicyDenied, match="the setting mode says so"):
            host.client.accept(actor="operator", timeout=TIMEOUT)
        assert "mode" in host.client.plan(timeout=TIMEOUT).observed
        told = host.client.capacity(timeout=TIMEOUT).cordoned
        assert told == f"it is only observed: {host.client.plan(timeout=TIMEOUT).observed}"


def test_a_plan_tells_why_a_step_that_failed_waits(folder: Path) -> None:
    host = Host(folder, "code=-16@deactivate:1+")
    try:
        lease = made(host.client, pair())
        host.client.release(lease.id, timeout=TIMEOUT)
        host.controller.refresh()
        plan = host.client.plan(timeout=TIMEOUT)
        assert plan.steps == (f"deactivate partition {lease.partitions[0]}, of lease {lease.id}",)
        assert len(plan.drift) == 1 and "deactivate" in plan.drift[0]
    finally:
        host.close()


def test_refusals_say_that_the_board_is_simulated(host: Host, client: LeaseClient) -> None:
    with pytest.raises(grpc.RpcError) as refusal:
        LeaseServiceStub(client.channel).GetLease(messages.GetLeaseRequest(lease_id="x"), timeout=TIMEOUT)
    call: Any = refusal.value
    assert call.code() is grpc.StatusCode.NOT_FOUND
    assert b"simulated" in dict(call.trailing_metadata())["grpc-status-details-bin"]
    assert isinstance(errors.from_rpc_error(call, who="x", changes=True), NoSuchLease)


def test_a_partition_that_is_activated_by_hand_is_leased(host: Host, client: LeaseClient) -> None:
    controller = host.dial(ControllerClient)
    controller.activate("a", partition_id=3, timeout=TIMEOUT)
    assert controller.activate("a", gpu_ids=(1, 3), timeout=TIMEOUT).already
    (leased,) = client.leases(timeout=TIMEOUT).leases
    assert (leased.lease.owner, leased.lease.partitions) == ("a", (3,))
    with pytest.raises(BadRequest):
        controller.activate("a", gpu_ids=(), timeout=TIMEOUT)


def test_a_partition_of_another_owner_s_is_deactivated_by_force_alone(host: Host) -> None:
    controller = host.dial(ControllerClient)
    controller.activate("a", partition_id=3, timeout=TIMEOUT)
    with pytest.raises(PartitionHeld):
        controller.deactivate("b", 3, timeout=TIMEOUT)
    vm = host.vm(1, 3)
    with pytest.raises(VmRunning):
        controller.deactivate("b", 3, force=True, timeout=TIMEOUT)
    host.machine.hypervisor.kill(vm.uuid)
    assert not controller.deactivate("b", 3, force=True, timeout=TIMEOUT).already
    assert host.active == set()
