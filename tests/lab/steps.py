# SPDX-License-Identifier: Apache-2.0
"""What scenarios need before they start, each quick where it is so already."""

from __future__ import annotations

import contextlib
import functools
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.lab import guests
from tests.lab.channel import Answer
from tests.lab.host import Host, want

CONSOLE = "/var/log/libvirt/qemu/fmctl-service-vm-console.log"
STORE = "/var/lib/fmctl/images"
SERVICE_VM = "fmctl-service-vm"
TENANT = "tenant"
TENANT_MIB = 192
TENANT_CONSOLE = "/var/log/libvirt/qemu/tenant-console.log"
BOARD = ("--platform", "/lab/lab.yaml")
IMAGES = "/lab/service-vm"
LOST = "its domain ended before it was ready"
"""What fmctl says of a guest that the emulation ended."""
PATIENCE = 180
"""Seconds that a start or a stop of the Service VM may take; QEMU alone takes ten to start."""
READY_WITHIN = 240.0
"""Seconds from nothing to ready: about 50 on an idle machine, and far more on one that others use."""


def prepared(host: Host) -> None:
    """An operator has set the host up, as fmctl says."""
    if host.run("test -e /run/lab-prepared").status:
        host.fmctl("host", "prepare", "--write")
        # Libvirt looks for hooks when it starts, and fmctl may have been installed after that.
        host.sh("modprobe -a vfio-pci vhost_vsock && systemctl try-restart libvirtd && touch /run/lab-prepared")


def serving(host: Host) -> None:
    """The daemon runs, and will when the host boots."""
    prepared(host)
    added(host, guests.FIRST)
    # To enable it makes systemd read all its units anew.
    host.sh("systemctl is-active --quiet fmctld || systemctl enable --now fmctld")


def added(host: Host, image: str) -> None:
    """That image is in the store; to check it anew takes seconds under emulation."""
    if host.run(f"test -d {STORE}/{image}").status:
        host.fmctl("image", "add", f"{IMAGES}/{image}", timeout=120)


def upgrade(host: Host, image: str, *, status: int = 0) -> str:
    """Let the Service VM take that image; what fmctl said of it."""
    added(host, image)
    command = ("service-vm", "upgrade", image)
    answer = host.try_fmctl(*command, timeout=2 * READY_WITHIN)
    if status == 0 and LOST in answer.err:
        host.note("the emulation lost the Service VM as it booted; the upgrade is asked for once more")
        answer = host.try_fmctl(*command, timeout=2 * READY_WITHIN)
    want(answer.status == status, f"the upgrade ended with {answer.status}, not {status}\n{answer.out}{answer.err}")
    return answer.err if status else answer.out


def stopped(host: Host) -> None:
    """The Service VM was shut down."""
    host.fmctl("service-vm", "stop", "--timeout", str(PATIENCE), timeout=PATIENCE + 20)


def started(host: Host, *, status: int = 0) -> str:
    """Start the Service VM; what fmctl said of it."""
    return host.fmctl("service-vm", "start", "--timeout", str(PATIENCE), status=status, timeout=PATIENCE + 20)


def ready(host: Host) -> None:
    """The daemon runs, and Fabric Manager takes calls in the Service VM."""
    answer = host.try_fmctl("status", "--output", "json")
    if answer.status == 0 and json.loads(answer.out)["service_vm"]["state"] == "ready":
        mapped(host)
        return
    serving(host)
    if host.run(f"test -e {STORE}/current").status:
        upgrade(host, guests.FIRST)
    host.fmctl("wait", "--for", "ready", "--timeout", str(int(READY_WITHIN)), timeout=READY_WITHIN + 20)
    mapped(host)


def mapped(host: Host) -> None:
    """The GPU map counts: stand-ins do not tell which GPU they are, so a person accepts what the file says."""

    def shown() -> Any:
        found = host.ask("gpumap", "show")
        return found if found["state"] == "verified" or found["fingerprint"] else None

    found = host.eventually("the daemon has looked at the board's GPUs", shown, 30)
    if found["state"] != "verified":
        host.fmctl("gpumap", "accept", "--fingerprint", found["fingerprint"])


def inactive(host: Host) -> None:
    """Ready, and no partition is active."""
    ready(host)
    for partition in active(host):
        host.fmctl("deactivate", str(partition))


def active(host: Host) -> list[int]:
    """The ids of the active partitions."""
    return [row["id"] for row in host.ask("list")["partitions"] if row["status"] == "active"]


@functools.cache
def switches(host: Host) -> list[str]:
    """The addresses of what the Service VM is given, which do not change."""
    devices = host.ask("inventory", *BOARD)["devices"]
    return [device["address"] for device in devices if device["role"] != "gpu"]


def guest(host: Host, command: str) -> str:
    """Run a line of sh in the Service VM; what it printed."""
    return host.sh(f"lab-guest {json.dumps(command)}")


