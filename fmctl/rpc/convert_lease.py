# SPDX-License-Identifier: Apache-2.0
"""Leases, requests for them and entries about them to messages and back."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from fmctl.core import owner
from fmctl.core.allocate import Grant, Shape
from fmctl.core.book import Entry, Kind
from fmctl.core.errors import BadRequest
from fmctl.core.lease import GpuDevice, Lease, LeaseState
from fmctl.core.leased import Event, Leased
from fmctl.core.pci import Bdf
from fmctl.core.request import Request
from fmctl.rpc.fmctl.v1 import lease_pb2 as messages

_STATES = {state: messages.LeaseState.Value(f"LEASE_STATE_{state.name}") for state in LeaseState}
_STATES_BACK = {message: state for state, message in _STATES.items()}
_SHAPES = {shape: messages.Shape.Value(f"SHAPE_{shape.name}") for shape in Shape}
_SHAPES_BACK = {messages.SHAPE_UNSPECIFIED: Shape.EXACT, **{message: shape for shape, message in _SHAPES.items()}}
_KINDS = {kind: messages.EventKind.Value(f"EVENT_KIND_{kind.name}") for kind in Kind}
_KINDS_BACK = {message: kind for kind, message in _KINDS.items()}


def who(name: str) -> str:
    """Who asks, if they may be named so; empty where they do not say. Raises BadRequest."""
    return owner.check(name) if name else ""


def request_to(request: Request, *, wait: bool = True, dry_run: bool = False) -> messages.AllocateRequest:
    """The message of a request."""
    message = messages.AllocateRequest(
        owner=request.owner,
        request_id=request.request_id,
        shape=_SHAPES[request.shape],
        numa_node=request.numa_node,
        vm_uuid=request.vm_uuid,
        labels=request.labels,
        guest_driver=request.guest_driver,
        no_wait=not wait,
        dry_run=dry_run,
    )
    if request.count is not None:
        message.count = request.count
    if request.gpu_ids:
        message.physical_ids.physical_ids.extend(request.gpu_ids)
    if request.addresses:
        message.pci_addresses.pci_addresses.extend(map(str, request.addresses))
    if request.partition_id is not None:
        message.partition_id = request.partition_id
    if request.lifetime is not None:
        message.lifetime.CopyFrom(duration_to(request.lifetime))
    return message


def request_from(message: messages.AllocateRequest) -> Request:
    """The request of a message, unchecked but for what is no value at all; raises BadRequest."""
    wanted = message.WhichOneof("wanted")
    try:
        addresses = tuple(map(Bdf.parse, message.pci_addresses.pci_addresses))
    except ValueError as error:
        raise BadRequest("the request is refused", why=str(error), fix="correct the request") from error
    return Request(
        message.owner,
        message.request_id,
        count=message.count if wanted == "count" else None,
        gpu_ids=tuple(message.physical_ids.physical_ids),
        addresses=addresses,
        partition_id=message.partition_id if wanted == "partition_id" else None,
        shape=shape_from(message.shape),
        numa_node=message.numa_node if message.HasField("numa_node") else None,
        vm_uuid=message.vm_uuid,
        labels=dict(message.labels),
        lifetime=duration_from(message.lifetime) if message.HasField("lifetime") else None,
        guest_driver=message.guest_driver,
    )


def shape_to(shape: Shape) -> messages.Shape.ValueType:
    """The message's word for a shape."""
    return _SHAPES[shape]


def shape_from(message: messages.Shape.ValueType) -> Shape:
    """The shape; raises BadRequest for one that is not known here, for to guess would give other GPUs."""
    if message not in _SHAPES_BACK:
        raise BadRequest("the request is refused", why=f"the shape {message} is not known", fix="correct the request")
    return _SHAPES_BACK[message]


def granted(request: Request, grant: Grant) -> Lease:
    """The lease that would be made of a grant; it has no id."""
    return Lease(
        "",
        request.owner,
        request.request_id,
        request.canonical(),
        LeaseState.PENDING,
        tuple(partition.id for partition in grant.partitions),
        grant.gpus,
        grant.spare,
        vm_uuid=request.vm_uuid,
        labels=request.labels,
    )


