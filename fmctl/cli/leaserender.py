# SPDX-License-Identifier: Apache-2.0
"""Leases as text: pure functions, as in `cli.render`."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from fmctl.cli.render import document
from fmctl.cli.table import table
from fmctl.core.lease import GpuDevice, Lease
from fmctl.core.leased import Leased, LeaseList

WIDTH = 80
"""Columns that a table takes at most; owners are cut for it."""

_COLUMNS = ("LEASE", "STATE", "GPUs", "OWNER")
_WIDE_COLUMNS = ("SPARE", "PARTITIONS", "REQUEST", "VM", "EXPIRES", "LABELS")
_GPU_COLUMNS = ("GPU", "ADDRESS", "IOMMU GROUP", "NUMA NODE", "VFIO")


def leases(listed: LeaseList, style: str, *, show_headers: bool = True) -> str:
    """Leases in one of the formats of `fmctl lease list`."""
    found = [leased.lease for leased in listed.leases]
    if style == "name":
        return "".join(f"{name(lease)}\n" for lease in found)
    if style in ("json", "yaml"):
        beside = {"revision": listed.revision, "store_id": listed.store_id, "simulated": listed.simulated}
        return document({"leases": [plain(leased) for leased in listed.leases], **beside}, style)
    if style == "csv":
        return _csv(found, show_headers=show_headers)
    if style == "wide":
        rows = [_or_dash(_cells(lease) + _wide_cells(lease)) for lease in found]
        return table([*_COLUMNS, *_WIDE_COLUMNS], rows, show_headers=show_headers)
    return table(_COLUMNS, _fitting([_cells(lease) for lease in found]), show_headers=show_headers)


def lease(leased: Leased, style: str, *, first: str = "") -> str:
    """One lease; the text begins with `first`, or else says all of it."""
    if style == "name":
        return f"{name(leased.lease)}\n"
    if style in ("json", "yaml"):
        return document({**plain(leased), "simulated": leased.simulated}, style)
    rows = _rows(leased) if not first else [("request id", leased.lease.request_id)]
    text = "".join(f"{key:<11} {value}\n" for key, value in rows if value)
    gpus = "" if leased.lease.state.over else f"\n{table(_GPU_COLUMNS, [_gpu_cells(gpu) for gpu in leased.devices])}"
    return f"{first}\n" * bool(first) + text + gpus


def sentence(lease: Lease, verb: str = "is") -> str:
    """What became of a lease, in a line."""
    subject = f"lease {lease.id} {verb} {lease.state.value}" if lease.id else "it would be granted"
    spare = f", and {ranges(lease.spare)} held beside" if lease.spare else ""
    return f"{subject}: GPUs {ids(lease.gpus)}{spare}"


def name(lease: Lease) -> str:
    """What stands for a lease where names are wanted."""
    return f"lease/{lease.id}"


def ids(numbers: Iterable[int]) -> str:
    """`1,3`."""
    return ",".join(map(str, numbers))


def ranges(numbers: Iterable[int]) -> str:
    """`1-4,8`: as few characters as tell which they are."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ids(run) for run in runs)


def moment(seconds: float | None) -> str:
    """A time in UTC, to the second; empty where there is none."""
    if seconds is None:
        return ""
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).isoformat(timespec="seconds")


def plain(leased: Leased) -> dict[str, Any]:
    """A lease as plain data."""
    lease = leased.lease
    return {
        "id": lease.id,
        "state": lease.state.value if lease.id else None,
        "reason": lease.reason,
        "owner": lease.owner,
        "request_id": lease.request_id,
        "partitions": list(lease.partitions),
        "gpus": [_gpu(device) for device in leased.devices],
        "spare": list(lease.spare),
        "vm": lease.vm_uuid,
        "vm_gone": moment(lease.vm_gone) or None,
        "interrupted": leased.interrupted,
        "labels": dict(lease.labels),
        "created": moment(lease.created) if lease.created else None,
        "expires": moment(lease.expires) or None,
        "ended": moment(lease.ended) or None,
        "fm_version": lease.fm_version,
        "required_guest_driver": lease.required_guest_driver,
        "etag": lease.etag if lease.id else "",
    }


def _gpu(device: GpuDevice) -> dict[str, Any]:
    return {
        "physical_id": device.physical_id,
        "address": str(device.address) if device.address else None,
        "iommu_group": device.iommu_group,
        "numa_node": device.numa_node,
        "vfio": device.vfio_path or None,
    }


def _rows(leased: Leased) -> Iterator[tuple[str, str]]:
    lease = leased.lease
    yield "lease", lease.id
    yield "state", lease.state.value + (f": {lease.reason}" if lease.reason else "")
    yield "owner", lease.owner
    yield "request id", lease.request_id
    yield "partitions", ids(lease.partitions)
    yield "spare", ids(lease.spare)
    yield "VM", lease.vm_uuid + (f", gone since {moment(lease.vm_gone)}" if lease.vm_gone else "")
    yield "NVLink", "interrupted until its VM starts again" if leased.interrupted else ""
    yield "labels", _labels(lease)
    yield "created", moment(lease.created)
    yield "expires", moment(lease.expires)
    yield "ended", moment(lease.ended)
    yield "driver", f"{lease.required_guest_driver} in the guest" if lease.required_guest_driver else ""
    yield "etag", lease.etag


def _cells(lease: Lease) -> list[str]:
    return [lease.id, lease.state.value, ranges(lease.gpus), lease.owner]


def _wide_cells(lease: Lease) -> list[str]:
    return [
        ranges(lease.spare),
        ids(lease.partitions),
        lease.request_id,
        lease.vm_uuid,
        moment(lease.expires),
        _labels(lease),
    ]


def _gpu_cells(device: GpuDevice) -> list[str]:
    return _or_dash(
        [
            str(device.physical_id),
            str(device.address or ""),
            "" if device.iommu_group is None else str(device.iommu_group),
            "" if device.numa_node is None else str(device.numa_node),
            device.vfio_path,
        ]
    )


def _labels(lease: Lease) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(lease.labels.items()))


def _or_dash(cells: Iterable[str]) -> list[str]:
    return [cell or "-" for cell in cells]


def _fitting(rows: Sequence[list[str]]) -> list[list[str]]:
    """The rows with their last cells cut to what the width leaves."""
    *before, last = _COLUMNS
    used = sum(max([len(header), *(len(row[place]) for row in rows)]) + 2 for place, header in enumerate(before))
    room = max(len(last), WIDTH - used)
    return [[*row[:-1], row[-1] if len(row[-1]) <= room else row[-1][: room - 2] + ".."] for row in rows]


def _csv(found: Sequence[Lease], *, show_headers: bool) -> str:
    import csv
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if show_headers:
        writer.writerow(column.lower() for column in (*_COLUMNS, *_WIDE_COLUMNS))
    writer.writerows([*_cells(lease), *_wide_cells(lease)] for lease in found)
    return text.getvalue()
