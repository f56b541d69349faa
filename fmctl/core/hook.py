# SPDX-License-Identifier: Apache-2.0
"""Whether libvirt may start a domain, by its document, the book and the board alone: the second lock of the gate.

The first is the kernel, to which `control.parking` leaves nothing to open. Libvirt calls its hook before it starts a
domain and waits, and answers nothing about that domain meanwhile (libvirt.org/hooks.html); `control.hook` answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from fmctl.core import clean
from fmctl.core.answers import HookLoad
from fmctl.core.asking import Asking, Decision, HostDevice, Verdict
from fmctl.core.book import Book
from fmctl.core.domain import Domain
from fmctl.core.inventory import Inventory, Role
from fmctl.core.lease import Lease, LeaseState
from fmctl.core.pci import Bdf
from fmctl.core.rules import NonGpuDomains

NOT_CALLED = {
    HookLoad.NOT_INSTALLED: ("libvirt has no hook of fmctl", "`make install` puts it in its place"),
    HookLoad.NOT_LOADED: ("libvirt has not called fmctl's hook since it started", "`systemctl restart libvirtd`"),
}
"""Why libvirt does not call the hook, and what to do."""


@dataclass(frozen=True)
class Board:
    """Which functions of the host are the board's, and the physical ids of its GPUs, as far as a map tells them."""

    roles: Mapping[Bdf, Role] = field(default_factory=dict)
    gpus: Mapping[Bdf, int] = field(default_factory=dict)

    @classmethod
    def of(cls, inventory: Inventory, gpus: Mapping[int, Bdf]) -> Board:
        """The board of an inventory; `gpus` are the addresses by physical id."""
        roles = {device.function.bdf: device.role for device in inventory.devices}
        return cls(roles, {bdf: gpu for gpu, bdf in gpus.items() if roles.get(bdf) is Role.GPU})


@dataclass(frozen=True)
class Known:
    """What is known when a domain asks.

    `active` are the partitions that were last seen active, `generation` the fabric generation, and `ready` the leases
    whose GPUs are made ready for their VMs. `service_vm` is the Service VM's UUID, and `starting` the fingerprint with
    which fmctl starts it; None where someone else does.
    """

    board: Board
    book: Book
    active: frozenset[int] = frozenset()
    generation: int = 0
    ready: frozenset[str] = frozenset()
    service_vm: str = ""
    starting: str | None = ""


@dataclass(frozen=True)
class Rules:
    """The settings that decide."""

    non_gpu_domains: NonGpuDomains = NonGpuDomains.ALLOW
    lease_on_start: bool = False


def decide(asking: Asking, known: Known, rules: Rules) -> Decision:
    """Whether the domain may start."""
    named = [device for device in asking.devices if device.bdf in known.board.roles]
    if asking.domain.uuid == known.service_vm:
        return _service_vm(asking.domain, named, known)
    if not named:
        return _without_gpus(rules)
    managed = [device.bdf for device in named if device.managed]
    if managed:
        return _refuse(
            f"managed='yes' would let libvirt take {_listed(managed)} from fmctl, and give it to a host driver later",
            "say managed='no' in the domain's document",
        )
    others = [device.bdf for device in named if known.board.roles[device.bdf] is not Role.GPU]
    if others:
        kinds = ", ".join(f"{known.board.roles[bdf].value} {bdf}" for bdf in others)
        return _refuse(f"it names {kinds}, which only the Service VM gets", "take it out of the domain's document")
    unknown = [device.bdf for device in named if device.bdf not in known.board.gpus]
    if unknown:
        return _refuse(f"no verified GPU map tells which GPU is at {_listed(unknown)}", "see `fmctl gpumap show`")
    return _with_gpus(asking.domain, {known.board.gpus[device.bdf] for device in named}, known, rules)


def of_start(vm_uuid: str) -> str:
    """What the request id of a lease begins with that is made as that VM starts, and ends as it does."""
    return f"libvirt-start-{vm_uuid}-"


