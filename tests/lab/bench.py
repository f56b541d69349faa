# SPDX-License-Identifier: Apache-2.0
"""How long the Service VM takes until its agent answers, beside the least that the same VM can do."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import click

from tests.lab import steps
from tests.lab.host import Host, want

LIMIT = 3.0
"""The highest ratio."""
ROUNDS = 3
TIMEOUT = 240
BARE = "bare"
ANSWERED = "the Service VM is agent up|Fabric Manager is not started"
"""What the daemon logs once the agent has answered it."""
CONSOLE = "/var/log/libvirt/qemu/bare-console.log"

DOMAIN = f"""\
<domain type='kvm'>
  <name>{BARE}</name>
  <memory unit='MiB'>384</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{{kernel}}</kernel>
    <initrd>/var/lib/libvirt/images/bare.cpio</initrd>
    <cmdline>console=ttyS0 panic=-1 quiet</cmdline>
  </os>
  <features><acpi/><apic/></features>
  <cpu mode='host-passthrough' check='none' migratable='off'/>
  <devices>
    <serial type='file'><source path='{CONSOLE}' append='on'/><target port='0'/></serial>
    <memballoon model='none'/>
  </devices>
</domain>
"""
"""Of the size that tests/lab/etc/fmctl/fmctld.yaml gives to the Service VM, and with its kernel."""


def run(host: Host, image: Path) -> int:
    """Print both figures, each as a line of JSON; the exit status."""
    host.begin()
    steps.ready(host)
    ours, bare = [], []
    for _ in range(ROUNDS):
        steps.stopped(host)
        bare.append(_bare(host))
        ours.append(_ready(host))
    value, reference = statistics.median(ours), statistics.median(bare)
    ratio = value / reference
    figures = {"name": "servicevm_ready", "value": round(value, 1), "unit": "s", "reference": round(reference, 1)}
    click.echo(json.dumps({**figures, "ratio": round(ratio, 2), "limit": LIMIT, "runs": [ours, bare]}))
    sizes = {file.name: round(file.stat().st_size / 2**20, 1) for file in sorted(image.iterdir())}
    click.echo(
        json.dumps({"name": "image_size", "value": round(sum(sizes.values()), 1), "unit": "MiB", "files": sizes})
    )
    return 0 if ratio <= LIMIT else 1


def _ready(host: Host) -> float:
    """Seconds from QEMU's start until the agent answered the daemon, whose two loops ask it for different things."""
    seconds = _watched(host, steps.SERVICE_VM, "-", ANSWERED, "fmctl service-vm start --timeout 180")
    steps.ready(host)
    return seconds


def _bare(host: Host) -> float:
    kernel = f"{steps.STORE}/{steps.image(host)}/vmlinuz"
    host.sh(f"cat >/tmp/bare.xml <<'END'\n{DOMAIN.format(kernel=kernel)}END")
    seconds = _watched(host, BARE, CONSOLE, "lab: bare", "virsh create /tmp/bare.xml")
    host.sh(f"virsh destroy {BARE}")
    return seconds


def _watched(host: Host, domain: str, file: str, text: str, start: str) -> float:
    watch = f"lab-boot {domain} {file} '{text}' {TIMEOUT} >/tmp/seconds"
    answer = host.run(f"{watch} & {start} && wait $! && cat /tmp/seconds", TIMEOUT + 30)
    want(answer.status == 0, f"`{start}` was not seen to end\n{answer.out}{answer.err}")
    return float(answer.out.split()[-1])
