# SPDX-License-Identifier: Apache-2.0
"""What the Service VM boots: nothing that nobody vouches for, and an upgrade is kept or undone."""

from __future__ import annotations

from tests.lab import guests, steps
from tests.lab.host import Host, want
from tests.lab.machine import Variant
from tests.lab.scenario import scenario

SIGNATURE = "manifest.json.sig"


@scenario(Variant.GROUPS)
def a_tampered_image_is_refused_with_the_reason(host: Host) -> None:
    steps.ready(host)
    steps.stopped(host)
    folder = f"{steps.STORE}/{steps.image(host)}"
    for file in ("vmlinuz", "root.squashfs", "manifest.json", SIGNATURE):
        host.sh(f"cp -p {folder}/{file} /root/kept && printf '!' >>{folder}/{file}")
        refused = steps.started(host, status=1)
        host.sh(f"cp -p /root/kept {folder}/{file}")
        said = {SIGNATURE: "signature", "manifest.json": "signature"}.get(file, file)
        want(said in refused, f"of {file} is said: {refused}")
        want(not host.sh("virsh list --all --name").strip(), "a domain was started all the same")
        steps.stopped(host)
    steps.started(host)
    steps.ready(host)


@scenario(Variant.GROUPS)
def another_image_is_taken(host: Host) -> None:
    steps.ready(host)
    before = steps.generation(host)
    with steps.resets(host, starts=1, ends=1):
        steps.upgrade(host, guests.SECOND)
    want(steps.image(host) == guests.SECOND, f"the image in use is {steps.image(host)}")
    want(steps.generation(host) > before, "the fabric generation was not raised")
    host.fmctl("image", "prune", "--keep", "1")
    want(guests.SECOND in host.fmctl("image", "list"), "the image in use was removed")


@scenario(Variant.GROUPS)
def an_image_whose_agent_never_answers_is_not_kept(host: Host) -> None:
    steps.ready(host)
    before = steps.image(host)
    refused = steps.upgrade(host, guests.MUTE, status=1)
    want("its agent did not answer" in refused, refused)
    steps.ready(host)
    want(steps.image(host) == before, f"the image in use is {steps.image(host)}")


@scenario(Variant.GROUPS)
def an_image_is_not_taken_under_a_tenant(host: Host) -> None:
    steps.tenant(host, 1)
    with steps.resets(host):
        steps.added(host, guests.FIRST)
        refused = host.fmctl("service-vm", "upgrade", guests.FIRST, status=4)
        want(steps.TENANT in refused, refused)


@scenario(Variant.GROUPS)
def an_agent_alone_is_replaced_under_a_tenant(host: Host) -> None:
    steps.tenant(host, 1)
    if steps.image(host) != guests.FIRST:
        steps.no_tenant(host)
        steps.upgrade(host, guests.FIRST)
        steps.tenant(host, 1)
    before = steps.qemu(host), host.ask("status")["agent"]["digest"]
    with steps.resets(host):
        steps.upgrade(host, guests.AGENT)
    want(steps.qemu(host) == before[0], "the Service VM is not the one that it was")
    want(host.ask("status")["agent"]["digest"] != before[1], "the agent is the one that it was")
    want(steps.image(host) == guests.AGENT, f"the image in use is {steps.image(host)}")
    want(steps.active(host) == [1], f"active are {steps.active(host)}")


@scenario(Variant.GROUPS)
def an_agent_that_never_answers_is_not_kept_under_a_tenant(host: Host) -> None:
    steps.tenant(host, 1)
    before = steps.image(host), host.ask("status")["agent"]["digest"]
    with steps.resets(host):
        refused = steps.upgrade(host, guests.MUTE_AGENT, status=1)
        want("the one before is back" in refused, refused)
        steps.ready(host)
    want((steps.image(host), host.ask("status")["agent"]["digest"]) == before, "the agent is another one")
    want(steps.active(host) == [1], f"active are {steps.active(host)}")
    steps.no_tenant(host)


@scenario(Variant.GROUPS)
def after_the_host_s_reboot_it_is_ready_unattended(host: Host) -> None:
    steps.ready(host)
    before = steps.generation(host)
    host.reboot(within=180)
    host.eventually("fmctl answers", lambda: host.run("fmctl status").status == 0, within=120)
    host.fmctl("wait", "--for", "ready", "--timeout", str(int(steps.READY_WITHIN)), timeout=steps.READY_WITHIN + 20)
    want(steps.generation(host) > before, "the fabric generation fell back, or was not raised")
