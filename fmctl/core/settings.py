# SPDX-License-Identifier: Apache-2.0
"""The daemon's settings, a YAML file; the agent's are in `core.agentsettings`, so that it need not know these.

The dataclasses are the whole description: `core.schema` reads a file by them, and prints them with their texts. The
command line overrides single values.
"""

from __future__ import annotations

import dataclasses
import re
from enum import Enum
from pathlib import PurePosixPath
from typing import ClassVar

from fmctl.core.address import Address
from fmctl.core.policy import Policy
from fmctl.core.rules import Firmware, Memory, Mode, NonGpuDomains, Unowned
from fmctl.core.schema import setting
from fmctl.core.values import AbsolutePath, DomainName, LogLevel, Uuid


class DomainType(str, Enum):
    """How libvirt runs a VM: by the processor's virtualisation, or in software, which is for trials alone."""

    KVM = "kvm"
    QEMU = "qemu"


class Boot(str, Enum):
    """How the Service VM boots: a kernel from the host's files, or firmware from its disk."""

    KERNEL = "kernel"
    UEFI = "uefi"


class Restart(str, Enum):
    """When a live Service VM may be restarted by itself."""

    WHEN_IDLE = "when-idle"
    ALWAYS = "always"


@dataclasses.dataclass(frozen=True)
class ServiceVmSettings:
    """The Service VM's domain."""

    managed: bool = setting(
        default=True, doc="false where someone else runs the Service VM; `agent` says where its agent serves then"
    )
    name: DomainName = setting(DomainName("fmctl-service-vm"), doc="the domain's name")
    uuid: Uuid = setting(Uuid("6f0f3b54-8d0c-4d9e-9c1b-0f6d63746c01"), doc="the domain's UUID")
    cid: int = setting(1000, doc="its context id for vsock; no other domain of the host may have it", low=3, high=2**31)
    agent_port: int = setting(6767, doc="the vsock port where its agent serves", low=1, high=2**31)
    domain_type: DomainType = setting(DomainType.KVM, doc="kvm, or qemu for trials without KVM")
    vcpus: int = setting(2, doc="its processors", low=1, high=64)
    memory_mib: int = setting(4096, doc="its memory in MiB, all of it locked", low=256, high=1024 * 1024)
    boot: Boot = setting(Boot.KERNEL, doc="kernel, or uefi to boot the root image by its firmware")
    kernel: AbsolutePath | None = setting(None, doc="its kernel, for boot: kernel")
    initrd: AbsolutePath | None = setting(None, doc="its initial RAM disk, for boot: kernel")
    kernel_arguments: str = setting("console=ttyS0 panic=-1", doc="its kernel's command line, for boot: kernel")
    root_image: AbsolutePath | None = setting(None, doc="its root image, attached read-only; needed for boot: uefi")
    firmware: AbsolutePath = setting(
        AbsolutePath(PurePosixPath("/usr/share/OVMF/OVMF_CODE_4M.fd")), doc="its firmware, for boot: uefi"
    )
    firmware_vars: AbsolutePath = setting(
        AbsolutePath(PurePosixPath("/usr/share/OVMF/OVMF_VARS_4M.fd")),
        doc="the variables that its firmware begins with, for boot: uefi",
    )
    network: str = setting("", doc="the libvirt network of its one network card; empty for no card")
    console_log: AbsolutePath = setting(
        AbsolutePath(PurePosixPath("/var/log/libvirt/qemu/fmctl-service-vm-console.log")),
        doc="the file that its console is written to",
    )
    start_timeout_s: float = setting(
        300.0, doc="seconds from its start within which its agent must answer", low=1, high=3600
    )
    stop_timeout_s: float = setting(60.0, doc="seconds that it has to shut down", low=1, high=3600)
    restart_limit: int = setting(5, doc="restarts within an hour, after which it stays as it is", low=0, high=1000)

    def __post_init__(self) -> None:
        """Refuse what could break out of a document."""
        _refuse_network(self.network)
        if not self.kernel_arguments.isprintable() or not self.kernel_arguments.isascii():
            raise ValueError("kernel_arguments: printable ASCII is wanted")


def _refuse_network(name: str) -> None:
    if name and not re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name):
        raise ValueError(f"network: {name!r} is no name of a libvirt network")


