# SPDX-License-Identifier: Apache-2.0
"""What both sides of the port `Hypervisor` do: pretended in memory, and libvirt with real QEMU processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Protocol

import pytest

from fmctl.core.domain import Domain, DomainRefused, DomainState, End
from fmctl.core.errors import HypervisorUnreachable, OutcomeUnknown
from fmctl.core.ports import Hypervisor
from fmctl.host.hypervisor import Libvirt
from fmctl.sim.hypervisor import SimulatedHypervisor
from tests.libvirt_support import UUID, UUID_2, PrivateLibvirtd, document, private_libvirtd
from tests.support import eventually

T = 20.0
SERVICE = Domain(UUID, "service-vm", DomainState.RUNNING, fingerprint="print of service-vm")


def plain(*domains: Domain) -> tuple[Domain, ...]:
    """The domains, whichever life of theirs it is, and whether or not their guests booted again in it."""
    return tuple(replace(domain, instance=0, rebooted=None) for domain in domains)


class Side(Protocol):
    """A hypervisor, and what happens to it and its domains."""

    @property
    def hypervisor(self) -> Hypervisor: ...
    def kill(self, uuid: str) -> None: ...
    def reboot(self, uuid: str) -> None: ...
    def pause(self, uuid: str) -> None: ...
    def disconnect(self) -> None: ...
    def hang(self) -> None: ...
    def reconnect(self) -> None: ...
    def power_button(self) -> str: ...


class Memory(SimulatedHypervisor):
    """The pretended side has all of it."""

    @property
    def hypervisor(self) -> Hypervisor:
        return self

    def power_button(self) -> str:
        return ""


class Real:
    """Libvirt's side, over a libvirtd of the tests' own."""

    def __init__(self, daemon: PrivateLibvirtd) -> None:
        self._daemon = daemon
        self.hypervisor = Libvirt(daemon.uri)
        self.disconnect = daemon.kill
        self.hang = daemon.stop
        self.reconnect = daemon.go_on
        self.power_button = daemon.power_button

    def kill(self, uuid: str) -> None:
        os.kill(self._daemon.qemu(uuid), signal.SIGKILL)

    def reboot(self, uuid: str) -> None:
        self._daemon.domain(uuid).reset()

    def pause(self, uuid: str) -> None:
        self._daemon.domain(uuid).suspend()


@pytest.fixture(scope="module")
def daemon() -> Iterator[PrivateLibvirtd]:
    with private_libvirtd() as daemon:
        yield daemon


@pytest.fixture(params=["memory", "libvirt"])
def side(request: pytest.FixtureRequest) -> Iterator[Side]:
    if request.param == "memory":
        memory = Memory()
        yield memory
        memory.power_off()
        memory.close()
        return
    daemon = request.getfixturevalue("daemon")
    side = Real(daemon)
    yield side
    daemon.clear()
    side.hypervisor.close()


@pytest.fixture
def hypervisor(side: Side) -> Hypervisor:
    return side.hypervisor


class News:
    """Counts what a watcher is told, and by which threads."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self.count = 0
        self.threads: set[threading.Thread] = set()
        hypervisor.watch(self._changed)
        eventually(lambda: self.count)

    def _changed(self) -> None:
        self.threads.add(threading.current_thread())
        self.count += 1

    def come(self, before: int) -> None:
        eventually(lambda: self.count > before)


def test_there_is_no_domain_at_first(hypervisor: Hypervisor) -> None:
    assert hypervisor.domains(timeout=T) == ()


def test_a_domain_that_was_started_is_shown_with_the_others_by_name(hypervisor: Hypervisor) -> None:
    assert plain(hypervisor.create(document(), timeout=T)) == (SERVICE,)
    other = hypervisor.create(document("another", UUID_2), timeout=T)
    assert (other.name, other.fingerprint) == ("another", "print of another")
    assert plain(*hypervisor.domains(timeout=T)) == plain(other, SERVICE)


def test_a_second_domain_of_a_name_or_uuid_is_refused(hypervisor: Hypervisor) -> None:
    hypervisor.create(document(), timeout=T)
    for second in (document(uuid=UUID_2), document("another")):
        with pytest.raises(DomainRefused) as refused:
            hypervisor.create(second, timeout=T)
        assert UUID in refused.value.why
        assert "virsh list --all" in refused.value.fix
    assert plain(*hypervisor.domains(timeout=T)) == (SERVICE,)


