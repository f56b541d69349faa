# SPDX-License-Identifier: Apache-2.0
"""Who gets a GPU: what libvirt's hook and the kernel let through, with the daemon and without it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from tests.lab import steps
from tests.lab.host import Host, want
from tests.lab.machine import Variant
from tests.lab.scenario import scenario
from tests.lab.steps import TENANT

PAIR = 1
"""A partition of two GPUs."""
ANOTHER_VM = "11111111-2222-3333-4444-555555555555"
HOOK = "/etc/libvirt/hooks/qemu.d/fmctl"
BARE = f"/tmp/{TENANT}-bare.xml"


@scenario(Variant.GROUPS)
def libvirt_calls_the_hook_and_free_gpus_are_parked(host: Host) -> None:
    steps.ready(host)
    steps.no_tenant(host)
    gate = host.ask("status")["gate"]
    want(gate == {"hook": "loaded", "degraded": "", "alarms": []}, f"the gate is {gate}")
    for address in steps.gpu_addresses(host).values():
        override = host.sh(f"cat /sys/bus/pci/devices/{address}/driver_override").strip()
        want(override == "fmctl-parked", f"the override of {address} is {override}")
    again = host.sh("systemctl restart libvirtd; sleep 1; virsh list --name")
    want(steps.SERVICE_VM in again, again)
    host.eventually("libvirt calls it again", lambda: host.ask("status")["gate"]["hook"] == "loaded", within=60)


@scenario(Variant.GROUPS)
def a_vm_starts_with_its_lease_s_gpus_alone(host: Host) -> None:
    steps.no_tenant(host)
    pair = steps.gpus_of(host, PAIR)
    _refused(host, *pair)
    lease = steps.leased(host, PAIR, ANOTHER_VM)
    _refused(host, *pair)
    steps.leased(host, PAIR)
    _refused(host, pair[0])
    _refused(host, *steps.gpus_of(host, 0))
    steps.tenant(host, PAIR)
    steps.parked(host, *pair)
    # QEMU notices only after a while that somebody has its terminal open, which becomes that of no shell below another.
    _ends(host, f"(exec 3<>$(virsh ttyconsole {TENANT}); sleep 2; echo off >&3; sleep 2); true")
    want(_lease(host, lease) == "active", f"after its shutdown the lease is {_lease(host, lease)}")
    steps.tenant(host, PAIR, up=False)
    _hard_reboot(host, steps.document(host, *pair))
    want(_lease(host, lease) == "active", f"after a hard reboot the lease is {_lease(host, lease)}")
    want(host.ask("status")["gate"]["alarms"] == [], "there are alarms")
    _ends(host, f"kill -9 $(cat /run/libvirt/qemu/{TENANT}.pid)")
    want(_lease(host, lease) == "active", f"after its crash the lease is {_lease(host, lease)}")
    steps.no_tenant(host)
    _refused(host, *pair)


@scenario(Variant.GROUPS)
def an_unleased_gpu_cannot_be_opened_with_the_daemon_or_without(host: Host) -> None:
    steps.tenant(host, PAIR)
    free = _free(host)
    _hostdev(host, free, "no")
    for command in ("true", "systemctl stop fmctld"):
        host.sh(command)
        attached = host.run(f"virsh attach-device {TENANT} /tmp/hostdev.xml --live")
        want(attached.status != 0, f"after `{command}` the GPU was attached")
        want("slot" not in attached.err, f"it failed for another reason: {attached.err}")
        _no_qemu_gets(host, free)
    host.sh("systemctl start fmctld")
    steps.ready(host)
    want(steps.has_tenant(host), "the tenant's VM is gone")


@scenario(Variant.GROUPS)
def what_libvirt_takes_by_itself_raises_an_alarm(host: Host) -> None:
    steps.tenant(host, PAIR)
    free = _free(host)
    _hostdev(host, free, "yes")
    # A daemon that runs may park it again before QEMU has it, and then nothing is attached.
    daemon = steps.unit_pid(host, "fmctld")
    host.sh(f"kill -STOP {daemon}; virsh attach-device {TENANT} /tmp/hostdev.xml --live; kill -CONT {daemon}")
    want(free in _opened(host), "libvirt did not attach it")
    alarm = host.eventually("the daemon raises an alarm", lambda: host.ask("status")["gate"]["alarms"], within=60)
    want(free in alarm[0], f"{alarm}")
    host.sh(f"virsh detach-device {TENANT} /tmp/hostdev.xml --live")
    steps.parked(host, *steps.gpus_of(host, PAIR))
    host.eventually("the alarm ends", lambda: not host.ask("status")["gate"]["alarms"], within=60)


@scenario(Variant.GROUPS)
def without_the_daemon_a_vm_with_gpus_is_refused_in_time_and_any_other_starts(host: Host) -> None:
    steps.no_tenant(host)
    steps.leased(host, PAIR)
    path = steps.document(host, *steps.gpus_of(host, PAIR))
    host.sh(f"sed '/<hostdev/,/<.hostdev>/d' {path} >{BARE}")
    with _stopped(host):
        want(_hook(host, path) == 1, "a VM with GPUs may start")
        want(_hook(host, BARE) == 0, "a VM without GPUs may not start")
        want(host.run(f"virsh create {path}", timeout=120).status != 0, "a VM with GPUs was started")


@scenario(Variant.GROUPS)
def gpus_that_were_prepared_are_kept_over_a_restart_of_the_daemon(host: Host) -> None:
    steps.no_tenant(host)
    lease = steps.leased(host, PAIR)
    pair = [steps.gpu_addresses(host)[gpu] for gpu in steps.gpus_of(host, PAIR)]
    host.fmctl("lease", "prepare", lease)
    _no_qemu_gets(host, pair[0])
    old = steps.unit_pid(host, "fmctld")
    host.sh(f"kill -9 {old}")
    host.eventually("systemd starts it again", lambda: steps.unit_pid(host, "fmctld") not in (0, old), within=30)
    _no_qemu_gets(host, pair[0])
    steps.ready(host)
    steps.parked(host, *steps.gpus_of(host, PAIR))
    steps.tenant(host, PAIR)


@scenario(Variant.GROUPS)
def a_hook_that_takes_ten_seconds_does_not_hold_up_the_daemon(host: Host) -> None:
    steps.no_tenant(host)
    steps.leased(host, PAIR)
    path = steps.document(host, *steps.gpus_of(host, PAIR))
    daemon = steps.unit_pid(host, "fmctld")
    host.sh(f"sed --in-place=.kept 's/^exec/sleep 10; exec/' {HOOK} && mv {HOOK}.kept /tmp/hook.kept")
    try:
        host.sh(f"(virsh create {path} >/tmp/create.out 2>&1 &) </dev/null >/dev/null 2>&1")
        for _ in range(3):
            host.fmctl("status", "--timeout", "8")
            host.fmctl("lease", "list", "--timeout", "8")
        host.eventually("the tenant's VM starts", lambda: steps.has_tenant(host), within=120)
    finally:
        host.sh(f"cp /tmp/hook.kept {HOOK} && chmod 755 {HOOK}")
    want(steps.unit_pid(host, "fmctld") == daemon, "the daemon is another one")


def _ends(host: Host, command: str) -> None:
    """The tenant's VM ends by that command, and its GPUs are parked."""
    host.sh(command)
    host.eventually("it has ended", lambda: not steps.has_tenant(host), within=60)
    steps.parked(host)