class HugePages(str, Enum):
    """The pages that a tenant VM's memory is made of."""

    NONE = "none"
    MIB_2 = "2M"
    GIB_1 = "1G"

    @property
    def kib(self) -> int:
        """Their size in KiB, 0 for the kernel's ordinary pages."""
        return {HugePages.NONE: 0, HugePages.MIB_2: 2048, HugePages.GIB_1: 1024 * 1024}[self]


class MapRegions(str, Enum):
    """Whether QEMU maps the memory regions of a tenant VM's GPUs."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


@dataclasses.dataclass(frozen=True)
class TenantVmSettings:
    """What `fmctl tenant-vm` makes tenant VMs of, where it is not told otherwise."""

    domain_type: DomainType = setting(DomainType.KVM, doc="kvm, or qemu for trials without KVM")
    emulator: AbsolutePath | None = setting(
        None, doc="QEMU's program; without one libvirt chooses, and qemu-system-x86_64 is asked for its version"
    )
    vcpus: int = setting(16, doc="processors, which must divide evenly over the GPUs' NUMA nodes", low=1, high=255)
    memory_gib: int = setting(
        64, doc="memory in GiB, which must divide evenly over the GPUs' NUMA nodes", low=1, high=64 * 1024
    )
    huge_pages: HugePages = setting(HugePages.NONE, doc="pages of its memory: none, 2M or 1G")
    firmware: AbsolutePath | None = setting(
        AbsolutePath(PurePosixPath("/usr/share/OVMF/OVMF_CODE_4M.fd")),
        doc="its UEFI firmware; without one SeaBIOS boots, which may find no room for large regions",
    )
    firmware_vars: AbsolutePath = setting(
        AbsolutePath(PurePosixPath("/usr/share/OVMF/OVMF_VARS_4M.fd")),
        doc="the variables that its firmware begins with",
    )
    network: str = setting("", doc="the libvirt network of its one network card; empty for no card")
    map_regions: MapRegions = setting(
        MapRegions.AUTO,
        doc="whether QEMU maps the GPUs' memory regions: always, never (x-no-mmap, which forbids other devices to reach"
        " them over PCI Express), or auto: unless QEMU is older than 10.1 and would take minutes to map a large one",
    )

    def __post_init__(self) -> None:
        """Refuse what could break out of a document."""
        _refuse_network(self.network)


@dataclasses.dataclass(frozen=True)
class CleanSettings:
    """What is done to a GPU between two tenants. A command's last arguments are the GPU's PCI address and device id."""

    reset_timeout_s: float = setting(
        0.0, doc="seconds that a reset may take; 0 for what the platform says", low=0, high=3600
    )
    memory: Memory = setting(
        Memory.RESET_ONLY,
        doc="how its memory is made sure of: reset-only (which is recorded as unproven), or command",
    )
    memory_command: tuple[str, ...] = setting((), doc="for memory: command; ends with 0 where the memory is clean")
    memory_timeout_s: float = setting(600.0, doc="seconds that it may take", low=1, high=86400)
    firmware: Firmware = setting(
        Firmware.RECORD,
        doc="evidence of its firmware: off, record, or enforce, which quarantines a GPU without it or not on the list",
    )
    firmware_command: tuple[str, ...] = setting(
        (), doc="prints the SHA-256 of the firmware; without one the PCI ROM is read, which many devices lack"
    )
    firmware_timeout_s: float = setting(60.0, doc="seconds that it may take", low=1, high=3600)
    firmware_list: AbsolutePath | None = setting(
        None, doc="a YAML file with the firmware that is allowed, such as '10de:2330': [SHA-256, ...]"
    )
    deactivate_timeout_s: float = setting(
        600.0,
        doc="seconds for which Fabric Manager may refuse to deactivate a lease's partition, before its GPUs are"
        " quarantined",
        low=1,
        high=86400,
    )

    def __post_init__(self) -> None:
        """Refuse what would quarantine every GPU."""
        if (self.memory is Memory.COMMAND) != bool(self.memory_command):
            raise ValueError("memory: command and memory_command go together")
        if self.firmware is Firmware.ENFORCE and self.firmware_list is None:
            raise ValueError("firmware: enforce needs firmware_list")


@dataclasses.dataclass(frozen=True)
class DaemonSettings:
    """The daemon on the host."""

    FILE: ClassVar[str] = "/etc/fmctl/fmctld.yaml"

    listen: Address = setting(Address.parse("unix:/run/fmctl/fmctld.sock"), doc="where the daemon serves: unix:PATH")
    socket_group: str = setting("", doc="group that may call, by name; empty for the group the daemon runs as")
    agent: Address | None = setting(
        None,
        doc="where the agent serves, with service_vm.managed: false: unix:PATH, HOST:PORT or vsock:CID:PORT",
    )
    platform: str = setting(
        "",
        doc="the board, by name or by path of a platform file; empty to know it by the host's devices, or by Fabric"
        " Manager's table",
    )
    service_vm: ServiceVmSettings = setting(ServiceVmSettings(), doc="the Service VM's domain")
    service_vm_restart: Restart = setting(
        Restart.WHEN_IDLE,
        doc="when a live Service VM that cannot be reached is restarted: when-idle (no VM holds two GPUs) or always",
    )
    clean: CleanSettings = setting(CleanSettings(), doc="what is done to a GPU between two tenants")
    tenant_vm: TenantVmSettings = setting(TenantVmSettings(), doc="what `fmctl tenant-vm` makes tenant VMs of")
    libvirt_uri: str | None = setting(
        None,
        doc="how libvirt is reached, by which tenants' VMs are followed; by default qemu:///system, but where the"
        " Service VM is not managed only if libvirt's socket is there as the daemon starts",
    )
    image_dir: AbsolutePath = setting(
        AbsolutePath.parse("/var/lib/fmctl/images"), doc="the folder of the Service VM's images"
    )
    image_keys: tuple[AbsolutePath, ...] = setting(
        (AbsolutePath.parse("/etc/fmctl/image.pub"),),
        doc="public keys in PEM, any of which may have signed the Service VM's image",
    )
    require_signature: bool = setting(
        default=True, doc="false to boot an image that none of them signed, which is for trials alone"
    )
    template_dir: AbsolutePath | None = setting(
        None, doc="a folder whose files take the place of the templates of the same name"
    )
    gpu_map: AbsolutePath | None = setting(
        None,
        doc="a YAML file with the PCI address of each GPU by physical id, such as 1: '0000:1b:00.0'; it is imported at"
        " the daemon's start and when it changes, as one source of the GPU map",
    )
    gpu_admin_tools: tuple[str, ...] = setting(
        (),
        doc="the command line of NVIDIA's gpu-admin-tools, which tell the module ids of GPUs that fmctl cannot read"
        " itself; --devices and --query-module-name are added",
    )
    run_dir: AbsolutePath = setting(
        AbsolutePath.parse("/run/fmctl"), doc="a folder of the daemon's for what ends with the host's boot"
    )
    state_dir: AbsolutePath = setting(
        AbsolutePath.parse("/var/lib/fmctl"),
        doc="a folder of the daemon's for what must survive the host's boot: the store of leases and its audit journal",
    )
    mode: Mode = setting(
        Mode.AUTO,
        doc="observe (nothing is changed), manage, or auto: observe where partitions were active or GPUs in use before"
        " fmctl came, until `fmctl reconcile --accept`",
    )
    unowned_partitions: Unowned = setting(
        Unowned.REPORT,
        doc="what becomes of an active partition that no lease holds: report, or deactivate if nobody has its GPUs",
    )
    release_gone_after_s: float = setting(
        0.0, doc="seconds after which a lease whose VM is gone is released by itself; 0 for never", low=0, high=1e9
    )
    policy: Policy = setting(Policy(), doc="what tenants may have of this host; see docs/policy.md")
    non_gpu_domains: NonGpuDomains = setting(
        NonGpuDomains.ALLOW,
        doc="what becomes of a libvirt domain without a GPU of the board as it starts: allow, warn or refuse",
    )
    lease_on_start: bool = setting(
        default=False,
        doc="make a lease for a libvirt domain that starts with GPUs that nobody holds; it ends with the domain",
    )
    call_timeout_s: float = setting(
        30.0,
        doc="seconds that one call to Fabric Manager may take",
        low=0.1,
        high=600,
    )
    poll_interval_s: float = setting(5.0, doc="seconds between two looks at Fabric Manager's state", low=0.1, high=3600)
    reflection: bool = setting(default=False, doc="serve gRPC reflection (needs the extra `reflection`)")
    log_level: LogLevel = setting(LogLevel.INFO, doc="debug, info, warning or error")
