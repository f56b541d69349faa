# SPDX-License-Identifier: Apache-2.0
"""Whether this host takes new work, and this request: everything that is refused before a partition is chosen."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future

from fmctl.control.reconciler import Reconciler
from fmctl.core.answers import AgentStatus, NewWork
from fmctl.core.book import Kind, MarkKind
from fmctl.core.errors import FmctlError, HostCordoned, MapPending, VersionMismatch
from fmctl.core.ports import Store
from fmctl.core.request import Request
from fmctl.core.versions import required_guest_driver

REFUSED = "this host takes no new work"


class Admission:
    """Asked with the turn, before every new lease."""

    def __init__(
        self,
        store: Store,
        reconciler: Reconciler,
        refuse_new_work: Callable[[], None],
        versions: Callable[[], AgentStatus | None],
    ) -> None:
        """`refuse_new_work` raises where the host's devices or its Service VM forbid it."""
        self._store = store
        self._reconciler = reconciler
        self._refuse_new_work = refuse_new_work
        self._versions = versions
        self._looking = threading.Lock()
        self._look: Future[NewWork] | None = None

    def admit(self, request: Request) -> None:
        """Raise HostCordoned, PolicyDenied or VersionMismatch where the request is not to be served."""
        self.refuse_new_work()
        self._refuse_driver(request)

    def refuse_new_work(self) -> None:
        """Raise HostCordoned or PolicyDenied where no request at all is served now."""
        self.refuse_changes()
        cordon = self._store.book.marks.get((Kind.HOST, "", MarkKind.CORDONED))
        if cordon is not None:
            raise HostCordoned(f"{REFUSED}: it is cordoned", why=cordon.reason, fix="`fmctl host uncordon`")
        self._refuse_new_work()

    @property
    def new_work(self) -> NewWork:
        """Why no request at all is served now, where none is."""
        try:
            self.refuse_new_work()
        except FmctlError as error:
            passing = isinstance(error, MapPending)
            return NewWork(str(error).removeprefix(f"{REFUSED}: "), error.fix, passing)
        return NewWork()

    def new_work_within(self, timeout: float) -> NewWork:
        """The same within so many seconds: the board is looked at, and who reads of a function that is reset waits."""
        with self._looking:
            look = self._look
            if look is None or look.done():
                look = self._look = Future()
                threading.Thread(target=self._take_look, args=(look,), name="new work", daemon=True).start()
        try:
            return look.result(timeout)
        except futures.TimeoutError:
            return NewWork(
                f"whether it can is not known: the look at the board takes more than {timeout:g} s",
                "see `dmesg`: a PCI function may not answer",
            )

    def _take_look(self, look: Future[NewWork]) -> None:
        try:
            look.set_result(self.new_work)
        except BaseException as error:
            look.set_exception(error)

    def refuse_changes(self) -> None:
        """Raise HostCordoned where nothing is changed on this host."""
        if self._reconciler.is_observing:
            raise HostCordoned(
                f"{REFUSED}: it is only observed",
                why=self._reconciler.observed,
                fix="see `fmctl reconcile --dry-run`, then `fmctl reconcile --accept`",
            )

    @property
    def fm_version(self) -> str:
        """Fabric Manager's version; empty while unknown."""
        seen = self._versions()
        return seen.fm_version if seen else ""

    @property
    def required_guest_driver(self) -> str:
        """The driver that a guest must have; empty while unknown."""
        return required_guest_driver(self.fm_version) if self.fm_version else ""

    def _refuse_driver(self, request: Request) -> None:
        needed = self.required_guest_driver
        if request.guest_driver and needed and request.guest_driver != needed:
            raise VersionMismatch(
                f"a guest with driver {request.guest_driver} cannot use NVLink here",
                why=f"Fabric Manager is {self.fm_version}, and a guest's driver must be of that version",
                fix=f"install driver {needed} in the guest, or use another host",
            )
