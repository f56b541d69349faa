# SPDX-License-Identifier: Apache-2.0
"""The emulated HGX host: QEMU's command line for each variant, and its life. `tests.lab.channel` talks to it."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import time
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

from fmctl import process
from tests.lab.channel import Channel, HostDead
from tests.lab.images import Images

BOOT_TIMEOUT = 180.0
MEMORY_MIB = 4096
CPU = "max,la57=off,erms=off,fsrm=off,smap=off,smep=off,pku=off"
"""Without what emulation makes dear: page tables of five levels cost a miss in a VM inside up to 35 steps instead of
24, strings by `rep` go byte by byte, and protection of the kernel from itself ends a block of code at each copy."""
KERNEL = "root=/dev/vda rw console=ttyS0 quiet intel_iommu=on panic=-1 mitigations=off init_on_alloc=0"
"""What the emulated host's kernel is told; no processor speculates here."""
PROCESSORS = 1
"""Two lose an interrupt now and then where VMs run inside, and make little difference: a VM that boots uses one."""

SWITCH = "edu"
MEMORY_CONTROLLER = "pci-testdev"
GPU = "nvme"
FOREIGN = "ivshmem-plain,memdev=foreign"
NIC = "e1000e,romfile=,netdev=nowhere"


class Variant(str, Enum):
    """How the stand-ins lie in IOMMU groups."""

    GROUPS = "groups"
    SHARED = "shared"
    FOREIGN = "foreign"

    @property
    def about(self) -> str:
        """The variant in words."""
        return {
            Variant.GROUPS: "a group for each device, as on DGX boards",
            Variant.SHARED: "one group for the NVSwitches and the memory controller, as on Supermicro boards",
            Variant.FOREIGN: "as shared, with a device in that group which is not the board's",
        }[self]


@dataclasses.dataclass(frozen=True)
class Disks:
    """What the emulated host boots from. Nothing is ever written to them."""

    images: Images
    payload: Path
    rom: Path
    """A GPU's expansion ROM."""


def devices(variant: Variant, rom: Path) -> list[str]:
    """The stand-ins, each behind a root port of its own.

    Root ports with ACS give every device a group; functions of one slot without it give one group for all.
    """
    together = [SWITCH, SWITCH, MEMORY_CONTROLLER]
    if variant is Variant.FOREIGN:
        together.append(FOREIGN)
    apart = [*[f"{GPU},serial=gpu{number},romfile={rom}" for number in range(1, 5)], NIC]
    shared = variant is not Variant.GROUPS
    options = []
    for index, device in enumerate(together):
        place = f"addr=10.{index},multifunction=on,disable-acs=on" if shared else f"addr={0x10 + index:x}.0"
        options += _behind_port(f"near{index}", place, index, device)
    for index, device in enumerate(apart):
        options += _behind_port(f"far{index}", f"addr={0x18 + index:x}.0", 16 + index, device)
    return options


def _behind_port(port: str, place: str, number: int, device: str) -> list[str]:
    return [
        *("-device", f"pcie-root-port,id={port},bus=pcie.0,chassis={number},slot={number},{place}"),
        *("-device", f"{device},bus={port}"),
    ]


def command_line(
    variant: Variant, disks: Disks, folder: Path, *, interactive: bool, processors: int = PROCESSORS
) -> list[str]:
    """QEMU's argv; the socket of the command channel and the console's log lie in `folder`."""
    arguments = KERNEL + (" lab.shell" if interactive else "")
    console = "stdio,signal=off" if interactive else "null"
    return [
        *("setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", "-nodefaults", "-no-user-config"),
        *("-machine", "q35,kernel-irqchip=split", "-accel", "tcg,thread=multi", "-cpu", CPU),
        *("-smp", str(processors), "-m", str(MEMORY_MIB), "-display", "none"),
        *("-device", "intel-iommu,intremap=on"),
        *("-netdev", "user,id=nowhere,restrict=on"),
        *("-object", "memory-backend-ram,id=foreign,size=1M,share=on"),
        *("-kernel", str(disks.images.kernel), "-initrd", str(disks.images.initrd), "-append", arguments),
        *_disk("root", disks.images.root, "format=raw,snapshot=on"),
        *_disk("payload", disks.payload, "format=raw,read-only=on"),
        *("-chardev", f"{console},id=console,logfile={folder / 'console.log'}", "-serial", "chardev:console"),
        *("-chardev", f"socket,id=channel,path={folder / 'channel'},server=on,wait=off"),
        *("-device", "virtio-serial-pci", "-device", "virtserialport,name=lab,chardev=channel"),
        *devices(variant, disks.rom),
    ]


def _disk(name: str, path: Path, options: str) -> list[str]:
    return ["-drive", f"if=none,id={name},file={path},{options}", "-device", f"virtio-blk-pci,drive={name}"]


def blank_rom() -> bytes:
    """An expansion ROM for no device in particular, so that no firmware runs it: header, PCI data, checksum."""
    header = b"\x55\xaa\x01\xcb".ljust(0x18, b"\0") + (0x1C).to_bytes(4, "little")
    data = b"PCIR" + bytes(4) + b"\0\0\x18\0\0" + bytes(3) + b"\x01\0\x01\0\x00\x80\0\0"
    image = (header + data).ljust(511, b"\0")
    return image + bytes([-sum(image) % 256])


@contextlib.contextmanager
def booted(variant: Variant, disks: Disks, folder: Path, *, processors: int = PROCESSORS) -> Iterator[Channel]:
    """The emulated host with a command channel, until the block ends; raises HostDead."""
    with process.Child(command_line(variant, disks, folder, interactive=False, processors=processors)) as child:
        channel = Channel(folder / "channel", time.monotonic() + BOOT_TIMEOUT)
        try:
            answer = channel.run("systemctl is-system-running --wait", BOOT_TIMEOUT)
            if answer.timed_out:
                raise HostDead("the emulated host does not boot")
            yield channel
        finally:
            channel.close()
            child.kill()


def shell(variant: Variant, disks: Disks, folder: Path) -> int:
    """The emulated host with its console on this terminal, until its shell ends; QEMU's exit status."""
    return subprocess.run(command_line(variant, disks, folder, interactive=True), check=False).returncode