def _hard_reboot(host: Host, document: str) -> None:
    """What a VM manager calls so: the domain goes, with its definition, and comes again."""
    host.sh(f"virsh define {document} && virsh destroy {TENANT} && virsh undefine {TENANT}")
    host.sh(f"virsh define {document} && virsh start {TENANT} && virsh undefine {TENANT}", timeout=120)
    want(steps.has_tenant(host), "the tenant's VM does not run")


def _refused(host: Host, *gpus: int) -> None:
    answer = steps.create(host, *gpus)
    want(answer.status != 0 and "hook" in answer.err.lower(), f"GPUs {gpus}: {answer.status}\n{answer.out}{answer.err}")
    want(not steps.has_tenant(host), "the tenant's VM runs all the same")


def _lease(host: Host, lease: str) -> str:
    return str(host.ask("lease", "show", lease)["state"])


def _opened(host: Host) -> str:
    """The addresses of the functions that the tenant's VM has, as libvirt lists them."""
    sources = host.sh(f"virsh dumpxml {TENANT} | grep --after-context 8 '<hostdev' | grep 'address domain'")
    return " ".join("{}:{}:{}.{}".format(*re.findall("'0x([0-9a-f]+)'", line)) for line in sources.splitlines())


def _free(host: Host) -> str:
    """The address of a GPU that no lease holds."""
    pair = steps.gpus_of(host, PAIR)
    return next(address for gpu, address in steps.gpu_addresses(host).items() if gpu not in pair)


def _hostdev(host: Host, address: str, managed: str) -> None:
    domain, bus, place = address.split(":")
    slot, function = place.split(".")
    where = f"domain='0x{domain}' bus='0x{bus}' slot='0x{slot}' function='0x{function}'"
    source = f"<source><address {where}/></source>"
    xml = f"<hostdev mode='subsystem' type='pci' managed='{managed}'>{source}</hostdev>"
    host.sh(f'cat >/tmp/hostdev.xml <<"END"\n{xml}\nEND\n')


def _no_qemu_gets(host: Host, address: str) -> None:
    """A QEMU that is started by hand does not get the function."""
    machine = "timeout 30 qemu-system-x86_64 -machine q35 -m 64 -nodefaults -display none -S"
    answer = host.run(f"{machine} -device vfio-pci,host={address}", timeout=60)
    want(answer.status not in (0, 124), f"QEMU got {address}: {answer.status}\n{answer.err}")


def _hook(host: Host, document: str) -> int:
    """The exit status of the hook, which must come within 5 seconds."""
    answer = host.sh(f"SECONDS=0; {HOOK} {TENANT} prepare begin - <{document} 2>/dev/null; echo $? $SECONDS")
    status, seconds = map(int, answer.split())
    want(seconds <= 5, f"the hook took {seconds} s")
    return status


@contextlib.contextmanager
def _stopped(host: Host) -> Iterator[None]:
    """The daemon does not run for as long as the block."""
    host.sh("systemctl stop fmctld")
    try:
        yield
    finally:
        host.sh("systemctl start fmctld")
        steps.ready(host)
