# SPDX-License-Identifier: Apache-2.0
"""Images on the keeper's pretended host: what is booted, what is refused, and an upgrade that is kept or undone."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from fmctl.control.servicevm import ServiceVm
from fmctl.core.answers import ServiceVmState, ServiceVmStatus, StartMode
from fmctl.core.errors import BadRequest, FmctlError, HostCordoned, ImageRefused, NoSuchImage, VmRunning
from fmctl.core.image import AGENT
from fmctl.core.servicevm import Rules
from tests.control.keeping import BROKEN, SETTINGS, UUID, Host, image_files, image_store
from tests.support import eventually

OLD, AGENT_OF_OLD = "old", "old-with-a-new-agent"
NEW, BAD, BAD_AGENT = "new", "bad", "bad-agent"


@pytest.fixture
def host() -> Iterator[Host]:
    images = image_store(
        **{
            OLD: image_files(),
            AGENT_OF_OLD: image_files(agent=b"another agent"),
            NEW: image_files(root=b"another root", driver="590.1"),
            BAD: image_files(root=b"another root", agent=BROKEN),
            BAD_AGENT: image_files(agent=BROKEN),
        }
    )
    images.choose(OLD)
    host = Host(images=images)
    yield host
    host.hypervisor.reconnect()
    host.hypervisor.power_off()
    host.hypervisor.close()


def upgraded(host: Host, image: str, *, interrupt_tenants: bool = False) -> ServiceVmStatus | FmctlError:
    """What an upgrade answers, while the keeper takes its steps as its thread would."""
    answers: list[ServiceVmStatus | FmctlError] = []

    def ask() -> None:
        try:
            answers.append(host.operator.upgrade(image, interrupt_tenants=interrupt_tenants, timeout=30))
        except FmctlError as error:
            answers.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    eventually(lambda: bool(answers) or host.step(1) is None, within=30)
    asking.join()
    return answers[0]


def running(host: Host) -> str:
    domain = host.domain()
    return domain.image if domain else ""


def test_it_boots_the_image_in_use_and_says_which(host: Host) -> None:
    host.ready()
    status = host.keeper.status()
    assert (running(host), status.image, status.next_image) == (OLD, OLD, OLD)
    assert status.fabric_generation == 1
    host.hypervisor.kill(UUID)
    host.ready()
    assert host.keeper.status().fabric_generation == 2


def test_a_fabric_manager_that_takes_up_its_state_begins_no_generation(host: Host) -> None:
    host.ready()
    host.guest.process.die()
    host.ready()
    assert host.guest.started[-1] is StartMode.RESTART
    assert host.keeper.status().fabric_generation == 1


@pytest.mark.parametrize("file", ["vmlinuz", "initrd", "root.squashfs", AGENT, "manifest.json"])
def test_an_image_that_was_tampered_with_is_not_booted_and_the_status_says_which_file(host: Host, file: str) -> None:
    assert host.images is not None
    host.ready()
    host.images.tamper(OLD, file)
    host.hypervisor.kill(UUID)
    eventually(lambda: host.step(1) is ServiceVmState.FAILED)
    assert file in host.keeper.status().message
    assert host.domain() is None


def test_without_an_image_nothing_starts_and_the_status_says_what_to_do() -> None:
    host = Host(images=image_store(old=image_files()))
    for _ in range(20):
        assert host.step(60) is ServiceVmState.ABSENT
    assert "no image is chosen" in host.keeper.status().message
    assert host.keeper.status().degraded == ""
    assert isinstance(upgraded(host, OLD), ServiceVmStatus)
    assert running(host) == OLD
    host.hypervisor.power_off()


def test_an_upgrade_starts_the_new_one_and_fabric_manager_fresh(host: Host) -> None:
    host.ready()
    answer = upgraded(host, NEW)
    assert isinstance(answer, ServiceVmStatus), answer
    assert (answer.state, answer.image, answer.next_image) == (ServiceVmState.READY, NEW, NEW)
    assert answer.degraded == ""
    assert host.guest.started == [StartMode.FRESH, StartMode.FRESH]
    assert host.images is not None
    assert (host.images.current(), host.images.trial()) == (NEW, None)


def test_an_image_whose_agent_never_answers_is_not_kept_and_the_old_one_is_back(host: Host) -> None:
    host.ready()
    answer = upgraded(host, BAD)
    assert isinstance(answer, FmctlError)
    assert "its agent did not answer" in answer.why
    host.ready()
    assert running(host) == OLD
    assert host.images is not None
    assert (host.images.current(), host.images.trial()) == (OLD, None)
    assert "its agent did not answer" in host.keeper.status().upgrade


def test_an_image_that_libvirt_refuses_is_not_kept(host: Host) -> None:
    host.ready()
    host.images_refused = {NEW}
    answer = upgraded(host, NEW)
    assert isinstance(answer, FmctlError)
    assert "no such machine type" in answer.why
    host.ready()
    assert running(host) == OLD


def test_going_back_waits_for_nothing(host: Host) -> None:
    host.ready()
    host.images_refused = {NEW}
    assert isinstance(upgraded(host, NEW), FmctlError)
    now = host.clock.now
    eventually(lambda: host.step(0.001) is ServiceVmState.READY)
    assert running(host) == OLD
    assert host.clock.now - now < 4


def test_a_host_that_is_busy_is_no_fault_of_the_image(host: Host) -> None:
    host.ready()
    assert host.images is not None
    host.images.set_trial(NEW)
    host.busy = True
    host.hypervisor.kill(UUID)
    eventually(lambda: host.step(0.1) is ServiceVmState.FAILED)
    for _ in range(10):
        host.step(0.1)
    assert host.images.trial() == NEW
    host.busy = False
    eventually(lambda: host.step(0.1) is ServiceVmState.READY)
    assert running(host) == NEW


def test_while_an_image_is_tried_the_host_takes_no_new_work(host: Host) -> None:
    host.ready()
    assert host.images is not None
    host.images.set_trial(BAD)
    host.hypervisor.kill(UUID)
    eventually(lambda: host.step(1) is ServiceVmState.BOOTING)
    assert f"the image {BAD} is being tried" in host.keeper.status().degraded
    with pytest.raises(HostCordoned):
        host.gate().refuse_new_work()


def test_a_daemon_that_died_while_an_image_was_tried_goes_on_with_it(host: Host) -> None:
    host.ready()
    assert host.images is not None
    host.images.set_trial(NEW)
    host.hypervisor.kill(UUID)
    eventually(lambda: host.step(1) is ServiceVmState.AGENT_UP)
    again = ServiceVm(host.keeper._world, SETTINGS, Rules(), clock=host.clock)

    def kept() -> bool:
        again.step()
        return again.status().next_image == NEW and host.images is not None and host.images.trial() is None

    eventually(kept)
    assert again.status().state is ServiceVmState.READY
    assert host.images.current() == NEW


def test_a_daemon_that_died_before_the_old_one_was_ended_forgets_the_trial(host: Host) -> None:
    host.ready()
    assert host.images is not None
    host.images.set_trial(NEW)
    before = host.resets()
    host.step(1)
    assert (host.images.current(), host.images.trial(), running(host)) == (OLD, None, OLD)
    assert host.resets() == before


def test_where_the_agent_alone_differs_it_is_replaced_under_a_tenant_and_no_switch_is_reset(host: Host) -> None:
    host.ready()
    host.tenant()
    before = host.resets()
    answer = upgraded(host, AGENT_OF_OLD)
    assert isinstance(answer, ServiceVmStatus), answer
    assert host.images is not None
    assert host.guest.digest == host.images.read(AGENT_OF_OLD).manifest.files[AGENT]
    assert (host.images.current(), running(host)) == (AGENT_OF_OLD, OLD)
    assert host.resets() == before
    assert host.guest.started == [StartMode.FRESH]
    host.hypervisor.kill(UUID)
    host.ready()
    assert running(host) == AGENT_OF_OLD


def test_what_agent_runs_decides_and_not_what_the_domain_was_started_from(host: Host) -> None:
    host.ready()
    for image in (AGENT_OF_OLD, AGENT_OF_OLD, OLD, OLD):
        assert isinstance(upgraded(host, image), ServiceVmStatus)
        assert host.images is not None
        assert host.guest.digest == host.images.read(image).manifest.files[AGENT]
    assert len(host.guest.replaced) == 2


def test_an_agent_that_is_silent_cannot_be_replaced_so_the_service_vm_is_started_anew(host: Host) -> None:
    host.ready()
    host.guest.answers = False
    assert isinstance(upgraded(host, AGENT_OF_OLD), ServiceVmStatus)
    assert (running(host), host.guest.replaced) == (AGENT_OF_OLD, [])


def test_where_the_running_one_does_not_end_the_trial_is_forgotten(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(uuid: str, *, timeout: float) -> None:
        raise FmctlError("libvirt does not end the domain")

    host.ready()
    monkeypatch.setattr(host.hypervisor, "destroy", refuse)
    answer = upgraded(host, NEW)
    assert isinstance(answer, FmctlError)
    assert answer.what == "libvirt does not end the domain"
    assert host.images is not None
    assert (host.images.trial(), running(host)) == (None, OLD)


def test_an_agent_that_does_not_answer_is_not_kept(host: Host) -> None:
    host.ready()
    host.tenant()
    answer = upgraded(host, BAD_AGENT)
    assert isinstance(answer, FmctlError)
    assert "the one before is back" in answer.why
    assert host.images is not None
    assert host.images.current() == OLD
    assert host.ready().keeper.status().state is ServiceVmState.READY


def test_another_driver_waits_for_a_host_without_multi_gpu_tenants(host: Host) -> None:
    host.ready()
    host.tenant("a")
    before = host.resets()
    answer = upgraded(host, NEW)
    assert isinstance(answer, VmRunning)
    assert "a with 2 GPUs" in answer.why
    assert host.images is not None
    assert (host.resets(), host.images.trial(), running(host)) == (before, None, OLD)
    assert isinstance(upgraded(host, NEW, interrupt_tenants=True), ServiceVmStatus)


def test_what_is_not_vouched_for_or_not_there_is_refused_before_anything_is_touched(host: Host) -> None:
    host.ready()
    assert host.images is not None
    host.images.tamper(NEW, "root.squashfs")
    before = host.resets()
    assert isinstance(upgraded(host, NEW), ImageRefused)
    assert isinstance(upgraded(host, "nothing"), NoSuchImage)
    assert (host.resets(), host.images.trial(), running(host)) == (before, None, OLD)


def test_the_image_that_runs_is_no_upgrade(host: Host) -> None:
    host.ready()
    before = host.resets()
    assert isinstance(upgraded(host, OLD), ServiceVmStatus)
    assert host.resets() == before


def test_a_service_vm_whose_files_the_settings_name_has_no_images() -> None:
    host = Host().ready()
    with pytest.raises(BadRequest) as refusal:
        host.operator.upgrade(NEW, interrupt_tenants=False, timeout=5)
    assert "service_vm.kernel" in refusal.value.fix
    host.hypervisor.power_off()