def guest_pid(host: Host, command: str) -> int:
    """The process of `python3 -m COMMAND` in the Service VM; 0 where there is none, or none can be asked for."""
    answer = host.run("lab-guest '/usr/bin/busybox ps -o pid,args'")
    for line in answer.out.splitlines():
        pid, _, arguments = line.strip().partition(" ")
        if f"-m {command} " in arguments:
            return int(pid)
    return 0


def fabric_manager(host: Host) -> int:
    """The simulated Fabric Manager's process in the Service VM; 0 where there is none."""
    return guest_pid(host, "fmctl sim nv-fabricmanager")


def unit_pid(host: Host, unit: str) -> int:
    """The main process of a systemd unit; 0 where there is none."""
    return int(host.sh(f"systemctl show --property MainPID --value {unit}"))


def qemu(host: Host, domain: str = SERVICE_VM) -> int:
    """A domain's QEMU; 0 where there is none."""
    return int(host.run(f"cat /run/libvirt/qemu/{domain}.pid").out or 0)


def tenant(host: Host, partition: int, *, up: bool = True, confined: bool = False) -> None:
    """A tenant's VM runs with the GPUs of that partition, which is active; its guest is `up` where that matters."""
    ready(host)
    leased(host, partition)
    if has_tenant(host):
        return
    gpus = gpus_of(host, partition)
    answer = create(host, *gpus, confined=confined)
    want(answer.status == 0, f"the tenant's VM does not start\n{answer.err}")
    if up:
        host.eventually("the tenant's guest sees its GPUs", lambda: _tenant_says(host, f"up with {len(gpus)} GPUs"), 60)


def leased(host: Host, partition: int, vm: str = "") -> str:
    """The lease of that partition, for the tenant's VM or for the one with that UUID."""
    host.fmctl("activate", str(partition))
    lease = next(lease for lease in leases(host) if partition in lease["partitions"])
    host.fmctl("lease", "update", lease["id"], "--vm", vm or tenant_uuid(host))
    return str(lease["id"])


def gpus_of(host: Host, partition: int) -> list[int]:
    """The physical ids of a partition's GPUs."""
    found: list[int] = next(row["gpus"] for row in host.ask("list")["partitions"] if row["id"] == partition)
    return found


@functools.cache
def tenant_uuid(host: Host) -> str:
    """The UUID of the tenant's VM, which is made of its name."""
    document = host.fmctl("tenant-vm", "render", *BOARD, "--name", TENANT, "--gpu-ids", "1")
    return document.partition("<uuid>")[2].partition("</uuid>")[0]


def document(host: Host, *gpus: int, confined: bool = False) -> str:
    """Write the document of the tenant's VM with these GPUs; its path."""
    xml = host.fmctl("tenant-vm", "render", *BOARD, "--name", TENANT, "--gpu-ids", ",".join(map(str, gpus)))
    host.sh(f"cat >/tmp/{TENANT}.xml <<'END'\n{bootable(xml, confined=confined)}END\n")
    return f"/tmp/{TENANT}.xml"


def create(host: Host, *gpus: int, confined: bool = False) -> Answer:
    """Let libvirt start the tenant's VM with these GPUs; what came of it."""
    return host.run(f"virsh create {document(host, *gpus, confined=confined)}", timeout=120)


def parked(host: Host, *but: int) -> None:
    """Every GPU but these has no driver, soon."""

    addresses = gpu_addresses(host)
    look = f"cd /sys/bus/pci/devices && ls -d {' '.join(f'{address}/driver' for address in addresses.values())}"
    wanted = {f"{addresses[gpu]}/driver" for gpu in but}
    host.eventually("free GPUs are parked", lambda: {*host.run(look).out.split()} == wanted, within=60)


@contextlib.contextmanager
def mid_activation(host: Host) -> Iterator[None]:
    """Enter the block while Fabric Manager activates a partition for a second tenant, which takes it some seconds.

    Afterwards the same request is answered by one lease that is active, as the leases' partitions alone are.
    """
    asked = ("--count", "2", "--owner", "second", "--request-id", str(uuid.uuid4()))
    ready(host)
    host.eventually("two GPUs are free", lambda: host.try_fmctl("can-allocate", "2").status == 0, within=180)
    host.sh(f"(fmctl allocate {' '.join(asked)} >/tmp/second 2>&1 </dev/null &)")
    journal = "tail --lines 3 /var/lib/fmctl/audit.jsonl | grep --quiet activating"
    host.sh(f"timeout 20 sh -c 'until {journal}; do sleep 0.05; done'")
    yield
    ready(host)
    lease = host.eventually("the request is granted", lambda: _granted(host, *asked), within=240) or {}
    want(lease["state"] == "active", f"the lease is {lease['state']}")
    want([each["id"] for each in leases(host, "second")] == [lease["id"]], "the request was granted twice")
    held = sorted(partition for each in leases(host) for partition in each["partitions"])
    host.eventually(f"active are {held}, which leases hold", lambda: held == active(host), within=60)
    # Its partition stays for a while where a call was given up that may yet take effect.
    host.fmctl("release", lease["id"], "--owner", "second", "--no-wait")


