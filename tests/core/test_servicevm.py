# SPDX-License-Identifier: Apache-2.0
"""The Service VM's life as looks and times in, actions out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import pytest

from fmctl.core import servicevm
from fmctl.core.answers import FabricState, ServiceVmState
from fmctl.core.domain import Domain, DomainState
from fmctl.core.pci import Bdf
from fmctl.core.servicevm import Action, Memory, Rules, Seen, Tenant
from fmctl.core.settings import Restart

GPUS = tuple(Bdf(0, bus, 0, 0) for bus in range(0x10, 0x18))
SWITCH = Bdf(0, 4, 0, 0)
OWN = Domain("own", "fmctl-service-vm", DomainState.RUNNING, (SWITCH,), 1000, "sha")
PAIR = Tenant("tenant", GPUS[:2])
ALONE = Tenant("alone", GPUS[:1])
RULES = Rules(start_timeout=300.0, restart_limit=5)

READY = Seen(OWN, FabricState.READY)
DEAD = Seen(None, None)
SILENT = Seen(OWN, None)


def fabric(state: FabricState, *tenants: Tenant) -> Seen:
    return Seen(OWN, state, tenants)


@dataclass
class Life:
    """One Service VM over time: every action that is decided counts as taken."""

    rules: Rules = RULES
    memory: Memory = field(default_factory=Memory)
    now: float = 1000.0
    degraded: str = ""

    def look(self, seen: Seen, after: float = 0.0) -> Action:
        self.now += after
        decision = servicevm.decide(seen, self.memory, self.rules, self.now)
        self.memory, self.degraded = decision.memory, decision.degraded
        return decision.action

    def ready(self) -> Life:
        assert self.look(READY) is Action.WAIT
        return self


def test_a_dead_service_vm_is_started_at_once_and_then_ever_later() -> None:
    life = Life()
    assert life.look(DEAD) is Action.START
    for delay in (5.0, 10.0, 20.0, 40.0, 80.0):
        assert life.look(DEAD, after=delay - 0.1) is Action.WAIT
        assert life.look(DEAD, after=0.1) is Action.START


@pytest.mark.parametrize("state", [FabricState.NOT_STARTED, FabricState.ENDED, FabricState.UNREACHABLE])
def test_where_versions_differ_nothing_is_tried_and_the_host_says_why(state: FabricState) -> None:
    life = Life().ready()
    for _ in range(20):
        assert life.look(Seen(OWN, state, mismatch="580.1 is not 570.2"), after=100.0) is Action.WAIT
        assert "580.1 is not 570.2" in life.degraded
    assert life.look(READY) is Action.WAIT
    assert life.degraded == ""


def test_after_as_many_restarts_as_the_limit_it_stays_dead_for_an_hour_and_says_why() -> None:
    life = Life(dataclasses.replace(RULES, restart_limit=2))
    for _ in range(3):
        assert life.look(DEAD, after=300.0) is Action.START
    assert life.look(DEAD, after=300.0) is Action.WAIT
    assert "started 3 times within an hour" in life.degraded
    assert life.look(DEAD, after=3600.0) is Action.START
    assert life.degraded == ""


def test_a_service_vm_that_dies_is_started_at_once_whatever_tenants_run() -> None:
    life = Life().ready()
    assert life.look(Seen(None, None, (PAIR,))) is Action.START
    assert life.degraded == ""


def test_one_that_was_stopped_on_request_is_left_alone() -> None:
    life = Life(memory=Memory(wanted=False))
    for seen in (DEAD, SILENT, fabric(FabricState.ENDED), fabric(FabricState.NOT_STARTED), READY):
        assert life.look(seen, after=1000.0) is Action.WAIT


def test_a_new_guest_gets_a_fresh_fabric_manager_at_once_whatever_tenants_run() -> None:
    life = Life()
    life.look(DEAD)
    assert life.look(SILENT, after=10) is Action.WAIT
    assert life.look(fabric(FabricState.NOT_STARTED, PAIR), after=10) is Action.START_FRESH
    assert life.look(fabric(FabricState.INITIALISING, PAIR), after=1) is Action.WAIT
    assert life.look(READY, after=10) is Action.WAIT


def test_a_fabric_manager_that_ended_takes_up_its_state_while_tenants_run() -> None:
    life = Life().ready()
    assert life.look(fabric(FabricState.ENDED, PAIR), after=1) is Action.START_RESTART
    assert life.look(fabric(FabricState.AWAITING_ACTIVE_LIST, PAIR), after=1) is Action.WAIT
    assert life.look(READY, after=1) is Action.WAIT
    assert life.look(fabric(FabricState.ENDED, PAIR), after=1) is Action.START_RESTART


def test_one_that_cannot_take_up_its_state_starts_fresh_only_when_no_tenant_loses_by_it() -> None:
    life = Life().ready()
    ended = fabric(FabricState.ENDED, PAIR, ALONE)
    assert life.look(ended) is Action.START_RESTART
    assert life.look(ended, after=19.9) is Action.WAIT
    assert life.degraded == ""
    assert life.look(ended, after=0.1) is Action.WAIT
    assert "to start Fabric Manager fresh would interrupt tenant with 2 GPUs" in life.degraded
    assert "alone" not in life.degraded
    assert life.look(fabric(FabricState.ENDED, ALONE), after=1) is Action.START_FRESH


def test_a_broken_connection_is_tried_again_then_the_agent_then_the_service_vm() -> None:
    life = Life().ready()
    assert life.look(SILENT) is Action.WAIT
    assert life.look(SILENT, after=19.9) is Action.WAIT
    assert life.look(SILENT, after=0.1) is Action.RESTART_AGENT
    assert life.look(SILENT, after=19.9) is Action.WAIT
    assert life.look(SILENT, after=0.1) is Action.RESTART_VM


def test_an_agent_that_answered_once_is_missed_sooner_than_one_that_boots() -> None:
    life = Life()
    life.look(DEAD)
    assert life.look(fabric(FabricState.INITIALISING), after=10) is Action.WAIT
    assert life.look(SILENT, after=10) is Action.WAIT
    assert life.look(SILENT, after=20) is Action.RESTART_AGENT


def test_a_connection_that_comes_back_in_time_starts_the_count_anew() -> None:
    life = Life().ready()
    life.look(SILENT)
    life.look(SILENT, after=19)
    life.look(READY, after=0.5)
    assert life.look(SILENT, after=1) is Action.WAIT
    assert life.look(SILENT, after=19.9) is Action.WAIT


def test_an_unwell_fabric_manager_goes_up_the_whole_ladder() -> None:
    life = Life().ready()
    unwell = fabric(FabricState.UNREACHABLE)
    assert life.look(unwell) is Action.WAIT
    assert life.look(unwell, after=20) is Action.RESTART_AGENT
    assert life.look(SILENT, after=2) is Action.WAIT
    assert life.look(unwell, after=2) is Action.WAIT
    assert life.look(unwell, after=19.9) is Action.WAIT
    assert life.look(unwell, after=0.1) is Action.START_RESTART
    assert life.look(unwell, after=89) is Action.WAIT
    assert life.look(unwell, after=1) is Action.RESTART_VM


@pytest.mark.parametrize("seen", [SILENT, fabric(FabricState.UNREACHABLE), fabric(FabricState.FAILED)])
@pytest.mark.parametrize("tenants", [(PAIR,), (ALONE, PAIR), None], ids=["pair", "both", "unknown"])
def test_a_live_service_vm_is_never_ended_under_a_tenant_with_two_gpus(
    seen: Seen, tenants: tuple[Tenant, ...] | None
) -> None:
    life = Life().ready()
    seen = dataclasses.replace(seen, tenants=tenants)
    actions = {life.look(seen, after=30) for _ in range(100)}
    assert Action.RESTART_VM not in actions
    assert Action.START_FRESH not in actions
    assert ("is not known" if tenants is None else "would interrupt tenant with 2 GPUs") in life.degraded


@pytest.mark.parametrize("rules", [RULES, dataclasses.replace(RULES, restart=Restart.ALWAYS)], ids=["idle", "always"])
def test_it_is_ended_and_started_where_nobody_loses_by_it_or_the_setting_says_so(rules: Rules) -> None:
    life = Life(rules).ready()
    tenants = (PAIR,) if rules.restart is Restart.ALWAYS else (ALONE,)
    actions = [life.look(Seen(OWN, None, tenants), after=30) for _ in range(5)]
    assert Action.RESTART_VM in actions


def test_a_restart_that_does_not_help_is_repeated_only_up_to_the_limit() -> None:
    life = Life(dataclasses.replace(RULES, restart_limit=2, start_timeout=60)).ready()
    actions = [life.look(SILENT, after=10) for _ in range(100)]
    assert actions.count(Action.RESTART_VM) == 3
    assert "started 3 times" in life.degraded


def test_a_guest_that_never_answers_is_started_again_after_the_start_timeout() -> None:
    life = Life()
    life.look(DEAD)
    assert life.look(SILENT, after=1) is Action.WAIT
    assert life.look(SILENT, after=299.9) is Action.WAIT
    assert life.look(SILENT, after=0.1) is Action.RESTART_VM


@pytest.mark.parametrize("state", [FabricState.INITIALISING, FabricState.AWAITING_ACTIVE_LIST])
def test_a_fabric_manager_that_never_gets_ready_is_given_the_start_timeout(state: FabricState) -> None:
    life = Life().ready()
    assert life.look(fabric(state)) is Action.WAIT
    assert life.look(fabric(state), after=299.9) is Action.WAIT
    assert life.look(fabric(state), after=0.1) is Action.RESTART_VM


def test_a_fresh_start_that_has_no_effect_is_given_time_before_the_service_vm_is_restarted() -> None:
    life = Life()
    life.look(DEAD)
    missing = fabric(FabricState.NOT_STARTED)
    assert life.look(missing, after=1) is Action.START_FRESH
    assert life.look(missing, after=299.9) is Action.WAIT
    assert life.look(missing, after=0.1) is Action.RESTART_VM


def test_a_paused_domain_is_as_silent_as_a_dead_agent() -> None:
    life = Life().ready()
    paused = Seen(dataclasses.replace(OWN, state=DomainState.PAUSED), FabricState.READY)
    assert life.look(paused) is Action.WAIT
    assert life.look(paused, after=20) is Action.RESTART_AGENT
    assert life.look(paused, after=20) is Action.RESTART_VM


def test_a_domain_that_fmctl_did_not_start_is_told_and_left_alone() -> None:
    life = Life()
    stranger = Seen(dataclasses.replace(OWN, fingerprint=""), None)
    assert {life.look(stranger, after=500) for _ in range(5)} == {Action.WAIT}
    assert "fmctl did not start it" in life.degraded


def test_tenants_are_the_other_domains_with_gpus_of_the_board() -> None:
    drive = Bdf(0, 1, 0, 0)
    domains = [
        OWN,
        Domain("a", "pair", DomainState.RUNNING, (GPUS[1], drive, GPUS[0])),
        Domain("b", "web", DomainState.RUNNING, (drive,)),
        Domain("c", "single", DomainState.PAUSED, (GPUS[2],)),
    ]
    found = servicevm.tenants(domains, GPUS)
    assert found == (Tenant("pair", GPUS[:2]), Tenant("single", (GPUS[2],)))
    assert servicevm.interrupted(found) == (found[0],)
    assert servicevm.interrupted(None) is None


@pytest.mark.parametrize(
    ("seen", "failure", "state"),
    [
        (DEAD, "", ServiceVmState.ABSENT),
        (DEAD, "refused", ServiceVmState.FAILED),
        (SILENT, "", ServiceVmState.BOOTING),
        (SILENT, "overdue", ServiceVmState.FAILED),
        (fabric(FabricState.NOT_STARTED), "", ServiceVmState.AGENT_UP),
        (fabric(FabricState.ENDED), "", ServiceVmState.AGENT_UP),
        (fabric(FabricState.UNREACHABLE), "", ServiceVmState.AGENT_UP),
        (fabric(FabricState.INITIALISING), "", ServiceVmState.INITIALISING),
        (fabric(FabricState.AWAITING_ACTIVE_LIST), "", ServiceVmState.AWAITING_ACTIVE_LIST),
        (READY, "an old one", ServiceVmState.READY),
        (fabric(FabricState.FAILED), "", ServiceVmState.FAILED),
        (Seen(dataclasses.replace(OWN, state=DomainState.CRASHED), None), "", ServiceVmState.FAILED),
    ],
)
def test_each_state_is_shown_by_its_name(seen: Seen, failure: str, state: ServiceVmState) -> None:
    assert servicevm.state(seen, failure) is state
