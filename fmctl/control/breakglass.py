# SPDX-License-Identifier: Apache-2.0
"""Changes that a person makes at the agent, past the daemon: made in the Service VM, and told to a daemon that comes.

`core.breakglass` says what is recorded. The agent's logs carry the records to the daemon, as `control.logs` reads them.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable

from fmctl.control.fabric import Fabric, Turn
from fmctl.control.logbuffer import LogBuffer
from fmctl.core import breakglass, outcome
from fmctl.core.answers import Changed
from fmctl.core.breakglass import ALREADY, ASKED, DONE, Record
from fmctl.core.errors import BadRequest, FmctlError, PartitionHeld
from fmctl.core.fmcode import FmCode, Operation
from fmctl.core.loglines import LogSource
from fmctl.core.partition import Partition
from fmctl.core.ports import Agent, AuditTrail, Store

log = logging.getLogger(__name__)


class BreakGlass:
    """Changes partitions for a person, one after the other."""

    def __init__(
        self,
        agent: Agent,
        trail: AuditTrail,
        logs: LogBuffer,
        *,
        call_timeout: float,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """What `trail` has of this boot already is told to readers of `logs` once more."""
        self._fabric = Fabric(agent, now)
        self._trail = trail
        self._logs = logs
        self._turn = Turn(call_timeout, clock)
        self._now = now
        lines = trail.lines()
        earlier = [record for line in lines if (record := breakglass.parse(line)) is not None]
        self._boot = earlier[-1].boot if earlier else uuid.uuid4().hex
        self._last = max((record.number for record in earlier), default=0)
        for record in earlier:
            logs.add(LogSource.BREAK_GLASS, record.time, record.text())

    def change(self, operation: Operation, partition_id: int, *, user: str, reason: str, timeout: float) -> Changed:
        """Activate or deactivate a partition, and record who asked, before and after.

        An active one is not activated again, since nobody here knows for whom it is. Raises BadRequest without a user
        or a reason, PartitionHeld also while a daemon may live, and else as `control.fabric` does.
        """
        problem = breakglass.problem(user, reason)
        if problem:
            raise BadRequest("nothing is changed past fmctld", why=problem, fix="say who you are, and why")
        with self._turn.within(timeout) as budget:
            self._refuse_daemon()
            listed = self._fabric.look(budget.look())
            partition = listed.get(partition_id)
            if operation is Operation.ACTIVATE:
                _refuse_active(partition)
                blockers = listed.blockers(partition)
                if blockers:
                    raise outcome.blocked(partition, blockers, {})

            def note(what: str, code: int | None = None) -> None:
                self._note(operation, partition_id, user, reason, what, code)

            note(ASKED)
            try:
                if operation is Operation.ACTIVATE:
                    already = self._fabric.activate(partition_id, budget, {}, ours=False)
                else:
                    already = self._fabric.deactivate(partition_id, budget)
            except FmctlError as error:
                self._note_outcome(note, str(error), error.fm_code)
                raise
            self._note_outcome(note, ALREADY if already else DONE, None if already else FmCode.SUCCESS.value)
            active = operation is Operation.ACTIVATE
            return Changed(partition.with_active(active=active), already=already, simulated=listed.simulated)

    def _refuse_daemon(self) -> None:
        """Raise PartitionHeld while a daemon lives, or may."""
        left = self._logs.awaited
        if left > 0:
            lives = left == math.inf
            raise PartitionHeld(
                "nothing is changed past fmctld",
                why="it is connected to this agent" if lives else "that it is not there is not certain yet",
                fix="ask it, or stop it first: systemctl stop fmctld" if lives else f"try again in {left:.0f} s",
            )

    def _note(
        self, operation: Operation, partition_id: int, user: str, reason: str, what: str, code: int | None
    ) -> None:
        """Record, for as long as the Service VM runs, and for those who read its console or the agent's logs."""
        self._last += 1
        record = Record(self._boot, self._last, self._now(), operation, partition_id, user, reason, what, code)
        text = record.text()
        self._trail.append(text)
        self._logs.add(LogSource.BREAK_GLASS, record.time, text)
        log.warning("break glass: %s", text)

    @staticmethod
    def _note_outcome(note: Callable[[str, int | None], None], what: str, code: int | None) -> None:
        """Record what cannot be taken back; that it was asked for is recorded already."""
        try:
            note(what, code)
        except FmctlError as error:
            log.error("break glass: %s (code %s) is not recorded: %s", what, code, error)


def _refuse_active(partition: Partition) -> None:
    if partition.active:
        raise PartitionHeld(
            f"partition {partition.id} is already active",
            why="for whom, only fmctld knows",
            fix="choose another, or deactivate it first if nobody uses it",
            partition_id=partition.id,
        )


class Records:
    """The daemon's side: lets the book have every record once, and keeps those that it cannot take now."""

    def __init__(self, store: Store, now: Callable[[], float] = time.time) -> None:
        self._store = store
        self._now = now
        self._lock = threading.Lock()
        self._waiting: deque[Record] = deque()

    def take(self, text: str) -> None:
        """Take a line that the agent told; never raises."""
        record = breakglass.parse(text)
        if record is None:
            log.warning("a record of the agent's cannot be read: %s", text)
            return
        with self._lock:
            self._waiting.append(record)
        self.flush()

    def flush(self) -> None:
        """Commit what waits; never raises."""
        with self._lock:
            while self._waiting:
                entry = breakglass.entry(self._waiting[0], self._store.book)
                try:
                    if entry is not None:
                        self._store.commit((entry,), at=self._now())
                except FmctlError as error:
                    log.warning("a change past fmctld is not recorded yet: %s", error)
                    return
                self._waiting.popleft()
