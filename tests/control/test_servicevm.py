# SPDX-License-Identifier: Apache-2.0
"""The Service VM's keeper, step by step: what it does after each death, and what it never does under a tenant."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from fmctl.control import domain
from fmctl.control.servicevm import ServiceVm
from fmctl.control.vfio import Vfio
from fmctl.core.answers import ServiceVmState, StartMode
from fmctl.core.errors import AgentUnreachable, FmctlError, HypervisorUnreachable, VmRunning
from fmctl.core.inventory import Role
from fmctl.core.servicevm import Rules
from fmctl.core.settings import Restart
from fmctl.core.vfio import PARKED, Holder
from tests.control.keeping import PAIR, SETTINGS, UUID, Host
from tests.support import eventually


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.hypervisor.reconnect()
    host.hypervisor.power_off()
    host.hypervisor.close()


def test_it_comes_up_by_itself_with_the_switches_and_no_gpu(host: Host) -> None:
    assert host.keeper.status().state is ServiceVmState.ABSENT
    host.ready()
    domain = host.domain()
    assert domain is not None
    assert sorted(domain.hostdevs) == sorted(host.switches)
    assert host.drivers(host.switches) == {"vfio-pci"}
    assert host.drivers(host.gpus) == {""}
    exposures = [host.devices.exposure(bdf, timeout=1) for bdf in host.gpus]
    assert {exposure.override for exposure in exposures if exposure} == {PARKED}
    assert host.guest.started == [StartMode.FRESH]
    assert host.keeper.status().message == ""


def test_its_states_are_told_on_the_way(host: Host) -> None:
    host.guest.boots_mute = True
    host.step()
    assert host.step(1) is ServiceVmState.BOOTING
    eventually(lambda: host.guest.runs)
    host.guest.answers = True
    assert host.step(1) is ServiceVmState.AGENT_UP
    assert host.step(1) is ServiceVmState.READY
    host.guest.process.die()
    assert host.step(1) is ServiceVmState.AGENT_UP


def test_after_kill_9_it_is_started_at_once_and_fabric_manager_fresh(host: Host) -> None:
    host.ready()
    host.tenant()
    host.hypervisor.kill(UUID)
    host.ready()
    assert host.guest.started == [StartMode.FRESH, StartMode.FRESH]
    assert host.keeper.status().degraded == ""


def test_a_fabric_manager_that_died_takes_up_the_active_partitions_and_no_switch_is_reset(host: Host) -> None:
    host.ready()
    host.tenant()
    host.guest.activate(3, timeout=1)
    host.active = (3,)
    before = host.resets()
    host.guest.process.die()
    host.ready()
    assert host.guest.started[1:] == [StartMode.RESTART]
    assert [p.id for p in host.guest.list_partitions(timeout=1).partitions if p.active] == [3]
    assert host.resets() == before


def test_a_silent_agent_under_a_tenant_resets_no_switch_and_the_host_says_why_it_takes_no_work(host: Host) -> None:
    host.ready()
    host.tenant()
    before = host.resets()
    host.guest.heals = host.guest.answers = False
    for _ in range(100):
        host.step(10)
    assert host.resets() == before
    assert host.guest.restarts > 0
    assert "would interrupt tenant with 2 GPUs" in host.keeper.status().degraded
    host.hypervisor.kill(host.hypervisor.add_tenant("other").uuid)
    host.guest.answers = True
    host.ready()
    assert host.keeper.status().degraded == ""


def test_a_silent_agent_with_nobody_to_lose_by_it_has_the_service_vm_restarted(host: Host) -> None:
    host.ready()
    host.tenant(places=(3,))
    host.guest.heals = host.guest.answers = False
    for _ in range(6):
        host.step(10)
    host.ready()
    assert host.guest.started == [StartMode.FRESH, StartMode.FRESH]


def test_a_qemu_started_by_hand_counts_as_a_tenant(host: Host) -> None:
    host.ready()
    bdfs = [host.gpus[place] for place in PAIR]
    Vfio(host.bus, host.devices).bind(host.inventory(), bdfs)
    for bdf in bdfs:
        group = next(f.iommu_group for f in host.bus.functions() if f.bdf == bdf)
        assert group is not None
        host.devices.hold(group, Holder(4242, "qemu-system-x86"))
    with pytest.raises(VmRunning) as refusal:
        host.operator.stop(interrupt_tenants=False, timeout=5)
    assert "qemu-system-x86 (process 4242) with 2 GPUs" in refusal.value.why


@pytest.mark.parametrize("verb", ["stop", "destroy"])
def test_ending_it_names_whom_that_interrupts_and_asks_for_leave(host: Host, verb: str) -> None:
    host.ready()
    host.tenant("a")
    host.tenant("b", (5,))
    end: Callable[..., object] = getattr(host.operator, verb)
    before = host.resets()
    with pytest.raises(VmRunning) as refusal:
        end(interrupt_tenants=False, timeout=5)
    assert "a with 2 GPUs" in refusal.value.why
    assert "b with" not in refusal.value.why
    assert "process" not in refusal.value.why
    assert "--interrupt-tenants" in refusal.value.fix
    assert (host.resets(), host.step(1)) == (before, ServiceVmState.READY)
    end(interrupt_tenants=True, timeout=5)
    assert host.domain() is None
    assert host.step(1) is ServiceVmState.ABSENT
    assert host.drivers(host.switches) == {""}


def test_once_stopped_it_stays_so_until_it_is_started(host: Host) -> None:
    host.ready()
    host.operator.stop(interrupt_tenants=False, timeout=5)
    for _ in range(20):
        assert host.step(60) is ServiceVmState.ABSENT
    assert host.keeper.status().message == "it was stopped on request"
    host.operator.start(interrupt_tenants=False, timeout=5)
    host.ready()
    before = host.domain()
    host.operator.start(interrupt_tenants=False, timeout=5)
    assert host.domain() == before


def test_what_it_had_is_parked_again_while_it_is_down(host: Host) -> None:
    host.ready()
    host.operator.stop(interrupt_tenants=False, timeout=5)
    host.step(1)
    host.bus.change(host.switches[0], driver="vfio-pci")
    host.step(1)
    assert host.drivers(host.switches) == {""}


def test_starting_it_under_a_tenant_asks_for_leave_too(host: Host) -> None:
    host.ready()
    host.operator.stop(interrupt_tenants=False, timeout=5)
    host.tenant()
    with pytest.raises(VmRunning):
        host.operator.start(interrupt_tenants=False, timeout=5)
    assert host.domain() is None
    host.operator.start(interrupt_tenants=True, timeout=5)
    host.ready()


def test_a_guest_that_does_not_shut_down_in_time_is_told_of(host: Host) -> None:
    host.ready()
    host.hypervisor.ignore_shutdown = True
    with pytest.raises(FmctlError) as overdue:
        host.operator.stop(interrupt_tenants=False, timeout=0.05)
    assert "service-vm destroy" in overdue.value.fix
    host.operator.destroy(interrupt_tenants=False, timeout=5)
    assert host.domain() is None


def test_libvirt_may_be_away_for_a_while_as_the_guest_shuts_down(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domain, "ASK_AGAIN", 1.0)
    host.ready()
    host.hypervisor.ignore_shutdown = True

    def be_away() -> None:
        host.hypervisor.disconnect()
        host.hypervisor.ignore_shutdown = False

    timers = threading.Timer(0.1, be_away), threading.Timer(0.6, host.hypervisor.reconnect)
    for timer in timers:
        timer.start()
    host.operator.stop(interrupt_tenants=False, timeout=10)
    assert host.domain() is None


def test_libvirt_that_stays_away_is_told_of(host: Host) -> None:
    host.ready()
    host.hypervisor.ignore_shutdown = True
    away = threading.Timer(0.1, host.hypervisor.disconnect)
    away.start()
    with pytest.raises(HypervisorUnreachable):
        host.operator.stop(interrupt_tenants=False, timeout=0.5)


def test_a_guest_that_does_not_see_its_power_button_yet_has_it_pressed_again(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(domain, "ASK_AGAIN", 0.05)
    host.ready()
    host.hypervisor.ignore_shutdown = True
    sees = threading.Timer(0.3, lambda: setattr(host.hypervisor, "ignore_shutdown", False))
    sees.start()
    host.operator.stop(interrupt_tenants=False, timeout=10)
    sees.join()
    assert host.domain() is None


def test_nothing_is_started_where_a_check_fails_and_the_status_says_why(host: Host) -> None:
    host.unsafe = "ACS is off on 0000:00:01.0"
    assert host.step() is ServiceVmState.FAILED
    assert "ACS is off" in host.keeper.status().message
    assert host.domain() is None
    assert "vfio-pci" not in host.drivers(host.switches)
    host.unsafe = ""
    host.clock.now += 10
    host.ready()


@pytest.mark.parametrize("fault", ["missing", "dead"])
def test_nothing_is_started_with_a_switch_that_is_missing_or_dead(host: Host, fault: str) -> None:
    switch = next(d.function.bdf for d in host.inventory().devices if d.role is Role.NVSWITCH)
    (host.bus.remove if fault == "missing" else host.bus.kill)(switch)
    assert host.step() is ServiceVmState.FAILED
    assert ("3 of 4 nvswitch" if fault == "missing" else f"{switch} does not answer") in host.keeper.status().message
    assert host.domain() is None


def test_a_dead_gpu_keeps_nothing_from_starting(host: Host) -> None:
    host.bus.kill(host.gpus[0])
    host.ready()


def test_a_host_that_becomes_unsafe_says_so_and_leaves_what_runs_alone(host: Host) -> None:
    host.ready()
    before = host.domain()
    host.unsafe = "ACS is off on 0000:00:01.0"
    assert host.step(1) is ServiceVmState.READY
    assert "ACS is off" in host.keeper.status().degraded
    assert host.domain() == before
    host.unsafe = ""
    host.step(1)
    assert host.keeper.status().degraded == ""


def test_libvirt_s_refusal_is_told_and_tried_again_ever_later(host: Host) -> None:
    host.hypervisor.refuse("internal error: no space left")
    assert host.step() is ServiceVmState.FAILED
    assert "no space left" in host.keeper.status().message
    assert host.drivers(host.switches) == {"vfio-pci"}
    host.step(1)
    assert host.drivers(host.switches) == {""}
    changes = host.changes
    for _ in range(10):
        host.step(0.3)
    assert host.changes == changes
    host.hypervisor.refuse("")
    host.clock.now += 5
    host.ready()


def test_a_start_that_changed_nothing_is_tried_again_at_once_and_counts_for_none(host: Host) -> None:
    host.busy = True
    for _ in range(50):
        assert host.step(0.1) is ServiceVmState.FAILED
    assert "another fmctl process" in host.keeper.status().message
    host.busy = False
    host.step(0.1)
    assert host.domain() is not None


def test_while_libvirt_is_away_nothing_is_done_and_the_status_says_so(host: Host) -> None:
    host.ready()
    host.hypervisor.disconnect()
    host.guest.process.die()
    host.step(500)
    assert "libvirt does not answer" in host.keeper.status().message
    assert host.guest.started == [StartMode.FRESH]
    host.hypervisor.reconnect()
    host.ready()


def test_another_template_shows_as_a_change_that_the_next_start_takes(host: Host) -> None:
    host.ready()
    assert not host.keeper.status().changed
    host.template = "2"
    host.step(1)
    assert host.keeper.status().changed
    host.hypervisor.kill(UUID)
    host.ready()
    assert not host.keeper.status().changed


def test_a_daemon_that_comes_back_takes_the_running_one_as_it_is(host: Host) -> None:
    host.ready()
    before = host.resets()
    again = ServiceVm(host.keeper._world, SETTINGS, Rules(), clock=host.clock)
    again.step()
    assert again.status().state is ServiceVmState.READY
    assert host.resets() == before
    assert host.guest.started == [StartMode.FRESH]


def test_a_switch_that_another_vm_holds_is_left_to_it(host: Host) -> None:
    Vfio(host.bus, host.devices).bind(host.inventory(), host.switches)
    host.hypervisor.add_tenant("thief", host.switches[:1])
    assert host.step() is ServiceVmState.FAILED
    assert "in use" in host.keeper.status().message
    assert host.domain() is None


def test_our_own_domain_is_known_by_its_context_id(host: Host) -> None:
    with pytest.raises(AgentUnreachable):
        host.keeper.own.verify_cid()
    host.ready()
    host.keeper.own.verify_cid()
    host.hypervisor.kill(UUID)
    other = f"<domain><name>x</name><uuid>{UUID}</uuid><devices><vsock><cid address='77'/></vsock></devices></domain>"
    host.hypervisor.create(other, timeout=1)
    with pytest.raises(AgentUnreachable) as wrong:
        host.keeper.own.verify_cid()
    assert "77" in wrong.value.why


def test_it_works_by_itself_and_hears_of_a_death_at_once() -> None:
    host = Host(interval=60)
    with host.keeper:
        eventually(lambda: host.keeper.status().state is ServiceVmState.READY)
        before = host.domain()
        host.clock.now += 100
        host.hypervisor.kill(UUID)
        eventually(lambda: len(host.guest.started) == 2 and host.keeper.status().state is ServiceVmState.READY)
        assert before is not None
    host.hypervisor.power_off()
    host.hypervisor.close()


def test_always_restarts_even_under_a_tenant_where_the_setting_says_so() -> None:
    host = Host(Rules(restart=Restart.ALWAYS)).ready()
    host.tenant()
    host.guest.heals = host.guest.answers = False
    for _ in range(6):
        host.step(10)
    host.ready()
    assert host.guest.started == [StartMode.FRESH, StartMode.FRESH]
    host.hypervisor.power_off()
