# SPDX-License-Identifier: Apache-2.0
"""What a lease gives to a VM: read from the daemon's answer, and refused where it gives nothing or not all is known.

`core.tenantvm` and `core.cdi` tell it to VM managers and to container runtimes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fmctl.core.errors import FmctlError, MapUnverified
from fmctl.core.lease import GpuDevice, Lease, LeaseState
from fmctl.core.leased import Leased
from fmctl.core.pci import Bdf


@dataclass(frozen=True)
class Grant:
    """The GPUs of one ACTIVE lease, each with its address; those that are spare are not among them.

    `partitions` are ids in Fabric Manager's table. `vm_uuid` is that of the VM that the lease is for, empty for any.
    """

    lease_id: str
    owner: str
    partitions: tuple[int, ...]
    gpus: tuple[GpuDevice, ...]
    vm_uuid: str = ""

    @property
    def addresses(self) -> Mapping[int, Bdf]:
        """The address of each GPU by its physical id."""
        return {gpu.physical_id: gpu.address for gpu in self.gpus if gpu.address is not None}

    @property
    def vfio_paths(self) -> tuple[str, ...]:
        """What whoever has these GPUs opens, by IOMMU group; raises FmctlError where a group is not known."""
        for gpu in self.gpus:
            if gpu.iommu_group is None:
                raise FmctlError(
                    f"the IOMMU group of GPU {gpu.physical_id} of lease {self.lease_id} is not known",
                    why="the GPU does not answer, or the host has no IOMMU on",
                    fix="see `fmctl inventory` and `fmctl host check`",
                )
        return tuple(dict.fromkeys(gpu.vfio_path for gpu in sorted(self.gpus, key=lambda gpu: gpu.iommu_group or 0)))


def of(leased: Leased) -> Grant:
    """What a lease gives; raises FmctlError unless it is ACTIVE, and MapUnverified where an address is not known."""
    lease = leased.lease
    if lease.state is not LeaseState.ACTIVE:
        raise _gives_nothing(lease)
    known = {device.physical_id for device in leased.devices if device.address is not None}
    unknown = sorted(set(lease.gpus) - known)
    if unknown:
        raise MapUnverified(
            f"where the GPUs of lease {lease.id} are is not known",
            why=f"the daemon does not know the address of GPU {', '.join(map(str, unknown))}",
            fix="set gpu_map for the daemon, and see `fmctl lease show`",
        )
    gpus = tuple(device for device in leased.devices if device.physical_id in lease.gpus)
    return Grant(lease.id, lease.owner, lease.partitions, gpus, lease.vm_uuid)


def _gives_nothing(lease: Lease) -> FmctlError:
    ends = lease.state.over or lease.state is LeaseState.RELEASING
    return FmctlError(
        f"lease {lease.id} gives no GPUs to a VM",
        why=f"it is {lease.state.value}" + (f": {lease.reason}" if lease.reason else ""),
        fix="make another by `fmctl allocate`" if ends else "wait until `fmctl lease show` says that it is active",
    )