@pytest.mark.parametrize("xml", ["<domain", "<network/>", "<domain type='qemu'/>", ""])
def test_what_is_no_domain_is_refused(hypervisor: Hypervisor, xml: str) -> None:
    with pytest.raises(DomainRefused) as refused:
        hypervisor.create(xml, timeout=T)
    assert refused.value.what == "the domain is not started"
    assert "template" in refused.value.fix
    assert hypervisor.domains(timeout=T) == ()


def test_a_destroyed_domain_is_gone_and_may_be_destroyed_again(hypervisor: Hypervisor) -> None:
    hypervisor.create(document(), timeout=T)
    hypervisor.create(document("another", UUID_2), timeout=T)
    for _ in range(2):
        hypervisor.destroy(UUID, timeout=T)
        assert [domain.uuid for domain in hypervisor.domains(timeout=T)] == [UUID_2]
    assert plain(hypervisor.create(document(), timeout=T)) == (SERVICE,)


def test_each_start_of_a_domain_is_another_instance(side: Side, hypervisor: Hypervisor) -> None:
    first = hypervisor.create(document(), timeout=T)
    side.reboot(UUID)
    assert hypervisor.domains(timeout=T)[0].instance == first.instance > 0
    hypervisor.destroy(UUID, timeout=T)
    assert hypervisor.create(document(), timeout=T).instance not in (first.instance, 0)


def test_a_domain_shuts_down_when_it_is_asked_to(side: Side, hypervisor: Hypervisor) -> None:
    hypervisor.create(document(devices=side.power_button()), timeout=T)

    def gone() -> bool:
        hypervisor.shutdown(UUID, timeout=T)
        return hypervisor.domains(timeout=T) == ()

    eventually(gone)
    hypervisor.shutdown(UUID, timeout=T)


def test_a_paused_domain_is_shown_so(side: Side, hypervisor: Hypervisor) -> None:
    hypervisor.create(document(), timeout=T)
    side.pause(UUID)
    assert [domain.state for domain in hypervisor.domains(timeout=T)] == [DomainState.PAUSED]


def test_a_watcher_hears_of_start_reboot_pause_and_end_in_a_thread_of_its_own(
    side: Side, hypervisor: Hypervisor
) -> None:
    news = News(hypervisor)
    for happen in (
        lambda: hypervisor.create(document(), timeout=T),
        lambda: side.reboot(UUID),
        lambda: side.pause(UUID),
        lambda: side.kill(UUID),
    ):
        eventually(lambda: quiet(news))
        before = news.count
        happen()
        news.come(before)
    eventually(lambda: hypervisor.domains(timeout=T) == ())
    assert len(news.threads) == 1
    assert threading.current_thread() not in news.threads


def test_each_reboot_is_told_by_its_time_while_somebody_watches(side: Side, hypervisor: Hypervisor) -> None:
    def rebooted() -> float | None:
        return hypervisor.domains(timeout=T)[0].rebooted

    def settled() -> float | None:
        """That time once it stays, since QEMU may tell one reset by two events."""
        before = rebooted()
        time.sleep(0.3)
        return before if rebooted() == before else None

    began = time.time()
    hypervisor.create(document(), timeout=T)
    hypervisor.create(document("other", UUID_2), timeout=T)
    News(hypervisor)
    assert [domain.rebooted for domain in hypervisor.domains(timeout=T)] == [None, None]
    times = [0.0]
    for _ in range(2):
        side.reboot(UUID_2)
        times.append(eventually(lambda: (at := settled()) != times[-1] and at) or 0.0)
    assert began <= times[1] < times[2] <= time.time()
    assert hypervisor.domains(timeout=T)[1].rebooted is None
    hypervisor.destroy(UUID_2, timeout=T)
    assert hypervisor.create(document("other", UUID_2), timeout=T).rebooted is None
    assert rebooted() is None


def test_a_reboot_that_nobody_watched_for_is_not_told(side: Side, hypervisor: Hypervisor) -> None:
    hypervisor.create(document(), timeout=T)
    side.reboot(UUID)
    time.sleep(0.3)
    News(hypervisor)
    assert hypervisor.domains(timeout=T)[0].rebooted is None


def quiet(news: News) -> bool:
    """Whether no more is told."""
    before = news.count
    time.sleep(0.2)
    return news.count == before


