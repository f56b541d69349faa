# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest

from fmctl.core.domain import Domain, DomainRefused, DomainState
from fmctl.core.errors import FmctlError, HypervisorUnreachable, OutcomeUnknown
from fmctl.core.pci import Bdf
from fmctl.sim.hypervisor import SimulatedHypervisor
from fmctl.sim.qemu import Hardware
from tests.support import eventually

T = 10.0
UUID = "6f0f3b54-8d0c-4d9e-9c1b-0f6d63746c01"
SWITCH, OTHER_SWITCH = Bdf(0, 4, 0, 0), Bdf(0, 5, 0, 0)


def document(name: str = "vm", uuid: str = "", bdfs: Sequence[Bdf] = (SWITCH,), cid: int = 1000) -> str:
    addresses = (f"bus='{bdf.bus}' slot='{bdf.device}' function='{bdf.function}'" for bdf in bdfs)
    hostdevs = "".join(f"<hostdev><source><address {address}/></source></hostdev>" for address in addresses)
    vsock = f"<vsock><cid auto='no' address='{cid}'/></vsock>" if cid else ""
    return f"<domain><name>{name}</name><uuid>{uuid}</uuid><devices>{hostdevs}{vsock}</devices></domain>"


class Box:
    """Hardware and a guest that note what happens to them, in order."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.refusal = ""
        self.gate = {"guest": threading.Event(), "hardware": threading.Event()}
        """Who is slow to end waits for its own."""
        for event in self.gate.values():
            event.set()
        self.hypervisor = SimulatedHypervisor(self.guest, Hardware(self.opened, self.closed))

    def opened(self, domain: Domain) -> None:
        if self.refusal:
            raise FmctlError(self.refusal)
        self.events.append(f"opened {' '.join(map(str, domain.hostdevs))}")

    def closed(self, domain: Domain) -> None:
        assert self.gate["hardware"].wait(T)
        self.events.append(f"closed {' '.join(map(str, domain.hostdevs))}")

    @contextlib.contextmanager
    def guest(self, domain: Domain) -> Iterator[None]:
        self.events.append(f"{domain.name} boots")
        yield
        assert self.gate["guest"].wait(T)
        self.events.append(f"{domain.name} ends")

    def come(self, *events: str) -> None:
        eventually(lambda: len(self.events) >= len(events))
        assert self.events == list(events)


@pytest.fixture
def box() -> Iterator[Box]:
    box = Box()
    yield box
    box.hypervisor.power_off()
    box.hypervisor.close()


def only(hypervisor: SimulatedHypervisor) -> Domain:
    (domain,) = hypervisor.domains(timeout=T)
    return domain


STARTED = ("opened 0000:04:00.0 0000:05:00.0", "vm boots")
ENDED = ("vm ends", "closed 0000:04:00.0 0000:05:00.0")


def end_by(how: str, hypervisor: SimulatedHypervisor, uuid: str) -> None:
    if how == "power off":
        hypervisor.power_off()
    elif how == "kill":
        hypervisor.kill(uuid)
    elif how == "shutdown":
        hypervisor.shutdown(uuid, timeout=T)
    else:
        hypervisor.destroy(uuid, timeout=T)


@pytest.mark.parametrize("how", ["destroy", "shutdown", "kill", "power off"])
def test_a_domain_has_its_hostdevs_open_and_its_guest_in_it_until_it_ends(box: Box, how: str) -> None:
    domain = box.hypervisor.create(document(bdfs=(OTHER_SWITCH, SWITCH)), timeout=T)
    box.come(*STARTED)
    assert only(box.hypervisor) == domain
    end_by(how, box.hypervisor, domain.uuid)
    box.come(*STARTED, *ENDED)
    eventually(lambda: box.hypervisor.domains(timeout=T) == ())


@pytest.mark.parametrize("slow", ["guest", "hardware"])
def test_a_domain_that_is_told_to_end_is_there_until_its_hostdevs_are_closed(box: Box, slow: str) -> None:
    domain = box.hypervisor.create(document(), timeout=T)
    box.gate[slow].clear()
    box.hypervisor.shutdown(domain.uuid, timeout=T)
    assert only(box.hypervisor).state is DomainState.SHUTTING_DOWN
    with pytest.raises(OutcomeUnknown, match="whether libvirt did end the domain"):
        box.hypervisor.destroy(domain.uuid, timeout=0.05)
    assert only(box.hypervisor).uuid == domain.uuid
    box.gate[slow].set()
    eventually(lambda: box.hypervisor.domains(timeout=T) == ())


def test_a_reboot_leaves_the_hostdevs_open(box: Box) -> None:
    domain = box.hypervisor.create(document(bdfs=(SWITCH, OTHER_SWITCH)), timeout=T)
    box.hypervisor.reboot(domain.uuid)
    box.come(*STARTED, "vm ends", "vm boots")
    assert only(box.hypervisor) == domain


def test_a_guest_that_fails_takes_its_domain_with_it() -> None:
    def fails(domain: Domain) -> contextlib.AbstractContextManager[None]:
        raise RuntimeError("a defect")

    hypervisor = SimulatedHypervisor(fails)
    hypervisor.create(document(), timeout=T)
    eventually(lambda: hypervisor.domains(timeout=T) == ())


def test_hardware_that_cannot_be_opened_is_a_refusal_that_leaves_nothing(box: Box) -> None:
    box.refusal = "vfio 0000:04:00.0: failed to open /dev/vfio/12: No such file or directory"
    with pytest.raises(DomainRefused, match="/dev/vfio/12") as refused:
        box.hypervisor.create(document(), timeout=T)
    assert "vfio bind" in refused.value.fix
    assert box.hypervisor.domains(timeout=T) == ()
    box.refusal = ""
    box.hypervisor.create(document(), timeout=T)
    box.come("opened 0000:04:00.0", "vm boots")


@pytest.mark.parametrize(
    ("second", "why"),
    [
        (document("vm", bdfs=(), cid=0), f"domain 'vm' already exists with uuid {UUID}"),
        (document("b", UUID, (), 0), f"domain 'vm' is already defined with uuid {UUID}"),
        (document("b", bdfs=(OTHER_SWITCH, SWITCH), cid=0), "0000:04:00.0 is in use by driver QEMU, domain vm"),
        (document("b", bdfs=(OTHER_SWITCH,)), "guest cid: Address already in use"),
    ],
    ids=["name", "uuid", "hostdev", "cid"],
)
def test_a_domain_gets_nothing_that_another_has(box: Box, second: str, why: str) -> None:
    box.hypervisor.create(document(uuid=UUID), timeout=T)
    with pytest.raises(DomainRefused) as refused:
        box.hypervisor.create(second, timeout=T)
    assert why in refused.value.why
    box.hypervisor.create(document("c", bdfs=(OTHER_SWITCH,), cid=1001), timeout=T)
    box.hypervisor.kill(UUID)
    box.hypervisor.create(document("b", UUID), timeout=T)


def test_domains_without_vsock_do_not_share_one(box: Box) -> None:
    box.hypervisor.create(document("a", bdfs=(), cid=0), timeout=T)
    box.hypervisor.create(document("b", bdfs=(), cid=0), timeout=T)
    assert len({domain.uuid for domain in box.hypervisor.domains(timeout=T)}) == 2


def test_a_tenant_has_hostdevs_and_no_guest_of_ours(box: Box) -> None:
    tenant = box.hypervisor.add_tenant("tenant", (OTHER_SWITCH, SWITCH))
    assert (tenant.hostdevs, tenant.fingerprint) == ((SWITCH, OTHER_SWITCH), "")
    assert only(box.hypervisor) == tenant
    box.hypervisor.kill(tenant.uuid)
    box.come("opened 0000:04:00.0 0000:05:00.0", "closed 0000:04:00.0 0000:05:00.0")


def test_a_guest_may_ignore_its_power_button_or_be_paused(box: Box) -> None:
    domain = box.hypervisor.create(document(), timeout=T)
    box.hypervisor.ignore_shutdown = True
    box.hypervisor.shutdown(domain.uuid, timeout=T)
    assert only(box.hypervisor).state is DomainState.RUNNING
    box.hypervisor.ignore_shutdown = False
    box.hypervisor.pause(domain.uuid)
    box.hypervisor.shutdown(domain.uuid, timeout=T)
    assert only(box.hypervisor).state is DomainState.PAUSED
    box.hypervisor.resume(domain.uuid)
    assert only(box.hypervisor).state is DomainState.RUNNING
    box.come("opened 0000:04:00.0", "vm boots")


def test_a_refusal_on_demand_holds_until_it_is_taken_back(box: Box) -> None:
    box.hypervisor.refuse("Could not open '/x': Permission denied")
    for _ in range(2):
        with pytest.raises(DomainRefused, match="'/x'") as refused:
            box.hypervisor.create(document(), timeout=T)
        assert "images" in refused.value.fix
    box.hypervisor.refuse("")
    box.hypervisor.create(document(), timeout=T)


Change = Callable[[SimulatedHypervisor], object]


@pytest.mark.parametrize(
    ("change", "left"),
    [
        (lambda h: h.create(document("b", bdfs=(), cid=0), timeout=0.05), 2),
        (lambda h: h.destroy(UUID, timeout=0.05), 0),
        (lambda h: h.shutdown(UUID, timeout=0.05), 0),
    ],
    ids=["create", "destroy", "shutdown"],
)
def test_a_change_without_an_answer_is_made_or_not(box: Box, change: Change, left: int) -> None:
    box.hypervisor.create(document(uuid=UUID), timeout=T)
    for acting, count in ((False, 1), (True, left)):
        box.hypervisor.hang(acting=acting)
        with pytest.raises(OutcomeUnknown):
            change(box.hypervisor)
        with pytest.raises(HypervisorUnreachable):
            box.hypervisor.domains(timeout=0.05)
        box.hypervisor.reconnect()
        eventually(lambda expected=count: len(box.hypervisor.domains(timeout=T)) == expected)  # type: ignore[misc]


def test_a_call_waits_for_a_libvirt_that_hangs_until_its_deadline(box: Box) -> None:
    box.hypervisor.hang()
    waiting = threading.Timer(0.1, box.hypervisor.reconnect)
    waiting.start()
    assert box.hypervisor.domains(timeout=T) == ()
    waiting.join()


def test_calls_are_refused_after_close_and_nobody_is_told_any_more(box: Box) -> None:
    told = threading.Event()
    others = set(threading.enumerate())
    box.hypervisor.watch(told.set)
    (watching,) = set(threading.enumerate()) - others
    domain = box.hypervisor.create(document(), timeout=T)
    eventually(lambda: settled(told))
    box.hypervisor.close()
    eventually(lambda: not watching.is_alive())
    box.hypervisor.kill(domain.uuid)
    assert settled(told)
    with pytest.raises(HypervisorUnreachable):
        box.hypervisor.create(document(), timeout=T)


def settled(told: threading.Event) -> bool:
    """Whether nothing is told for a while."""
    told.clear()
    return not told.wait(0.1)
