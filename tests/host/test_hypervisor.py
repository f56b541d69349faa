# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from fmctl.core.domain import Domain, DomainRefused, DomainState, End
from fmctl.core.errors import FmctlError, HypervisorUnreachable, OutcomeUnknown
from fmctl.host import hypervisor
from fmctl.host.calls import NoAnswer
from fmctl.host.hypervisor import Libvirt
from tests.libvirt_support import UUID, PrivateLibvirtd, Stalling, document, private_libvirtd
from tests.support import eventually

T = 20.0


@pytest.fixture(scope="module")
def shared_daemon() -> Iterator[PrivateLibvirtd]:
    with private_libvirtd() as daemon:
        yield daemon


@pytest.fixture
def daemon(shared_daemon: PrivateLibvirtd) -> Iterator[PrivateLibvirtd]:
    yield shared_daemon
    shared_daemon.clear()


@pytest.fixture
def reached(daemon: PrivateLibvirtd) -> Iterator[Libvirt]:
    with contextlib.closing(Libvirt(daemon.uri, keepalive=(1, 1))) as reached:
        yield reached


@pytest.fixture
def pretended() -> Iterator[Libvirt]:
    """Libvirt's own test driver, which lives in this process, knows no keepalive and has a persistent domain."""
    with contextlib.closing(libvirt.open("test:///default")), contextlib.closing(Libvirt("test:///default")) as it:
        yield it


def test_without_libvirt_s_module_the_error_says_what_to_install() -> None:
    program = "import sys; sys.modules['libvirt'] = None; import fmctl.host.hypervisor"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "FmctlError: libvirt cannot be reached: its Python module is not installed" in done.stderr


@pytest.mark.parametrize("call", ["domains", "create", "shutdown", "destroy"])
def test_where_no_libvirt_listens_every_call_says_so_and_nothing_is_printed(
    call: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    uri = f"qemu+unix:///system?socket={folder}/no.sock"
    with contextlib.closing(Libvirt(uri)) as nobody, pytest.raises(HypervisorUnreachable) as refused:
        getattr(nobody, call)(*{"domains": (), "create": (document(),)}.get(call, (UUID,)), timeout=T)
    assert uri in refused.value.what
    assert "No such file or directory" in refused.value.why
    assert "virsh list" in refused.value.fix
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("xml", "why", "fix"),
    [
        (document(devices="<surprise/>"), "validate against schema", "template"),
        (document(devices="<disk type='file'><source file='/no'/><target dev='sda'/></disk>"), "'/no'", "images"),
        (document().replace("<os>", "<os><kernel>/no</kernel>"), "could not open kernel", "images"),
        (document().replace("q35", "z80"), "does not support machine type 'z80'", "/var/log/libvirt/qemu/service-vm"),
    ],
    ids=["schema", "disk", "kernel", "other"],
)
def test_what_libvirt_or_qemu_refuses_is_told_in_their_words(reached: Libvirt, xml: str, why: str, fix: str) -> None:
    with pytest.raises(DomainRefused) as refused:
        reached.create(xml, timeout=T)
    assert why in refused.value.why
    assert fix in refused.value.fix
    assert reached.domains(timeout=T) == ()


def test_a_domain_that_was_started_is_transient(reached: Libvirt, daemon: PrivateLibvirtd) -> None:
    reached.create(document(), timeout=T)
    assert not daemon.domain(UUID).isPersistent()
    assert daemon.domain(UUID).isActive()


def test_domains_go_on_after_close(reached: Libvirt, daemon: PrivateLibvirtd) -> None:
    domain = reached.create(document(), timeout=T)
    reached.close()
    with contextlib.closing(Libvirt(daemon.uri)) as other:
        assert other.domains(timeout=T) == (domain,)


def test_one_call_that_hangs_delays_no_other(reached: Libvirt, daemon: PrivateLibvirtd) -> None:
    domain = reached.create(document(), timeout=T)
    os.kill(daemon.qemu(UUID), signal.SIGSTOP)
    before = time.monotonic()
    with pytest.raises(OutcomeUnknown) as unknown:
        reached.shutdown(UUID, timeout=0.3)
    assert UUID in unknown.value.what
    assert reached.domains(timeout=T) == (domain,)
    assert time.monotonic() - before < 3.0
    os.kill(daemon.qemu(UUID), signal.SIGCONT)


