# SPDX-License-Identifier: Apache-2.0
"""What this host lets its tenants have, by the operator's settings: who may lease, and how many GPUs.

Pure. `control.chooser` asks before it chooses for a new lease; what is leased already is never taken back by a rule. A
refusal names the rule. `core.layouts` has which partitions are used.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fmctl.core import owner as owners
from fmctl.core.errors import FmctlError, LimitReached, PolicyDenied
from fmctl.core.layout import Layout
from fmctl.core.partition import MAX_GPUS
from fmctl.core.schema import setting

if TYPE_CHECKING:
    from fmctl.core.book import Book
    from fmctl.core.packing import Headroom

OTHERS = "ask another host, or have the setting changed"


@dataclass(frozen=True)
class Policy:
    """The rules of a host. A limit counts what is held: spare GPUs too, and until Fabric Manager has let go of them.

    A name of an owner that ends in `*` stands for all that begin so. What is denied goes before what is allowed.
    """

    max_gpus_per_request: int | None = setting(
        None, doc="the most GPUs that one request may hold; null for no limit", low=1, high=MAX_GPUS
    )
    max_gpus_per_owner: int | None = setting(
        None, doc="the most GPUs that one owner may hold; null for no limit", low=1, high=MAX_GPUS
    )
    max_gpus_per_host: int | None = setting(
        None, doc="the most GPUs that all owners together may hold; null for no limit", low=1, high=MAX_GPUS
    )
    allowed_owners: tuple[str, ...] = setting(
        (), doc="who may lease GPUs, such as team-a or team-*; empty for everybody who is not denied"
    )
    denied_owners: tuple[str, ...] = setting((), doc="who may not")
    layout: Layout | None = setting(
        None,
        doc="which partitions are used once `fmctl layout apply` applied it, such as 4x2 (four of two GPUs) or 4+2+1+1;"
        " null for all",
    )
    keep_layout_active: bool = setting(
        default=False, doc="whether its partitions are active also while nobody leases them"
    )

    def refusal(self, book: Book, sizes: Sequence[int], owner: str = "") -> FmctlError | None:
        """Why new requests that hold so many GPUs each are refused together; None where they are not.

        Without an owner they are of several, none of whom holds anything.
        """
        most, wanted = max(sizes), sum(sizes)
        if owner and (rule := self._refused_owner(owner)):
            return PolicyDenied(f"owner {owner!r} may lease no GPU of this host", why=rule, fix=OTHERS)
        if _exceeds(most, self.max_gpus_per_request):
            return PolicyDenied(
                f"a request for {_gpus(most)} is refused",
                why=f"the setting policy.max_gpus_per_request is {self.max_gpus_per_request}",
                fix="ask for fewer, or another host",
            )
        held = held_by(book, owner)
        its = wanted if owner else most
        if _exceeds(held + its, self.max_gpus_per_owner):
            who = f"owner {owner!r}" if owner else "an owner"
            return LimitReached(
                f"{who} may not hold {_gpus(its)} more",
                why=f"the setting policy.max_gpus_per_owner is {self.max_gpus_per_owner}, and it holds {held}",
                fix="release some, or ask another host",
            )
        leased = held_by(book)
        if _exceeds(leased + wanted, self.max_gpus_per_host):
            return LimitReached(
                f"this host may not lease {_gpus(wanted)} more",
                why=f"the setting policy.max_gpus_per_host is {self.max_gpus_per_host}, and {leased} are leased",
                fix="ask another host, or wait until some are released",
            )
        return None

    def limited(self, headroom: Headroom, book: Book, owner: str = "") -> Headroom:
        """Of what could be granted, what the rules leave, to that owner or to several who hold nothing."""

        def most(size: int, count: int) -> int:
            return next((n for n in range(count, 0, -1) if self.refusal(book, [size] * n, owner) is None), 0)

        return replace(headroom, partitions={size: most(size, n) for size, n in headroom.partitions.items()})

    def told(self, book: Book) -> tuple[str, ...]:
        """The rules that are set, in words."""
        limits = {
            "max_gpus_per_request": (self.max_gpus_per_request, ""),
            "max_gpus_per_owner": (self.max_gpus_per_owner, ""),
            "max_gpus_per_host": (self.max_gpus_per_host, f", and {held_by(book)} are leased"),
        }
        lists = {"allowed_owners": self.allowed_owners, "denied_owners": self.denied_owners}
        return (
            *(f"policy.{name} is {limit}{more}" for name, (limit, more) in limits.items() if limit is not None),
            *(f"policy.{name} is {', '.join(names)}" for name, names in lists.items() if names),
        )

    def _refused_owner(self, owner: str) -> str:
        if _is_among(owner, self.denied_owners):
            return "the setting policy.denied_owners names it"
        if self.allowed_owners and not _is_among(owner, self.allowed_owners):
            return "the setting policy.allowed_owners does not name it"
        return ""


def held_by(book: Book, owner: str | None = None) -> int:
    """How many GPUs an owner holds, spare ones included; all tenants together where none is named, 0 for an empty."""
    return sum(
        len(lease.held)
        for lease in book.leases.values()
        if (lease.owner == owner if owner is not None else not owners.is_system(lease.owner))
    )


def _exceeds(gpus: int, limit: int | None) -> bool:
    return limit is not None and gpus > limit


def _is_among(owner: str, names: Collection[str]) -> bool:
    return any(owner.startswith(name[:-1]) if name.endswith("*") else owner == name for name in names)


def _gpus(count: int) -> str:
    return f"{count} GPU{'' if count == 1 else 's'}"
