# SPDX-License-Identifier: Apache-2.0
"""The Service VM's keeper over a pretended host: libvirt, PCI tree, drivers, agent and Fabric Manager in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import pytest

from fmctl import platforms
from fmctl.control import discovery
from fmctl.control.agent import LocalAgent
from fmctl.control.domain import World
from fmctl.control.operator import Operator
from fmctl.control.servicevm import ServiceVm
from fmctl.control.vfio import Vfio
from fmctl.core.answers import AgentStatus, ServiceVmState, StartMode
from fmctl.core.domain import Domain
from fmctl.core.domain_xml import Rendered
from fmctl.core.errors import AgentUnreachable, FmctlError, HostCordoned, VmRunning
from fmctl.core.inventory import Inventory, Role
from fmctl.core.loglines import LogPosition, LogStream
from fmctl.core.partition import PartitionList
from fmctl.core.pci import Bdf
from fmctl.core.servicevm import Rules
from fmctl.core.settings import Restart, ServiceVmSettings
from fmctl.core.vfio import PARKED, Holder, HostBusy
from fmctl.sim.fmservice import MemoryProcess
from fmctl.sim.host import SimulatedHost
from fmctl.sim.nvfm import MemoryNvfm
from tests.support import eventually

SETTINGS = ServiceVmSettings()
UUID = str(SETTINGS.uuid)
PAIR = (3, 4)
"""Places of two GPUs among the board's."""


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Guest:
    """The agent in the Service VM, with the Fabric Manager that it starts: both live as long as the domain."""

    def __init__(self, clock: Clock) -> None:
        self.nvfm = MemoryNvfm(None, clock=clock)
        self.process = MemoryProcess(self.nvfm, platforms.load("hgx-h100-8"), clock)
        self.agent = LocalAgent(
            self.nvfm, self.process, self._restarted, library="", call_timeout=30, clock=clock, pause=lambda _: None
        )
        self.runs = False
        self.answers = True
        self.boots_mute = False
        self.restarts = 0
        self.heals = True
        self.started: list[StartMode] = []

    def boot(self) -> None:
        self.process.reboot()
        self.runs, self.answers = True, not self.boots_mute

    def end(self) -> None:
        self.process.reboot()
        self.runs = False

    def status(self, *, timeout: float) -> AgentStatus:
        return self._reached().status(timeout=timeout)

    def start_fabric_manager(self, mode: StartMode, active: Sequence[int], *, timeout: float) -> None:
        reached = self._reached()
        self.started.append(mode)
        reached.start_fabric_manager(mode, active, timeout=timeout)

    def replace(self, archive: bytes, digest: str, *, timeout: float) -> None:
        self._reached().replace(archive, digest, timeout=timeout)

    def logs(self, after: LogPosition) -> LogStream:
        return self._reached().logs(after)

    def restart(self, *, timeout: float) -> None:
        self.restarts += 1
        self.answers = self.answers or self.heals
        self._reached().restart(timeout=timeout)

    def list_partitions(self, *, timeout: float) -> PartitionList:
        return self._reached().list_partitions(timeout=timeout)

    def activate(self, partition_id: int, *, timeout: float) -> None:
        self._reached().activate(partition_id, timeout=timeout)

    def deactivate(self, partition_id: int, *, timeout: float) -> None:
        self._reached().deactivate(partition_id, timeout=timeout)

    def set_activated(self, partition_ids: Sequence[int], *, timeout: float) -> None:
        self._reached().set_activated(partition_ids, timeout=timeout)

    def _reached(self) -> LocalAgent:
        if not self.runs or not self.answers:
            raise AgentUnreachable("the agent does not answer")
        return self.agent

    def _restarted(self) -> None:
        return None


class Host(SimulatedHost):
    """A whole pretended host with its keeper, whose steps the test takes one by one."""

    def __init__(self, rules: Rules | None = None, interval: float = 5.0) -> None:
        self.clock = Clock()
        self.board = platforms.load("hgx-h100-8")
        self.guest = Guest(self.clock)
        super().__init__(self.board, self._guest)
        self.unsafe = ""
        self.busy = False
        self.changes = 0
        self.template = "1"
        self.active: tuple[int, ...] = ()
        world = World(
            self.hypervisor,
            self.guest,
            Vfio(self.bus, self.devices, lock=self._lock),
            self.inventory,
            self._check,
            self._render,
            lambda: self.active,
        )
        self.keeper = ServiceVm(world, SETTINGS, rules or Rules(), interval=interval, clock=self.clock)
        self.operator = Operator(self.keeper)

    @contextlib.contextmanager
    def _guest(self, domain: Domain) -> Iterator[None]:
        if domain.uuid != UUID:
            yield
            return
        self.guest.boot()
        try:
            yield
        finally:
            self.guest.end()

    def inventory(self) -> Inventory:
        return discovery.discover(self.bus, [self.board])

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        self.changes += 1
        if self.busy:
            raise HostBusy("another fmctl process changes this host's devices")
        yield

    def _check(self, inventory: Inventory) -> None:
        if self.unsafe:
            raise HostCordoned("passthrough is not safe on this host", why=self.unsafe, fix="mend it")

    def _render(self, inventory: Inventory) -> Rendered:
        devices = "".join(_hostdev(d.function.bdf) for d in inventory.devices if d.role is not Role.GPU)
        mark = f"<fmctl:service-vm xmlns:fmctl='urn:fmctl:domain:1' fingerprint='{self.template}'/>"
        xml = (
            f"<domain><name>{SETTINGS.name}</name><uuid>{UUID}</uuid><metadata>{mark}</metadata><devices>{devices}"
            f"<vsock><cid auto='no' address='{SETTINGS.cid}'/></vsock></devices></domain>"
        )
        return Rendered(xml, self.template)

    def step(self, after: float = 0.0) -> ServiceVmState:
        """One step, and what the status says then."""
        self.clock.now += after
        self.keeper.step()
        return self.keeper.status().state

    def ready(self) -> Host:
        """Take steps until it is ready; a guest boots in a thread of its own."""
        eventually(lambda: self.step(0.1) is ServiceVmState.READY)
        return self

    def tenant(self, name: str = "tenant", places: Sequence[int] = PAIR) -> None:
        """Start a VM with the GPUs at these places."""
        bdfs = [self.gpus[place] for place in places]
        Vfio(self.bus, self.devices).bind(self.inventory(), bdfs)
        self.hypervisor.add_tenant(name, bdfs)

    @property
    def gpus(self) -> list[Bdf]:
        return [d.function.bdf for d in self.inventory().devices if d.role is Role.GPU]

    @property
    def switches(self) -> list[Bdf]:
        return [d.function.bdf for d in self.inventory().devices if d.role is not Role.GPU]

    def drivers(self, bdfs: Sequence[Bdf]) -> set[str]:
        return {function.driver for function in self.bus.functions() if function.bdf in bdfs}

    def domain(self) -> Domain | None:
        return next((d for d in self.hypervisor.domains(timeout=1) if d.uuid == UUID), None)

    def resets(self) -> int:
        """How often the board's switches have been reset."""
        return sum(self.devices.resets[bdf] for bdf in self.switches)


def _hostdev(bdf: Bdf) -> str:
    where = f"domain='{bdf.domain:#x}' bus='{bdf.bus:#x}' slot='{bdf.device:#x}' function='{bdf.function:#x}'"
    return f"<hostdev mode='subsystem' type='pci' managed='no'><source><address {where}/></source></hostdev>"


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