def test_a_question_without_an_answer_leaves_nothing_known(daemon: PrivateLibvirtd, folder: Path) -> None:
    stalling = Stalling(daemon, folder)
    cutting = threading.Timer(1.0, stalling.cut)
    with contextlib.closing(Libvirt(stalling.uri)) as stalled:
        with pytest.raises(HypervisorUnreachable, match=r"no answer within 0\.3 s"):
            stalled.domains(timeout=0.3)
        cutting.start()
        with pytest.raises(HypervisorUnreachable, match=r"reset|End of file"):
            stalled.domains(timeout=T)
    cutting.join()


def test_an_answer_that_is_an_error_leaves_nothing_known(daemon: PrivateLibvirtd) -> None:
    with (
        contextlib.closing(Libvirt(daemon.uri.replace("qemu", "network", 1))) as no_hypervisor,
        pytest.raises(HypervisorUnreachable, match="not supported by the connection driver"),
    ):
        no_hypervisor.domains(timeout=T)


def test_a_start_that_takes_too_long_may_still_succeed(reached: Libvirt, daemon: PrivateLibvirtd) -> None:
    with pytest.raises(OutcomeUnknown, match="whether libvirt did start service-vm is not known"):
        reached.create(document(devices=daemon.slow_emulator()), timeout=2.0)
    daemon.hurry()
    eventually(lambda: [domain.uuid for domain in reached.domains(timeout=T)] == [UUID])


def test_a_start_during_which_libvirtd_dies_has_no_outcome(reached: Libvirt, daemon: PrivateLibvirtd) -> None:
    xml = document(devices=daemon.slow_emulator())

    def die() -> None:
        daemon.qemu(UUID)
        daemon.kill()

    dying = threading.Thread(target=die)
    dying.start()
    with pytest.raises(OutcomeUnknown, match="start service-vm"):
        reached.create(xml, timeout=T)
    dying.join()
    daemon.hurry()


def test_a_libvirtd_that_stops_answering_is_noticed_without_a_call(reached: Libvirt, daemon: PrivateLibvirtd) -> None:
    domain = reached.create(document(), timeout=T)
    told = threading.Event()
    reached.watch(told.set)
    eventually(lambda: settled(told))
    daemon.stop()
    assert told.wait(T)
    daemon.go_on()
    assert reached.domains(timeout=T) == (domain,)


def settled(told: threading.Event) -> bool:
    """Whether nothing is told for a while."""
    told.clear()
    return not told.wait(0.3)


def test_a_restart_of_libvirtd_nobody_watched_is_not_noticed(reached: Libvirt, daemon: PrivateLibvirtd) -> None:
    domain = reached.create(document(), timeout=T)
    daemon.kill()
    daemon.go_on()
    assert reached.domains(timeout=T) == (domain,)
    reached.destroy(UUID, timeout=T)
    assert reached.domains(timeout=T) == ()


def test_a_connection_that_is_let_go_of_leaves_nothing_behind(reached: Libvirt, daemon: PrivateLibvirtd) -> None:
    before = descriptors()
    for _ in range(3):
        other = Libvirt(daemon.uri)
        other.watch(lambda: None)
        other.domains(timeout=T)
        other.close()
    eventually(lambda: descriptors() <= before)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_persistent_domain_counts_while_it_runs(pretended: Libvirt) -> None:
    (domain,) = pretended.domains(timeout=T)
    assert (domain.name, domain.state, domain.fingerprint) == ("test", DomainState.RUNNING, "")
    for _ in range(2):
        pretended.destroy(domain.uuid, timeout=T)
        assert pretended.domains(timeout=T) == ()


def test_events_come_without_keepalive_and_by_one_thread_for_all(pretended: Libvirt) -> None:
    told = threading.Event()
    pretended.watch(told.set)
    eventually(lambda: settled(told))
    with contextlib.closing(Libvirt("test:///default")) as another:
        for domain in another.domains(timeout=T):
            another.destroy(domain.uuid, timeout=T)
    assert told.wait(T)
    assert len([thread for thread in threading.enumerate() if thread.name == "libvirt events"]) == 1


