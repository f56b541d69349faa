# SPDX-License-Identifier: Apache-2.0
"""The layout of this host: applied on a person's word, compared with what is there, and planned for.

`core.layouts` and `core.standing` decide; `control.reconciler` takes the steps that `plan` names.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

from fmctl.control.admission import Admission
from fmctl.control.chooser import available
from fmctl.control.fabric import Fabric, Turn
from fmctl.control.reconciler import Reconciler
from fmctl.control.watch import WatchedStore
from fmctl.core import layouts, standing
from fmctl.core.book import Entry, Kind, Mark, MarkKind, of_mark, of_unmark
from fmctl.core.errors import BadRequest, FmctlError
from fmctl.core.layout import NONE, OWNER, Applied, Layout, LayoutRow, LayoutState
from fmctl.core.partition import PartitionList
from fmctl.core.plan import Observed, Plan
from fmctl.core.policy import Policy


class Layouts:
    """Every method may be called from any thread, `plan` with the turn or for a preview."""

    def __init__(
        self,
        store: WatchedStore,
        fabric: Fabric,
        turn: Turn,
        reconciler: Reconciler,
        admission: Admission,
        policy: Policy,
        *,
        now: Callable[[], float] = time.time,
        new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
        wake: Callable[[], object] = lambda: None,
    ) -> None:
        """`new_id` names leases, and `wake` lets the reconciler look at once."""
        self._store = store
        self._fabric = fabric
        self._turn = turn
        self._reconciler = reconciler
        self._admission = admission
        self._policy = policy
        self._now = now
        self._new_id = new_id
        self._wake = wake

    def plan(self, seen: Observed) -> Plan:
        """What to do next about the layout's own leases."""
        book = self._store.book
        found = standing.plan(book, seen, new_id=self._new_id)
        if (found.steps or not standing.is_settled(book)) and (refused := self._refused()):
            return standing.plan(book, seen, new_id=self._new_id, refused=refused)
        return found

    def state(self, text: str = "", *, keep_active: bool | None = None, timeout: float) -> LayoutState:
        """The layout that is applied, and in what the host differs from it, or from one that is named.

        `text` is as in `apply`. Raises BadRequest, NoSuchPartition where the table cannot give what is named, and what
        a list does.
        """
        listed = self._fabric.peek(timeout)
        target = self._target(text, listed, keep_active=keep_active) if text else layouts.applied(self._store.book)
        return self._compared(target, listed, named=bool(text))

    def apply(
        self,
        text: str = "",
        *,
        keep_active: bool | None = None,
        actor: str,
        timeout: float,
        dry_run: bool = False,
        wait: bool = False,
    ) -> LayoutState:
        """Use only a layout's partitions from now on, for good once this returns; what then differs from it still.

        `text` is a layout, `none`, or empty for what the settings say, as `keep_active` is None. What tenants hold
        stays theirs until they release it, and is told as a difference. With `wait` the answer comes once all is done
        that can be. Raises HostCordoned where nothing is changed on this host, and what `state` does.
        """
        deadline = time.monotonic() + timeout
        with self._turn.within(timeout) as budget:
            listed = self._fabric.look(budget.look())
            self._reconciler.meet(listed)
            self._admission.refuse_changes()
            target = self._target(text, listed, keep_active=keep_active)
            if dry_run:
                return self._compared(target, listed, named=True)
            if target != layouts.applied(self._store.book):
                self._store.commit((self._entry(target, actor),), at=self._now())
        self._wake()
        while wait and self._is_under_way() and (left := deadline - time.monotonic()) > 0:
            self._store.wait_after(self._store.book.revision, min(left, 1.0))
        return self._compared(target, self._fabric.seen or listed, named=True)

    def _entry(self, target: Applied | None, actor: str) -> Entry:
        if target is None:
            return of_unmark(Kind.HOST, "", MarkKind.LAYOUT, actor=actor)
        return of_mark(Kind.HOST, "", Mark(MarkKind.LAYOUT, str(target), self._now()), actor=actor)

    def _target(self, text: str, listed: PartitionList, *, keep_active: bool | None) -> Applied | None:
        """The layout of that name on this board, where tenants hold what as much as they can."""
        wanted = self._wanted(text)
        if wanted is None:
            return None
        book = self._store.book
        own = [lease for lease in book.leases.values() if lease.owner == OWNER]
        free = available(book.without_mark(Kind.HOST, MarkKind.LAYOUT), listed, {}, (), own)
        before = layouts.applied(book)
        held = [partition for lease in layouts.of_tenants(book) for partition in lease.partitions]
        ids = (*held, *(before.partitions if before else ()))
        preferred = [partition for each in ids if (partition := listed.find(each)) is not None]
        partitions = layouts.place(wanted, free, preferred)
        kept = self._policy.keep_layout_active if keep_active is None else keep_active
        return Applied(wanted, tuple(partition.id for partition in partitions), kept)

    def _wanted(self, text: str) -> Layout | None:
        if text == NONE:
            return None
        if not text and self._policy.layout is None:
            raise BadRequest(
                "no layout is named", why="and the setting policy.layout is not set", fix="name one, or none to end it"
            )
        try:
            return Layout.parse(text) if text else self._policy.layout
        except ValueError as error:
            raise BadRequest("the layout is refused", why=str(error), fix="correct it") from None

    def _compared(self, target: Applied | None, listed: PartitionList, *, named: bool) -> LayoutState:
        book = self._store.book
        found, wanted = layouts.applied(book), self._policy.layout
        differences = list(layouts.differences(target, book, listed))
        if named and target != found:
            differences.insert(0, f"the layout {target or NONE} is not applied, but {found or NONE}")
        if not named and wanted is not None and (found is None or found.layout != wanted):
            differences.insert(0, f"the settings want the layout {wanted}, and {found or NONE} is applied")
        leases = {partition: lease for lease in book.leases.values() for partition in lease.partitions}
        rows = tuple(
            LayoutRow(p.id, p.gpu_ids, p.active, lease.owner if (lease := leases.get(p.id)) else "")
            for p in listed.partitions
            if target is not None and p.id in target.partitions
        )
        return LayoutState(
            settings=str(wanted) if wanted else "",
            applied=str(found) if found else "",
            shown=str(target) if target else "",
            rows=rows,
            differences=tuple(differences),
        )

    def _is_under_way(self) -> bool:
        """Whether the reconciler has steps to take for the layout, as far as can be told without asking anybody."""
        book, listed = self._store.book, self._fabric.seen
        if not standing.is_settled(book):
            return True
        seen = Observed(self._now(), listed, (), frozenset())
        return bool(standing.plan(book, seen, new_id=str, refused=self._refused()).steps)

    def _refused(self) -> str:
        try:
            self._admission.refuse_new_work()
        except FmctlError as error:
            return str(error)
        return ""
