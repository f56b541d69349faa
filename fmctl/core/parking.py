# SPDX-License-Identifier: Apache-2.0
"""Which GPUs nobody may open now, and who has open what is not theirs. `control.parking` acts on these decisions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from fmctl.core.book import Book
from fmctl.core.inventory import Role
from fmctl.core.lease import Lease
from fmctl.core.pci import Bdf
from fmctl.core.vfio import VFIO_PCI, Usage


@dataclass(frozen=True)
class Alarm:
    """A function that a process has open which was not given it; `gpu` is its physical id, None of another function."""

    gpu: int | None
    text: str


def alarms(usages: Iterable[Usage], gpus: Mapping[Bdf, int], book: Book, service_vm: str) -> tuple[Alarm, ...]:
    """What is open without right, as far as the verified map `gpus` tells, or no lease holds any GPU.

    `service_vm` is the UUID of fmctl's own Service VM, empty where it keeps none.
    """
    return tuple(_alarms(usages, gpus, book.held, service_vm))


def _alarms(
    usages: Iterable[Usage], gpus: Mapping[Bdf, int], held: Mapping[int, Lease], service_vm: str
) -> Iterator[Alarm]:
    for usage in usages:
        gpu = gpus.get(usage.function.bdf)
        unknown = gpu is None and bool(held) if usage.role is Role.GPU else not service_vm
        if unknown or not usage.is_held:
            continue
        vms = {holder.vm_uuid for holder in usage.holders or () if holder.vm_uuid}
        if usage.role is not Role.GPU:
            why = "" if service_vm in vms else "only the Service VM may have it"
        else:
            why = _why(gpu, None if gpu is None else held.get(gpu), vms)
        if why:
            yield Alarm(gpu, f"{usage}: {why}")


def _why(gpu: int | None, lease: Lease | None, vms: Collection[str]) -> str:
    """Why a GPU is not for who has it; empty where it is, or where nothing tells whose VM that is."""
    if lease is None:
        return "no lease holds it"
    if gpu in lease.spare:
        return f"lease {lease.id} gives it to nobody"
    if lease.vm_uuid and vms and set(vms) != {lease.vm_uuid}:
        return f"lease {lease.id} holds it for the VM {lease.vm_uuid}"
    return ""


def to_park(
    usages: Iterable[Usage], spared: Collection[int | None], parked: Collection[Bdf] = (), *, from_host: bool = True
) -> tuple[Bdf, ...]:
    """The GPUs that are to be parked: those that nobody has open, but those of the spared IOMMU groups.

    One that is in `parked` was seen so, and is again only if it has a driver since. Without `from_host` none is taken
    from a driver of the host, whose user nobody can see.
    """
    return tuple(
        usage.function.bdf
        for usage in usages
        if usage.role is Role.GPU
        and not usage.is_held
        and usage.function.iommu_group not in spared
        and (usage.function.driver or usage.function.bdf not in parked)
        and (from_host or usage.function.driver in ("", VFIO_PCI))
    )
