# SPDX-License-Identifier: Apache-2.0
"""What every side of the port `Store` answers where it has to refuse."""

from __future__ import annotations

from fmctl.core.errors import Compacted, NoSuchLease, RequestIdReused


def taken(owner: str, request_id: str, lease_id: str) -> RequestIdReused:
    """Another lease stands for the request."""
    return RequestIdReused(
        f"the request id {request_id!r} of {owner!r} is taken",
        why=f"the lease {lease_id} stands for it",
        fix="use another request id for another request",
    )


def unknown(lease_id: str) -> NoSuchLease:
    """The store has no such lease, or has it no more."""
    return NoSuchLease(
        f"there is no lease {lease_id}",
        why="it never was, was undone, or ended so long ago that it is forgotten",
        fix="see `fmctl lease list --all`",
    )


def compacted(after: int, first: int, last: int) -> Compacted:
    """The entries after that revision are not all there; those after `first` up to `last` are."""
    return Compacted(
        f"the entries after revision {after} are not there",
        why=f"this store has those after {first}, and the last is {last}",
        fix="list again, and go on from the revision that comes with the list",
    )
