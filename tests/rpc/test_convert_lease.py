# SPDX-License-Identifier: Apache-2.0
"""What goes over the wire comes back the same."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fmctl.core.allocate import Shape
from fmctl.core.book import Entry, Kind
from fmctl.core.errors import BadRequest
from fmctl.core.lease import GpuDevice, Lease, LeaseState
from fmctl.core.leased import Event, Leased
from fmctl.core.pci import Bdf
from fmctl.core.plan import Activate, Deactivate, Plan, Write
from fmctl.core.request import Request
from fmctl.rpc import convert_host, convert_lease
from fmctl.rpc.fmctl.v1 import lease_pb2 as messages

BUS = Bdf.parse("0000:1b:00.0")
LEASE = Lease(
    "an-id",
    "owner",
    "request",
    "",
    LeaseState.ACTIVE,
    (3,),
    (1, 3),
    (5,),
    created=1000.25,
    ended=3000.5,
    expires=2000.5,
    vm_uuid="a-vm",
    labels={"job": "42"},
    reason="odd",
    vm_gone=1500.75,
    fm_version="580.95.05",
    required_guest_driver="580.95.05",
    revision=17,
)
DEVICES = {1: GpuDevice(1, BUS, 12, 0), 3: GpuDevice(3)}


@pytest.mark.parametrize("state", LeaseState)
def test_a_lease(state: LeaseState) -> None:
    lease = replace(LEASE, state=state)
    message = convert_lease.lease_to(lease, DEVICES, interrupted=True)
    assert messages.LeaseState.Name(message.state) == f"LEASE_STATE_{state.name}"
    assert (message.gpus[0].vfio_path, message.gpus[1].vfio_path) == ("/dev/vfio/12", "")
    assert convert_lease.lease_from(message, simulated=True) == Leased(lease, tuple(DEVICES.values()), True, True)


def test_what_a_lease_lacks_is_not_set() -> None:
    lease = Lease("x", "o", "r", "", LeaseState.PENDING, (3,), (1,))
    message = convert_lease.lease_to(lease, {1: GpuDevice(1, BUS, 12, -1)}, interrupted=False)
    for name in ("create_time", "expire_time", "end_time", "vm_gone_time"):
        assert not message.HasField(name), name
    assert not message.gpus[0].HasField("numa_node")
    assert convert_lease.lease_from(message).lease == lease


def test_a_state_of_a_newer_daemon_is_never_taken_for_active() -> None:
    assert convert_lease.lease_from(messages.Lease(state=99)).lease.state is LeaseState.PENDING  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "request_",
    [
        Request("o", "r", count=3, shape=Shape.ROUND_UP, numa_node=0, guest_driver="580.95.05"),
        Request("o", "r", count=2, shape=Shape.UNLINKED, lifetime=90.25, vm_uuid="a-vm", labels={"a": "b"}),
        Request("o", "r", gpu_ids=(3, 1)),
        Request("o", "r", addresses=(BUS,)),
        Request("o", "r", partition_id=0),
        Request("o", "r"),
    ],
    ids=lambda request: request.canonical(),
)
def test_a_request(request_: Request) -> None:
    message = convert_lease.request_to(request_, wait=False, dry_run=True)
    assert (message.no_wait, message.dry_run) == (True, True)
    assert convert_lease.request_from(message) == request_
    assert not convert_lease.request_to(request_).no_wait


def test_a_request_with_what_is_no_value_is_refused() -> None:
    address = messages.AllocateRequest(pci_addresses=messages.PciAddresses(pci_addresses=["1b:00.0"]))
    for message in (address, messages.AllocateRequest(count=2, shape=99)):  # type: ignore[arg-type]
        with pytest.raises(BadRequest):
            convert_lease.request_from(message)


def test_an_unset_shape_is_exact() -> None:
    assert convert_lease.request_from(messages.AllocateRequest(count=2)).shape is Shape.EXACT


@pytest.mark.parametrize("kind", Kind)
def test_an_event(kind: Kind) -> None:
    entry = Entry(kind, "3", "cordoned", "somebody", "why", revision=7, time=1000.5)
    assert convert_lease.event_from(convert_lease.event_to(Event(entry))) == Event(entry)


def test_an_event_of_a_lease_has_the_lease() -> None:
    entry = Entry(Kind.LEASE, "an-id", "active", lease=replace(LEASE, revision=7), revision=7, time=1000.5)
    assert convert_lease.event_from(convert_lease.event_to(Event(entry, True))) == Event(entry, True)


def test_a_bookmark() -> None:
    message = convert_lease.event_to(7)
    assert (message.bookmark, convert_lease.event_from(message)) == (True, 7)


def test_a_plan_in_words() -> None:
    entry = Entry(Kind.LEASE, "x", "expired", "fmctl", "no VM ever started")
    plan = Plan((Write((entry,)), Deactivate("", 3), Deactivate("x", 4), Activate("y", 5)), ("odd",))
    message = convert_host.plan_to(plan, "look first", simulated=True)
    assert list(message.steps) == [
        "record of lease x: expired (no VM ever started)",
        "deactivate partition 3, which no lease holds",
        "deactivate partition 4, of lease x",
        "activate partition 5 for lease y",
    ]
    found = convert_host.plan_from(message)
    assert (found.steps, found.drift, found.observed) == (tuple(message.steps), ("odd",), "look first")


@pytest.mark.parametrize("text", ["", " ", "x\n", "x" * 257])
def test_a_reason_that_cannot_be_written_down_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        convert_host.reason(text)
    assert convert_host.reason(" a memory bank ") == "a memory bank"
