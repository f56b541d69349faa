# SPDX-License-Identifier: Apache-2.0
"""What dies and comes back, what fails, and what another tool does with Fabric Manager."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from fmctl.core.answers import ProcessState
from fmctl.core.fmcode import Operation
from fmctl.core.plan import LATE
from fmctl.sim.faults import Faults
from tests.chaos.machine import NUMBER, Machine

CHANGES = (Operation.ACTIVATE, Operation.DEACTIVATE)
FAULTS = (
    *(
        f"{fault}@{operation}:{nth}"
        for fault in ("hang", "close", "die-before", "die-after", *(f"code={code}" for code in (-1, -2, -5, -7, -10)))
        for operation in ("activate", "deactivate")
        for nth in ("1", "2", "1+")
    ),
    "hang@list:1",
    "hang@list:2",
    "code=-8@list:1",
    "die-before@list:2",
)


class FailureRules(Machine):
    """The daemon, Fabric Manager, the Service VM and the way to it, and the store."""

    # What dies, and comes back.

    @rule(what=st.sampled_from((*["the daemon"] * 3, "the host", "the host, with other addresses")))
    def restart(self, what: str) -> None:
        self._fired(f"restart {what}")
        if what == "the daemon":
            self.world.restart_daemon()
            return
        for name in self.world.vms:
            self.judge.vm_stopped(name)
        self.world.reboot(moved=what != "the host")
        self.world.guard()

    @rule(what=st.sampled_from(("commit", "call", "reset", "command")), nth=st.integers(1, 3), after=st.booleans())
    def let_the_daemon_die(self, what: str, nth: int, after: bool) -> None:
        self._fired("let_the_daemon_die")
        self.world.fate.decide(what, nth, after=after)

    @rule(what=st.sampled_from(("stop FM", "restart FM", "start FM fresh", "lose the Service VM")))
    def end_or_start_fabric_manager(self, what: str) -> None:
        if what in ("stop FM", "restart FM") and self.world.process.state() is ProcessState.NOT_STARTED:
            what = "start FM fresh"
        self._fired(what)
        {
            "stop FM": self.world.stop_fabric_manager,
            "restart FM": self._restart,
            "start FM fresh": self.world.start_fresh,
            "lose the Service VM": self.world.lose_service_vm,
        }[what]()

    # What fails.

    @rule(fault=st.sampled_from(FAULTS))
    def let_fabric_manager_fail(self, fault: str) -> None:
        self._fired("let_fabric_manager_fail")
        self.world.nvfm.fail(Faults.parse([fault]))

    @rule(what=st.sampled_from(("calls", "answers", "commits")), times=st.integers(1, 3))
    def lose(self, what: str, times: int) -> None:
        self._fired(f"lose {what}")
        if what == "calls":
            self.world.line.cut = times
        elif what == "answers":
            self.world.line.lost = times
        else:
            self.world.store.full_commits = times

    @rule(seconds=st.sampled_from((3.0, 30.0, LATE - 1)), slow=st.sampled_from((None, *CHANGES)))
    def delay_a_change(self, seconds: float, slow: Operation | None) -> None:
        self._fired("delay_a_change")
        self.world.line.late, self.world.line.slow = seconds, slow

    @rule(what=st.sampled_from(("libvirt", "sight", "the host")))
    def lose_or_find(self, what: str) -> None:
        self._fired(f"lose or find {what}")
        if what == "libvirt":
            self._reach_libvirt(away=not self.away)
        elif what == "sight":
            self._see(sees=self.blind)
        else:
            self.world.gate.reason = "" if self.world.gate.reason else "an NVSwitch is gone"

    # What another tool does.

    @rule(partition=st.integers(0, 14))
    def activate_elsewhere(self, partition: int) -> None:
        """Let another tool activate a partition."""
        self._fired("activate_elsewhere")
        self._activate_elsewhere(self._partition(partition))

    @precondition(lambda self: self.world.active)
    @rule(which=NUMBER)
    def deactivate_elsewhere(self, which: int) -> None:
        """Let another tool deactivate a partition."""
        self._fired("deactivate_elsewhere")
        active = sorted(self.world.active or ())
        if self.world.nvfm.fabric is not None:
            self.world.nvfm.fabric.deactivate(active[which % len(active)], self.world.now)
