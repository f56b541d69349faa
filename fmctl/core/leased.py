# SPDX-License-Identifier: Apache-2.0
"""What the daemon answers about leases, as values: `rpc` carries them, `cli` shows them.

Each tells whether the board is simulated. `core.answers` has what it answers about the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

from fmctl.core.book import Entry
from fmctl.core.lease import GpuDevice, Lease
from fmctl.core.packing import Headroom


@dataclass(frozen=True)
class Leased:
    """A lease, and its GPUs as a VM manager needs them; one without id shows only what would be granted.

    `interrupted` tells that its VM lost NVLink, for good until that VM starts again.
    """

    lease: Lease
    devices: tuple[GpuDevice, ...] = ()
    interrupted: bool = False
    simulated: bool = False


@dataclass(frozen=True)
class LeaseList:
    """Leases, oldest first, and from where a watch misses nothing that changes them."""

    leases: tuple[Leased, ...]
    revision: int
    store_id: str
    simulated: bool = False


@dataclass(frozen=True)
class Event:
    """An entry of the host's book, as a watch tells it; `interrupted` is its lease's, as it is now."""

    entry: Entry
    interrupted: bool = False


@dataclass(frozen=True)
class Capacity:
    """What could be granted now; `cordoned` is why the host takes no new work, for whatever reason.

    `rules` are what the operator lets tenants have, in words.
    """

    headroom: Headroom
    cordoned: str = ""
    rules: tuple[str, ...] = ()
    simulated: bool = False


@dataclass(frozen=True)
class Fit:
    """Partitions that would serve several requests together, in their order; None where there are none.

    `rule` is the one by which they are refused, where one is.
    """

    partitions: tuple[int, ...] | None
    rule: str = ""
    simulated: bool = False


@dataclass(frozen=True)
class Candidate:
    """A partition that would be taken or not, and why."""

    partition_id: int
    gpus: tuple[int, ...]
    taken: bool
    why: str


@dataclass(frozen=True)
class Explanation:
    """Every candidate of a request, in the table's order."""

    candidates: tuple[Candidate, ...]
    simulated: bool = False


@dataclass(frozen=True)
class Reconciliation:
    """What would be done so that leases and active partitions are the same set, in words.

    `drift` is what nothing is done about, and `observed` why nothing is done at all; empty where something is.
    """

    steps: tuple[str, ...] = ()
    drift: tuple[str, ...] = ()
    observed: str = ""
    simulated: bool = False
