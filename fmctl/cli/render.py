# SPDX-License-Identifier: Apache-2.0
"""Results as text: pure functions from what the daemon answers to what stands on standard output.

A table looks the same on every terminal and in a pipe; `cli.table` lays it out. The other formats import what they need
when they are asked for, since most calls are for a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fmctl.cli.table import table
from fmctl.core.answers import Changed, Listed
from fmctl.core.partition import Gpu, Partition

if TYPE_CHECKING:
    from fmctl.core.finding import Finding

FMPM_VERSION = 0x0102030C
"""The version word of `fmFabricPartitionList_v2`, which fmpm prints."""


def partitions(listed: Listed, style: str, *, show_headers: bool = True) -> str:
    """The partitions in one of the formats of `fmctl list`."""
    rows = listed.list.partitions
    if style == "name":
        return "".join(f"{_name(partition)}\n" for partition in rows)
    if style == "fmpm":
        return _fmpm(listed)
    if style in ("json", "yaml"):
        plain = [_plain(partition, listed.owners.get(partition.id, "")) for partition in rows]
        return document({"partitions": plain, "simulated": listed.list.simulated}, style)
    if style == "csv":
        return _csv(listed, show_headers=show_headers)
    headers = [*_COLUMNS, *_WIDE_COLUMNS] if style == "wide" else _COLUMNS
    cells = [[*_cells(p), *_wide_cells(p, listed)] if style == "wide" else _cells(p) for p in rows]
    return table(headers, cells, show_headers=show_headers)


def changed(change: Changed, style: str) -> str:
    """What an activation or a deactivation did."""
    partition = change.partition
    if style == "name":
        return f"{_name(partition)}\n"
    if style in ("json", "yaml"):
        plain = {**_plain(partition, change.owner), "already": change.already, "simulated": change.simulated}
        return document(plain, style)
    adverb = "already" if change.already else "now"
    return f"partition {partition.id} is {adverb} {_status(partition)}: GPUs {_ids(partition)}\n"


def findings(found: Sequence[Finding], style: str, *, nothing: str, **beside: str) -> str:
    """What is wrong with a host, or `nothing`; a document has what stands `beside`, too."""
    if style != "text":
        return document({**beside, "findings": [vars(finding) for finding in found]}, style)
    lines = [f"{each.name}: {each.what}\n  why: {each.why}\n  do:  {each.fix}\n" for each in found]
    return "".join(lines) or f"nothing found: {nothing}\n"


def document(plain: Any, style: str) -> str:
    """Plain data as JSON or YAML."""
    if style == "json":
        import json

        return json.dumps(plain, indent=2, ensure_ascii=False) + "\n"
    from fmctl.core import schema

    return schema.dump(plain)


_COLUMNS = ("PARTITION ID", "STATUS", "GPUs", "NVLINKS", "GPU PHYSICAL IDs")
_WIDE_COLUMNS = ("LINE RATE MB/s", "PCI BUS IDs", "OWNER")


def _cells(partition: Partition) -> list[str]:
    return [
        str(partition.id),
        _status(partition).capitalize(),
        str(len(partition.gpus)),
        str(partition.nvlinks),
        _ids(partition),
    ]


def _wide_cells(partition: Partition, listed: Listed) -> list[str]:
    rates = sorted({gpu.line_rate_mbps for gpu in partition.gpus} - {0})
    buses = [gpu.pci_bus_id for gpu in partition.gpus if gpu.pci_bus_id.strip("0:.")]
    return [
        ",".join(map(str, rates)) or "-",
        ",".join(buses) or "-",
        listed.owners.get(partition.id, "-"),
    ]


def _csv(listed: Listed, *, show_headers: bool) -> str:
    import csv
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if show_headers:
        writer.writerow(("id", "status", "gpus", "nvlinks", "gpu_physical_ids", "owner"))
    for partition in listed.list.partitions:
        row_id, _, *rest = _cells(partition)
        writer.writerow((row_id, _status(partition), *rest, listed.owners.get(partition.id, "")))
    return text.getvalue()


def _status(partition: Partition) -> str:
    return "active" if partition.active else "inactive"


def _name(partition: Partition) -> str:
    return f"partition/{partition.id}"


def _ids(partition: Partition) -> str:
    return ",".join(map(str, partition.gpu_ids))


def _plain(partition: Partition, owner: str) -> dict[str, Any]:
    return {
        "id": partition.id,
        "status": _status(partition),
        "gpus": list(partition.gpu_ids),
        "nvlinks": partition.nvlinks,
        "owner": owner,
    }


def _fmpm(listed: Listed) -> str:
    """What `fmpm -l` prints: three blanks a level, keys in order, a blank on both sides of the colon."""
    import json

    plain = {
        "version": FMPM_VERSION,
        "numPartitions": len(listed.list.partitions),
        "maxNumPartitions": listed.list.max_partitions,
        "partitionInfo": [
            {
                "partitionId": partition.id,
                "isActive": int(partition.active),
                "numGpus": len(partition.gpus),
                "gpuInfo": [_fmpm_gpu(gpu) for gpu in partition.gpus],
            }
            for partition in listed.list.partitions
        ],
    }
    return json.dumps(plain, indent=3, sort_keys=True, separators=(",", " : ")) + "\n"


def _fmpm_gpu(gpu: Gpu) -> dict[str, Any]:
    return {
        "physicalId": gpu.physical_id,
        "uuid": gpu.uuid,
        "pciBusId": gpu.pci_bus_id,
        "numNvLinksAvailable": gpu.nvlinks,
        "maxNumNvLinks": gpu.nvlinks_max,
        "nvlinkLineRateMBps": gpu.line_rate_mbps,
    }