def _granted(host: Host, *asked: str) -> dict[str, Any] | None:
    """The lease that a request gets; None where it must be made again, as while an earlier one is undone."""
    answer = host.try_fmctl("allocate", *asked, "--timeout", "120", "--output", "json", timeout=140)
    want(answer.status in (0, 5), f"the request is refused\n{answer.err}")
    return json.loads(answer.out) if answer.status == 0 else None


def leases(host: Host, owner: str = "") -> list[dict[str, Any]]:
    """The leases of an owner, or of all, as fmctl tells them."""
    listed: list[dict[str, Any]] = host.ask("lease", "list", *(["--owner", owner] if owner else []))["leases"]
    return listed


def no_tenant(host: Host) -> None:
    """No tenant's VM runs, and no partition is active."""
    if has_tenant(host):
        host.sh(f"virsh destroy {TENANT}")
    inactive(host)
    parked(host)


def image(host: Host) -> str:
    """The image in use."""
    return host.sh(f"readlink {STORE}/current").strip()


def generation(host: Host) -> int:
    """How often Fabric Manager was started fresh on this host."""
    return int(host.ask("status")["fabric"]["generation"])


def has_tenant(host: Host) -> bool:
    """Whether the tenant's VM runs."""
    return host.run(f"virsh domstate {TENANT}").out.strip() == "running"


def bootable(xml: str, *, confined: bool) -> str:
    """A tenant's document with what its owner brings: what it boots, its console's log, and ports for later devices.

    It has less memory than a document can ask for: all of it is pinned, page by page, before the guest runs. Unless it
    is `confined`, AppArmor is told nothing of it: to compile the rules takes a quarter of the time of its start here.
    """
    images = "/var/lib/libvirt/images"
    boot = f"<kernel>{images}/vmlinux</kernel><initrd>{images}/tenant-vm.cpio</initrd>"
    boot += "<cmdline>console=ttyS0 quiet</cmdline>"
    serial = "<serial type='pty'>"
    ports = 4 * "<controller type='pci' model='pcie-root-port'/>"
    xml = xml.replace("<memory unit='GiB'>1<", f"<memory unit='MiB'>{TENANT_MIB}<", 1)
    xml = xml.replace("</type>", f"</type>{boot}", 1).replace("</devices>", f"{ports}</devices>", 1)
    if not confined:
        xml = xml.replace("</domain>", "<seclabel type='none' model='apparmor'/></domain>", 1)
    return xml.replace(serial, f"{serial}<log file='{TENANT_CONSOLE}'/>", 1)


def _tenant_says(host: Host, text: str) -> bool:
    return host.run(f"grep --quiet --text '{text}' {TENANT_CONSOLE}").status == 0


@functools.cache
def gpu_addresses(host: Host) -> dict[int, str]:
    """The GPUs' addresses by physical id."""
    lines = host.sh("grep '^[0-9]' /etc/fmctl/gpu-map.yaml").splitlines()
    return {int(number): address.strip(" '") for number, _, address in (line.partition(":") for line in lines)}


@dataclass(frozen=True)
class Lives:
    """How often the Service VM's domain was started, and ended."""

    starts: int
    ends: int

    @property
    def resets(self) -> int:
        """How often each of its functions is reset by that: QEMU does so twice as it starts, the kernel as it ends."""
        return 2 * self.starts + self.ends


def lives(host: Host) -> Lives:
    """How often it was so far, as libvirt's log tells."""
    log = f"/var/log/libvirt/qemu/{SERVICE_VM}.log"
    told = host.run(f"grep --count ': starting up' {log}; grep --count ': shutting down' {log}").out.split()
    return Lives(*map(int, told)) if len(told) == 2 else Lives(0, 0)


@contextlib.contextmanager
def resets(host: Host, *, starts: int = 0, ends: int = 0) -> Iterator[None]:
    """While the block runs, the Service VM is started and ended so often, and each of its functions reset as often as
    that makes it.

    The emulation may end a guest that boots (a processor that QEMU 7.2 emulates loses one now and then): the daemon
    starts it once more, which is told, and counted.
    """
    addresses, before = switches(host), lives(host)
    host.sh("lab-resets start")
    yield
    counts, after = json.loads(host.sh("lab-resets show")), lives(host)
    seen = {address: counts.get(address, 0) for address in addresses}
    lived = Lives(after.starts - before.starts, after.ends - before.ends)
    lost = lived.starts - starts
    if 0 < lost <= 2 and starts and lived.ends == ends + lost:
        host.note("the emulation lost the Service VM as it booted; the daemon started it once more")
        lost = 0
    want(lost == 0, f"the Service VM was started {lived.starts} times and ended {lived.ends} times")
    want(set(seen.values()) == {lived.resets}, f"{lived.resets} resets of each function are wanted, seen were {seen}")