def test_every_watcher_hears_of_everything_even_if_another_fails(hypervisor: Hypervisor) -> None:
    def fail() -> None:
        raise RuntimeError("a defect")

    hypervisor.watch(fail)
    first, second = News(hypervisor), News(hypervisor)
    before = first.count, second.count
    hypervisor.create(document(), timeout=T)
    first.come(before[0])
    second.come(before[1])
    assert len(first.threads | second.threads) == 1


def test_domains_go_on_while_libvirt_is_away_time_and_again(side: Side, hypervisor: Hypervisor) -> None:
    news = News(hypervisor)
    hypervisor.create(document(), timeout=T)
    for _ in range(3):
        eventually(lambda: quiet(news))
        before = news.count
        side.disconnect()
        news.come(before)
        with pytest.raises(HypervisorUnreachable):
            hypervisor.domains(timeout=T)
        with pytest.raises(HypervisorUnreachable):
            hypervisor.create(document("another", UUID_2), timeout=T)
        before = news.count
        side.reconnect()
        assert plain(*hypervisor.domains(timeout=T)) == (SERVICE,)
        news.come(before)
    eventually(lambda: quiet(news))
    before = news.count
    side.kill(UUID)
    news.come(before)
    eventually(lambda: hypervisor.domains(timeout=T) == ())


def test_a_call_that_libvirt_does_not_answer_ends_at_its_deadline(side: Side, hypervisor: Hypervisor) -> None:
    hypervisor.create(document(), timeout=T)
    side.hang()
    before = time.monotonic()
    with pytest.raises(HypervisorUnreachable):
        hypervisor.domains(timeout=0.3)
    assert 0.3 <= time.monotonic() - before < 2.0
    side.reconnect()
    assert plain(*hypervisor.domains(timeout=T)) == (SERVICE,)


def test_a_change_that_libvirt_does_not_answer_ends_at_its_deadline_and_may_be_made_or_not(
    side: Side, hypervisor: Hypervisor
) -> None:
    hypervisor.create(document(), timeout=T)
    for change in (
        lambda: hypervisor.create(document("another", UUID_2), timeout=0.3),
        lambda: hypervisor.destroy(UUID, timeout=0.3),
        lambda: hypervisor.shutdown(UUID, timeout=0.3),
    ):
        hypervisor.domains(timeout=T)
        side.hang()
        with pytest.raises((HypervisorUnreachable, OutcomeUnknown)):
            change()
        side.reconnect()


def test_calls_are_refused_after_close(hypervisor: Hypervisor) -> None:
    hypervisor.create(document(), timeout=T)
    hypervisor.close()
    with pytest.raises(HypervisorUnreachable):
        hypervisor.domains(timeout=T)


class Ends:
    """What is heard of domains' ends."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self.heard: list[End] = []
        self._hypervisor = hypervisor
        hypervisor.watch(lambda: None, self.heard.append)
        eventually(lambda: hypervisor.hearing)

    def of(self, end: Callable[[Domain], object], devices: str = "") -> list[bool]:
        """Whether each end that is heard after `end` was done to a domain was its guest's shutdown."""
        domain = self._hypervisor.create(document(devices=devices), timeout=T)
        end(domain)
        eventually(lambda: self._hypervisor.domains(timeout=T) == () and self.heard)
        heard, self.heard[:] = tuple(self.heard), []
        assert all(each.uuid == UUID and each.instance in (0, domain.instance) for each in heard)
        return [each.shut_down for each in heard]


def test_the_end_of_a_domain_is_told_with_whether_its_guest_shut_down(side: Side, hypervisor: Hypervisor) -> None:
    ends = Ends(hypervisor)

    def press(domain: Domain) -> None:
        def ended() -> bool:
            hypervisor.shutdown(UUID, timeout=T)
            return bool(ends.heard)

        eventually(ended)

    assert ends.of(press, side.power_button()) == [True]
    assert ends.of(lambda domain: hypervisor.destroy(UUID, timeout=T)) == [False]
    assert ends.of(lambda domain: side.kill(UUID)) == [False]


def test_where_an_end_may_not_be_heard_the_hearing_is_another_one(side: Side, hypervisor: Hypervisor) -> None:
    assert hypervisor.hearing == 0
    Ends(hypervisor)
    before = hypervisor.hearing
    assert before > 0
    side.disconnect()
    eventually(lambda: hypervisor.hearing == 0)
    side.reconnect()
    assert eventually(lambda: hypervisor.hearing) != before
    hypervisor.close()
    assert hypervisor.hearing == 0