def lease_to(lease: Lease, devices: Mapping[int, GpuDevice], *, interrupted: bool) -> messages.Lease:
    """The message of a lease; `devices` are the GPUs that more than the physical id is known of."""
    return messages.Lease(
        id=lease.id,
        owner=lease.owner,
        request_id=lease.request_id,
        state=_STATES[lease.state] if lease.id else messages.LEASE_STATE_UNSPECIFIED,
        reason=lease.reason,
        partition_ids=lease.partitions,
        gpus=[_device_to(devices.get(gpu) or GpuDevice(gpu)) for gpu in lease.gpus],
        spare=lease.spare,
        vm_uuid=lease.vm_uuid,
        labels=lease.labels,
        create_time=_time_to(lease.created or None),
        expire_time=_time_to(lease.expires),
        end_time=_time_to(lease.ended),
        etag=lease.etag if lease.id else "",
        interrupted=interrupted,
        vm_gone_time=_time_to(lease.vm_gone),
        fm_version=lease.fm_version,
        required_guest_driver=lease.required_guest_driver,
    )


def lease_from(message: messages.Lease, *, simulated: bool = False) -> Leased:
    """The lease of a message, as far as it tells; a state that is not known here counts as one before ACTIVE."""
    lease = Lease(
        message.id,
        message.owner,
        message.request_id,
        "",
        _STATES_BACK.get(message.state, LeaseState.PENDING),
        tuple(message.partition_ids),
        tuple(gpu.physical_id for gpu in message.gpus),
        tuple(message.spare),
        created=_time_from(message.create_time),
        ended=_time_from(message.end_time) if message.HasField("end_time") else None,
        expires=_time_from(message.expire_time) if message.HasField("expire_time") else None,
        vm_uuid=message.vm_uuid,
        labels=dict(message.labels),
        reason=message.reason,
        vm_gone=_time_from(message.vm_gone_time) if message.HasField("vm_gone_time") else None,
        fm_version=message.fm_version,
        required_guest_driver=message.required_guest_driver,
        revision=int(message.etag) if message.etag.isdecimal() else 0,
    )
    return Leased(lease, tuple(map(_device_from, message.gpus)), message.interrupted, simulated)


def event_to(event: Event | int) -> messages.WatchResponse:
    """The message of an event, or of a revision alone."""
    if isinstance(event, int):
        return messages.WatchResponse(revision=event, bookmark=True)
    entry = event.entry
    return messages.WatchResponse(
        revision=entry.revision,
        kind=_KINDS[entry.kind],
        subject=entry.subject,
        what=entry.what,
        detail=entry.detail,
        actor=entry.actor,
        time=_time_to(entry.time),
        lease=lease_to(entry.lease, {}, interrupted=event.interrupted) if entry.lease else None,
    )


def event_from(message: messages.WatchResponse) -> Event | int:
    """The event of a message, or the revision of a bookmark.

    What is of a kind that is not known here is passed on as the host's.
    """
    if message.bookmark:
        return message.revision
    entry = Entry(
        _KINDS_BACK.get(message.kind, Kind.HOST),
        message.subject,
        message.what,
        message.actor,
        message.detail,
        lease=lease_from(message.lease).lease if message.HasField("lease") else None,
        revision=message.revision,
        time=_time_from(message.time),
    )
    return Event(entry, message.lease.interrupted)


def duration_to(seconds: float) -> Duration:
    """The message of so many seconds."""
    message = Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message


def duration_from(message: Duration) -> float:
    """Seconds; what is no duration stays a number that no limit allows."""
    return message.seconds + message.nanos / 1e9


def _device_to(device: GpuDevice) -> messages.LeasedGpu:
    return messages.LeasedGpu(
        physical_id=device.physical_id,
        pci_address=str(device.address) if device.address else "",
        iommu_group=device.iommu_group,
        vfio_path=device.vfio_path,
        numa_node=device.numa_node if device.numa_node is not None and device.numa_node >= 0 else None,
    )


def _device_from(message: messages.LeasedGpu) -> GpuDevice:
    return GpuDevice(
        message.physical_id,
        Bdf.parse(message.pci_address) if message.pci_address else None,
        message.iommu_group if message.HasField("iommu_group") else None,
        message.numa_node if message.HasField("numa_node") else None,
    )


def _time_to(seconds: float | None) -> Timestamp | None:
    if seconds is None:
        return None
    message = Timestamp()
    message.FromNanoseconds(round(seconds * 1e9))
    return message


def _time_from(message: Timestamp) -> float:
    return message.ToNanoseconds() / 1e9
