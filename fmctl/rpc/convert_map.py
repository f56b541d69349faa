# SPDX-License-Identifier: Apache-2.0
"""The GPU map between core values and messages."""

from __future__ import annotations

from fmctl.core.mapsource import Acceptance, MapState, Source, SourceKind
from fmctl.core.mapstatus import MappedGpu, MapStatus
from fmctl.core.pci import Bdf
from fmctl.rpc.fmctl.v1 import gpu_map_pb2 as messages

_STATES = {
    MapState.VERIFIED: messages.GPU_MAP_STATE_VERIFIED,
    MapState.UNVERIFIED: messages.GPU_MAP_STATE_UNVERIFIED,
    MapState.CONTRADICTORY: messages.GPU_MAP_STATE_CONTRADICTORY,
}
_STATES_BACK = {message: state for state, message in _STATES.items()}
_FORMATS = {
    SourceKind.NVIDIA_SMI: messages.GPU_MAP_FORMAT_NVIDIA_SMI,
    SourceKind.FILE: messages.GPU_MAP_FORMAT_YAML,
}
_FORMATS_BACK = {message: kind for kind, message in _FORMATS.items()}


def format_to(kind: SourceKind | None) -> messages.GpuMapFormat.ValueType:
    """The message's format; unspecified for None."""
    return _FORMATS[kind] if kind else messages.GPU_MAP_FORMAT_UNSPECIFIED


def format_from(message: messages.GpuMapFormat.ValueType) -> SourceKind | None:
    """The way back; None for a format that is not known here."""
    return _FORMATS_BACK.get(message)


def map_to(status: MapStatus) -> messages.GpuMap:
    """The message of a map."""
    shown = messages.GpuMap(
        state=_STATES[status.state],
        why=status.why,
        fix=status.fix,
        fingerprint=status.fingerprint,
        board=status.board,
        gpus=[
            messages.MappedGpu(address=str(gpu.address), physical_id=gpu.physical_id or 0, unread=gpu.unread)
            for gpu in status.gpus
        ],
        sources=[_source_to(source) for source in status.sources],
    )
    if status.accepted is not None:
        shown.accepted_by = status.accepted.by
        shown.accept_time.FromNanoseconds(round(status.accepted.time * 1e9))
    return shown


def map_from(message: messages.GpuMap, *, simulated: bool) -> MapStatus:
    """The way back; a state that is not known here is read as the careful one."""
    accepted = None
    if message.accepted_by:
        accepted = Acceptance(message.accepted_by, message.accept_time.ToNanoseconds() / 1e9, message.fingerprint)
    return MapStatus(
        _STATES_BACK.get(message.state, MapState.UNVERIFIED),
        message.why,
        message.fix,
        message.fingerprint,
        message.board,
        tuple(MappedGpu(Bdf.parse(gpu.address), gpu.physical_id or None, gpu.unread) for gpu in message.gpus),
        tuple(_source_from(source) for source in message.sources),
        accepted,
        simulated,
    )


def _source_to(source: Source) -> messages.GpuMapSource:
    shown = messages.GpuMapSource(
        kind=source.kind.value,
        detail=source.detail,
        boot=source.boot,
        physical_ids={str(bdf): number for bdf, number in source.readings.items()},
    )
    shown.time.FromNanoseconds(round(source.time * 1e9))
    return shown


def _source_from(message: messages.GpuMapSource) -> Source:
    readings = {Bdf.parse(address): number for address, number in message.physical_ids.items()}
    return Source(SourceKind(message.kind), readings, message.time.ToNanoseconds() / 1e9, message.boot, message.detail)
