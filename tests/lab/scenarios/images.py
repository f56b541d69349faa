# SPDX-License-Identifier: Apache-2.0
"""Another image, or another agent: taken, or left where it does not work."""

from __future__ import annotations

from tests.lab import guests, steps
from tests.lab.host import Host, want
from tests.lab.machine import Variant
from tests.lab.scenario import scenario

PARTITION = 1


@scenario(Variant.GROUPS)
def an_agent_alone_is_replaced_under_a_tenant(host: Host) -> None:
    steps.tenant(host, PARTITION)
    before = steps.qemu(host), _agent(host)
    with steps.resets(host):
        steps.upgrade(host, guests.AGENT)
    want(steps.qemu(host) == before[0], "the Service VM is not the one that it was")
    want(_agent(host) != before[1], "the agent is the one that it was")
    want(steps.image(host) == guests.AGENT, f"the image in use is {steps.image(host)}")
    want(steps.active(host) == [PARTITION], f"active are {steps.active(host)}")


@scenario(Variant.GROUPS)
def an_agent_that_never_answers_is_not_kept_under_a_tenant(host: Host) -> None:
    steps.tenant(host, PARTITION)
    before = steps.image(host), _agent(host)
    with steps.resets(host):
        refused = steps.upgrade(host, guests.MUTE_AGENT, status=1)
        want("the one before is back" in refused, refused)
        steps.ready(host)
    want((steps.image(host), _agent(host)) == before, "the agent is another one")
    want(steps.active(host) == [PARTITION], f"active are {steps.active(host)}")


@scenario(Variant.GROUPS)
def another_image_is_not_taken_under_a_tenant(host: Host) -> None:
    steps.tenant(host, PARTITION)
    steps.added(host, guests.SECOND)
    with steps.resets(host):
        refused = host.fmctl("service-vm", "upgrade", guests.SECOND, status=4)
        want(steps.TENANT in refused, refused)
    steps.no_tenant(host)


@scenario(Variant.GROUPS)
def another_image_is_taken(host: Host) -> None:
    steps.ready(host)
    before = steps.generation(host)
    with steps.resets(host, starts=1, ends=1):
        steps.upgrade(host, guests.SECOND)
    want(steps.image(host) == guests.SECOND, f"the image in use is {steps.image(host)}")
    want(steps.generation(host) > before, "the fabric generation was not raised")
    host.fmctl("image", "prune", "--keep", "0")
    want(host.fmctl("image", "list", "-o", "name").split() == [guests.SECOND], "others are left, or none")


@scenario(Variant.GROUPS)
def after_the_host_s_reboot_it_is_ready_unattended_and_leases_are_kept(host: Host) -> None:
    steps.inactive(host)
    steps.leased(host, PARTITION)
    before = steps.generation(host)
    host.reboot(within=180)
    host.eventually("fmctl answers", lambda: host.try_fmctl("status").status == 0, within=120)
    host.fmctl("wait", "--for", "ready", "--timeout", str(int(steps.READY_WITHIN)), timeout=steps.READY_WITHIN + 20)
    want(steps.generation(host) > before, "the fabric generation fell back, or was not raised")
    want([lease["partitions"] for lease in steps.leases(host)] == [[PARTITION]], f"leases: {steps.leases(host)}")
    steps.ready(host)
    host.eventually("its partition is active", lambda: steps.active(host) == [PARTITION], within=60)
    steps.tenant(host, PARTITION)


def _agent(host: Host) -> str:
    """The SHA-256 of the agent that runs."""
    digest: str = host.ask("status")["agent"]["digest"]
    return digest