def _service_vm(domain: Domain, named: Iterable[HostDevice], known: Known) -> Decision:
    gpus = [device.bdf for device in named if known.board.roles[device.bdf] is Role.GPU]
    if gpus:
        return _refuse(f"it has the Service VM's UUID and names the GPU {_listed(gpus)}, which no Service VM gets")
    if known.starting is not None and (not known.starting or domain.fingerprint != known.starting):
        return _refuse("it has the Service VM's UUID, and fmctl does not start it", "use `fmctl service-vm start`")
    return Decision(Verdict.START)


def _without_gpus(rules: Rules) -> Decision:
    if rules.non_gpu_domains is NonGpuDomains.REFUSE:
        return _refuse("it has no GPU of the board, and this host is for VMs that have", "see non_gpu_domains")
    warns = rules.non_gpu_domains is NonGpuDomains.WARN
    return Decision(Verdict.START, warning="it has no GPU of the board, for which this host is" if warns else "")


def _with_gpus(domain: Domain, gpus: set[int], known: Known, rules: Rules) -> Decision:
    if aside := clean.aside(known.book, gpus):
        return _refuse(f"the GPUs {_listed(aside)} are set aside", "see `fmctl capacity`")
    ordered = tuple(sorted(gpus))
    lease = _lease(domain.uuid, gpus, known.book)
    if lease is not None:
        if late := _not_active(lease, known):
            return _refuse(late, "start the VM once `fmctl list` shows it active")
        verdict = Verdict.START if lease.id in known.ready else Verdict.PREPARE
        return Decision(verdict, lease_id=lease.id, gpus=ordered)
    others = [*_others(domain.uuid, gpus, known.book)]
    if rules.lease_on_start and not others:
        return Decision(Verdict.PREPARE, gpus=ordered)
    return _refuse(
        f"no active lease holds exactly the GPUs {_listed(gpus)} for the VM {domain.uuid}"
        + "".join(f"; {other}" for other in others),
        f"fmctl allocate --gpu-ids {','.join(map(str, ordered))} --vm {domain.uuid}",
    )


def _lease(vm_uuid: str, gpus: set[int], book: Book) -> Lease | None:
    """The one active lease that holds exactly these GPUs for that VM."""
    return next(
        (
            lease
            for lease in book.leases.values()
            if lease.state is LeaseState.ACTIVE and lease.vm_uuid == vm_uuid and set(lease.gpus) == gpus
        ),
        None,
    )


def _not_active(lease: Lease, known: Known) -> str:
    """Why the lease's GPUs would have no NVLink now; empty where they have."""
    missing = [partition for partition in lease.partitions if partition not in known.active]
    if missing:
        return f"partition {_listed(missing)} of lease {lease.id} was not seen active"
    if lease.generation < known.generation:
        return f"the partitions of lease {lease.id} are activated again, since Fabric Manager was started fresh"
    return ""


def _others(vm_uuid: str, gpus: set[int], book: Book) -> Iterator[str]:
    """The leases that stand in the way, in words."""
    for lease in book.leases.values():
        common = gpus.intersection(lease.held)
        if lease.vm_uuid == vm_uuid:
            what = "is for this VM" if lease.state is LeaseState.ACTIVE else f"is for this VM, and {lease.state.value}"
            yield f"lease {lease.id} {what}, with the GPUs {_listed(lease.gpus)}"
        elif common:
            whose = f"the VM {lease.vm_uuid}" if lease.vm_uuid else "no VM in particular"
            yield f"lease {lease.id} of {lease.owner} holds {_listed(common)}, for {whose}"


def _refuse(why: str, fix: str = "") -> Decision:
    return Decision(Verdict.REFUSE, why, fix)


def _listed(items: Iterable[object]) -> str:
    return ", ".join(sorted(map(str, items)))
