# SPDX-License-Identifier: Apache-2.0
"""What scenarios need before they start, each quick where it is so already."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

from tests.lab.host import Host, want

CONSOLE = "/var/log/libvirt/qemu/fmctl-service-vm-console.log"
SERVICE_VM = "fmctl-service-vm"
TENANT = "tenant"
TENANT_CONSOLE = "/var/log/libvirt/qemu/tenant-console.log"
BOARD = ("--platform", "/lab/lab.yaml")
READY_WITHIN = 120.0
"""Seconds from nothing to ready: QEMU starts in 10 s and the guest boots in 15 s, on an idle machine."""


def prepared(host: Host) -> None:
    """An operator has set the host up, as fmctl says."""
    host.fmctl("host", "prepare", "--write")
    host.sh("modprobe -a vfio-pci vhost_vsock")


def serving(host: Host) -> None:
    """The daemon runs."""
    prepared(host)
    host.sh("systemctl start fmctld")


def ready(host: Host) -> None:
    """The daemon runs, and Fabric Manager takes calls in the Service VM."""
    serving(host)
    host.fmctl("wait", "--for", "ready", "--timeout", str(int(READY_WITHIN)), timeout=READY_WITHIN + 20)


def inactive(host: Host) -> None:
    """Ready, and no partition is active."""
    ready(host)
    for partition in active(host):
        host.fmctl("deactivate", str(partition))


def active(host: Host) -> list[int]:
    """The ids of the active partitions."""
    return [row["id"] for row in host.ask("list")["partitions"] if row["status"] == "active"]


def switches(host: Host) -> list[str]:
    """The addresses of what the Service VM is given."""
    devices = host.ask("inventory", *BOARD)["devices"]
    return [device["address"] for device in devices if device["role"] != "gpu"]


def guest(host: Host, command: str) -> str:
    """Run a line of sh in the Service VM; what it printed."""
    return host.sh(f"lab-guest {json.dumps(command)}")


def guest_pid(host: Host, command: str) -> int:
    """The process of `python3 -m COMMAND` in the Service VM; 0 where there is none, or none can be asked for."""
    answer = host.run("lab-guest 'ps -o pid,args'")
    for line in answer.out.splitlines():
        pid, _, arguments = line.strip().partition(" ")
        if f"-m {command} " in arguments:
            return int(pid)
    return 0


def unit_pid(host: Host, unit: str) -> int:
    """The main process of a systemd unit; 0 where there is none."""
    return int(host.sh(f"systemctl show --property MainPID --value {unit}"))


def qemu(host: Host, domain: str = SERVICE_VM) -> int:
    """A domain's QEMU; 0 where there is none."""
    return int(host.run(f"cat /run/libvirt/qemu/{domain}.pid").out or 0)


def tenant(host: Host, partition: int) -> None:
    """A tenant's VM runs with the GPUs of that partition, which is active."""
    ready(host)
    host.fmctl("activate", str(partition))
    if has_tenant(host):
        return
    gpus = next(row["gpus"] for row in host.ask("list")["partitions"] if row["id"] == partition)
    addresses = ",".join(gpu_addresses(host)[gpu] for gpu in gpus)
    host.fmctl("vfio", "bind", *BOARD, "--gpus", addresses)
    xml = host.fmctl("tenant-vm", "render", *BOARD, "--name", TENANT, "--gpu-ids", ",".join(map(str, gpus)))
    host.sh(f"cat >/tmp/{TENANT}.xml <<'END'\n{bootable(xml)}END\nvirsh create /tmp/{TENANT}.xml", timeout=120)
    host.eventually("the tenant's guest sees its GPUs", lambda: _tenant_says(host, f"up with {len(gpus)} GPUs"), 60)


def no_tenant(host: Host) -> None:
    """No tenant's VM runs, and no partition is active."""
    if has_tenant(host):
        host.sh(f"virsh destroy {TENANT}")
    host.fmctl("vfio", "unbind", *BOARD, "--gpus", ",".join(gpu_addresses(host).values()))
    inactive(host)


def has_tenant(host: Host) -> bool:
    """Whether the tenant's VM runs."""
    return host.run(f"virsh domstate {TENANT}").out.strip() == "running"


def bootable(xml: str) -> str:
    """A tenant's document with what its owner brings: something to boot, and where its console goes."""
    images = "/var/lib/libvirt/images"
    boot = f"<kernel>{images}/vmlinuz</kernel><initrd>{images}/tenant-vm.cpio</initrd>"
    boot += "<cmdline>console=ttyS0 quiet</cmdline>"
    serial = "<serial type='pty'>"
    return xml.replace("</type>", f"</type>{boot}", 1).replace(serial, f"{serial}<log file='{TENANT_CONSOLE}'/>", 1)


def _tenant_says(host: Host, text: str) -> bool:
    return host.run(f"grep --quiet --text '{text}' {TENANT_CONSOLE}").status == 0


def gpu_addresses(host: Host) -> dict[int, str]:
    """The GPUs' addresses by physical id."""
    lines = host.sh("grep '^[0-9]' /etc/fmctl/gpu-map.yaml").splitlines()
    return {int(number): address.strip(" '") for number, _, address in (line.partition(":") for line in lines)}


@contextlib.contextmanager
def resets(host: Host, wanted: int) -> Iterator[None]:
    """While the block runs, each of the Service VM's functions is reset that often: its QEMU does so twice as it
    starts, and the kernel once as it ends.
    """
    addresses = switches(host)
    host.sh("lab-resets start")
    yield
    counts = json.loads(host.sh("lab-resets show"))
    seen = {address: counts.get(address, 0) for address in addresses}
    want(set(seen.values()) == {wanted}, f"{wanted} resets of each function are wanted, seen were {seen}")
