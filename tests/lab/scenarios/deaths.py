# SPDX-License-Identifier: Apache-2.0
"""kill -9 of each process in turn, under a tenant that holds two GPUs, and in the middle of an activation for another:
what goes on, and what comes back.

Opening and closing a function resets it, so the resets of the stand-in switches are what the tenant's NVLinks would
feel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests.lab import steps
from tests.lab.host import Host, want
from tests.lab.machine import Variant
from tests.lab.scenario import scenario

PARTITION = 1


@scenario(Variant.GROUPS)
def a_tenant_s_vm_starts_with_two_gpus(host: Host) -> None:
    steps.ready(host)
    with steps.resets(host):
        steps.tenant(host, PARTITION, confined=True)


@scenario(Variant.GROUPS)
def the_daemon_is_killed(host: Host) -> None:
    with _under_a_tenant(host), steps.mid_activation(host):
        old = steps.unit_pid(host, "fmctld")
        host.sh(f"kill -9 {old}")
        host.eventually("systemd starts it again", lambda: steps.unit_pid(host, "fmctld") not in (0, old), within=30)


@scenario(Variant.GROUPS)
def libvirtd_is_killed(host: Host) -> None:
    with _under_a_tenant(host), steps.mid_activation(host):
        old = steps.unit_pid(host, "libvirtd")
        host.sh(f"kill -9 {old}")
        host.eventually("systemd starts it again", lambda: steps.unit_pid(host, "libvirtd") not in (0, old), within=60)


@scenario(Variant.GROUPS)
def the_agent_is_killed(host: Host) -> None:
    with _under_a_tenant(host), steps.mid_activation(host):
        old = steps.guest_pid(host, "fmctl agent")
        steps.guest(host, f"kill -9 {old}")
        host.eventually("init starts it again", lambda: steps.guest_pid(host, "fmctl agent") not in (0, old), within=60)


@scenario(Variant.GROUPS)
def the_service_vm_is_not_ended_under_a_tenant(host: Host) -> None:
    with _under_a_tenant(host):
        for command in ("stop", "destroy"):
            refused = host.fmctl("service-vm", command, status=4)
            want(steps.TENANT in refused, refused)


@scenario(Variant.GROUPS)
def the_daemon_is_stopped_and_libvirtd_restarted(host: Host) -> None:
    with _under_a_tenant(host):
        host.sh("systemctl stop fmctld")
        host.sh("systemctl restart libvirtd")
        want(steps.unit_pid(host, "fmctld") == 0, "the daemon still runs")
        host.sh("systemctl start fmctld")


@scenario(Variant.GROUPS)
def a_daemon_that_is_stuck_is_killed_and_started_again(host: Host) -> None:
    folder = "/run/systemd/system/fmctld.service.d"
    host.sh(
        f"mkdir -p {folder} && printf '[Service]\\nWatchdogSec=15\\n' >{folder}/lab.conf && systemctl daemon-reload"
    )
    with _under_a_tenant(host):
        host.sh("systemctl restart fmctld")
        old = steps.unit_pid(host, "fmctld")
        host.sh(f"kill -STOP {old}")
        host.eventually("systemd starts it again", lambda: steps.unit_pid(host, "fmctld") not in (0, old), within=120)
        host.sh("journalctl --unit fmctld --boot | grep --quiet 'Watchdog timeout'")
    host.sh(f"rm -r {folder} && systemctl daemon-reload && systemctl restart fmctld")


@scenario(Variant.GROUPS)
def fabric_manager_is_killed(host: Host) -> None:
    with _under_a_tenant(host), steps.mid_activation(host):
        old = steps.fabric_manager(host)
        steps.guest(host, f"kill -9 {old}")
        host.eventually("the agent starts it again", lambda: steps.fabric_manager(host) not in (0, old), within=90)


@scenario(Variant.GROUPS)
def its_guest_reboots(host: Host) -> None:
    steps.tenant(host, PARTITION)
    before = steps.generation(host)
    old = steps.qemu(host)
    steps.guest(host, "(/usr/bin/busybox sleep 1; echo b >/proc/sysrq-trigger) </dev/null >/dev/null 2>&1 &")
    host.eventually("the daemon starts another life of it", lambda: steps.qemu(host) not in (0, old), within=90)
    steps.ready(host)
    want(steps.has_tenant(host), "the tenant's VM is gone")
    want(steps.generation(host) > before, "the fabric generation was not raised")


@scenario(Variant.GROUPS)
def the_service_vm_is_killed(host: Host) -> None:
    steps.tenant(host, PARTITION)
    before = steps.generation(host)
    with steps.resets(host, starts=1, ends=1), steps.mid_activation(host):
        old = steps.qemu(host)
        host.sh(f"kill -9 {old}")
        host.eventually("the daemon starts it again", lambda: steps.qemu(host) not in (0, old), within=90)
        steps.ready(host)
    want(steps.has_tenant(host), "the tenant's VM is gone")
    want(steps.generation(host) > before, "the fabric generation was not raised")


@contextlib.contextmanager
def _under_a_tenant(host: Host) -> Iterator[None]:
    """What the block does resets no function, and harms neither the tenant's VM nor its partition."""
    steps.tenant(host, PARTITION)
    before = steps.qemu(host, steps.TENANT), steps.qemu(host)
    with steps.resets(host):
        yield
        steps.ready(host)
        host.eventually("the partition is active", lambda: PARTITION in steps.active(host), within=60)
    want((steps.qemu(host, steps.TENANT), steps.qemu(host)) == before, "a VM is not the one that it was")