def test_what_libvirt_refuses_to_do_to_a_domain_is_told(pretended: Libvirt) -> None:
    for refuse in (pretended.destroy, pretended.shutdown):
        with pytest.raises(FmctlError) as refused:
            refuse("no uuid", timeout=T)
        assert "the domain no uuid" in refused.value.what
        assert refused.value.why == "Invalid UUID"


class Answer:
    """A domain as libvirt-python shows it, in a state, which may be gone by the time its document is asked for."""

    def __init__(self, name: str, state: int = libvirt.VIR_DOMAIN_RUNNING, error: int | None = None) -> None:
        self._xml = f"<domain><name>{name}</name><uuid>{UUID}</uuid></domain>"
        self._state = state
        self._error = error

    def state(self) -> list[int]:
        return [self._state, 0]

    def XMLDesc(self) -> str:  # noqa: N802 (libvirt's name)
        if self._error is None:
            return self._xml
        error = libvirt.libvirtError("oops")
        error.err = (self._error,)
        raise error

    def name(self) -> str:
        return "answer"


class Answers:
    """A connection to libvirt with these domains, which starts the first."""

    def __init__(self, *domains: Answer) -> None:
        self._domains = domains

    def listAllDomains(self, flags: int) -> tuple[Answer, ...]:  # noqa: N802 (libvirt's name)
        assert flags == libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE
        return self._domains

    def createXML(self, xml: str, flags: int) -> Answer:  # noqa: N802 (libvirt's name)
        return self._domains[0]


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        (libvirt.VIR_DOMAIN_NOSTATE, DomainState.RUNNING),
        (libvirt.VIR_DOMAIN_RUNNING, DomainState.RUNNING),
        (libvirt.VIR_DOMAIN_BLOCKED, DomainState.RUNNING),
        (libvirt.VIR_DOMAIN_PAUSED, DomainState.PAUSED),
        (libvirt.VIR_DOMAIN_PMSUSPENDED, DomainState.PAUSED),
        (libvirt.VIR_DOMAIN_SHUTDOWN, DomainState.SHUTTING_DOWN),
        (libvirt.VIR_DOMAIN_CRASHED, DomainState.CRASHED),
    ],
)
def test_every_state_of_a_process_is_known(state: int, shown: DomainState) -> None:
    assert hypervisor.listed(Answers(Answer("a", state))) == (Domain(UUID, "a", shown),)


def test_a_domain_that_ends_while_it_is_asked_about_is_left_out() -> None:
    gone = (Answer("b", libvirt.VIR_DOMAIN_SHUTOFF), Answer("c", error=libvirt.VIR_ERR_NO_DOMAIN))
    assert [domain.name for domain in hypervisor.listed(Answers(Answer("d"), *gone, Answer("a")))] == ["a", "d"]


def test_a_domain_that_libvirt_cannot_tell_of_leaves_nothing_known() -> None:
    with pytest.raises(libvirt.libvirtError):
        hypervisor.listed(Answers(Answer("a"), Answer("b", error=libvirt.VIR_ERR_OPERATION_TIMEOUT)))


def test_a_domain_that_ends_as_soon_as_it_is_started_is_refused() -> None:
    for domain in (Answer("a", libvirt.VIR_DOMAIN_SHUTOFF), Answer("a", error=libvirt.VIR_ERR_NO_DOMAIN)):
        with pytest.raises(DomainRefused, match="it ended as soon as it had started"):
            hypervisor.started(Answers(domain), document())


def test_a_domain_that_was_started_and_cannot_be_told_of_may_run() -> None:
    with pytest.raises(NoAnswer, match="oops") as unknown:
        hypervisor.started(Answers(Answer("a", error=libvirt.VIR_ERR_OPERATION_TIMEOUT)), document())
    assert unknown.value.begun


def test_a_qemu_that_was_sent_sigterm_did_not_shut_down_though_libvirt_says_so(
    reached: Libvirt, daemon: PrivateLibvirtd
) -> None:
    heard: list[End] = []
    reached.watch(lambda: None, heard.append)
    eventually(lambda: reached.hearing)
    domain = reached.create(document(), timeout=T)
    os.kill(daemon.qemu(UUID), signal.SIGTERM)
    assert eventually(lambda: heard) == [End(UUID, domain.instance, shut_down=False)]
