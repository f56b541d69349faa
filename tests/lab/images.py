# SPDX-License-Identifier: Apache-2.0
"""The lab's images: made once from a recipe, and kept in the user's cache by the recipe's hash.

They hold all but fmctl itself, which `tests.lab.payload` brings in at each run. Making them needs root, for
mmdebstrap's chroot.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click

from fmctl import process
from fmctl.process import CommandFailed
from tests.lab import initrd, kernel

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

RELEASE = "bookworm"
PACKAGES = (
    *("linux-image-amd64", "initramfs-tools", "kmod", "udev", "zstd"),
    *("systemd-sysv", "dbus", "apparmor", "iproute2", "procps", "less", "pciutils", "bpftool", "busybox-static"),
    *("libvirt-daemon-system", "libvirt-daemon-driver-qemu", "libvirt-clients", "qemu-system-x86", "seabios"),
    *("python3", "python3-libvirt", "cpio", "ovmf"),
)
"""What Debian packages the emulated host has; AppArmor, since sVirt is never exercised without it."""

INITRD_MODULES = ("virtio_pci", "virtio_blk", "ext4")
"""What the emulated host needs to find its root; Debian's choice is everything, which takes long to unpack."""

KEPT = 2
"""How many sets of images the cache keeps, the newest."""
GRACE = 60.0
"""Seconds that a build has, once it is to end, to unmount what it mounted."""


@dataclass(frozen=True)
class Images:
    """One set of images, in its folder."""

    folder: Path

    @property
    def root(self) -> Path:
        """The emulated host's root file system."""
        return self.folder / "root.ext4"

    @property
    def kernel(self) -> Path:
        """The kernel of the emulated host and of its tenants' VMs, unpacked."""
        return self.folder / "vmlinux"

    @property
    def initrd(self) -> Path:
        """The emulated host's initial RAM disk."""
        return self.folder / "initrd"

    @property
    def service_vm(self) -> Path:
        """The Service VM's image, with the agent of that day."""
        return self.folder / "service-vm"

    @property
    def bare(self) -> Path:
        """An initial RAM disk that prints a line."""
        return self.folder / "bare.cpio"

    @property
    def tenant_vm(self) -> Path:
        """A tenant VM's initial RAM disk, which does nothing."""
        return self.folder / "tenant-vm.cpio"


def cache_folder(environment: Mapping[str, str]) -> Path:
    """Where images are kept: FMCTL_LAB_CACHE, or fmctl/lab in the user's cache."""
    if named := environment.get("FMCTL_LAB_CACHE"):
        return Path(named)
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fmctl" / "lab"


REQUIREMENTS = ("pytest",)
"""The Python packages that the lab needs beside what `make install` brings: pytest runs the vsock tests."""


def recipe_hash() -> str:
    """What tells two recipes apart: the code that makes images, the files that go in, and the versions."""
    digest = hashlib.sha256(repr(REQUIREMENTS).encode())
    for path in _ingredients():
        digest.update(f"{path.relative_to(ROOT)} {path.stat().st_mode:o}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _ingredients() -> Iterator[Path]:
    yield from (Path(__file__), Path(initrd.__file__), Path(kernel.__file__), ROOT / "tools" / "constraints.txt")
    for folder in (*(HERE / name for name in ("hostvm", "servicevm", "tenantvm", "barevm")), ROOT / "service-vm"):
        yield from sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    yield from (HERE / "lab.yaml", *sorted((ROOT / "fmctl/sim").glob("*.[ch]")))


def are_cached(cache: Path) -> bool:
    """Whether the cache has the images of the present recipe."""
    return (cache / recipe_hash()).is_dir()


def cached(cache: Path) -> Images:
    """The images of the present recipe, made first unless the cache has them; raises FmctlError."""
    folder = cache / recipe_hash()
    if not are_cached(cache):
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".build-", dir=cache) as scratch:
            _build(Path(scratch))
            (Path(scratch) / "images").rename(folder)
    os.utime(folder)
    _prune(cache)
    return Images(folder)


def _prune(cache: Path) -> None:
    sets = sorted((path for path in cache.iterdir() if path.name[0] != "."), key=lambda path: -path.stat().st_mtime)
    for path in sets[KEPT:]:
        shutil.rmtree(path)


def _build(scratch: Path) -> None:
    root, images = scratch / "root", Images(scratch / "images")
    images.folder.mkdir()
    _debootstrap(root)
    _install(root)
    version = next((root / "usr/lib/modules").iterdir()).name
    _service_vm(images.service_vm, scratch)
    initrd.busybox(root, HERE / "tenantvm", images.tenant_vm)
    initrd.busybox(root, HERE / "barevm", images.bare)
    kernel.unpack(root / "boot" / f"vmlinuz-{version}", images.kernel)
    shutil.copyfile(root / "boot" / f"initrd.img-{version}", images.initrd)
    process.run(["mke2fs", "-q", "-t", "ext4", "-d", str(root), str(images.root), "3G"], timeout=300)


def _service_vm(image: Path, scratch: Path) -> None:
    """Build it as an operator does; where a locked package is no longer to be had, from a lock made now."""
    build = [str(ROOT / "service-vm/build"), "--simulated-fm", "--platform", str(HERE / "lab.yaml")]
    build += ["--extra", str(HERE / "servicevm"), "--output", str(image)]
    try:
        process.run(build, timeout=900, grace=GRACE)
    except CommandFailed as error:
        if "status 3" not in str(error):
            raise
        click.echo(f"lab: {error}\nlab: a lock is made anew, for this lab alone", err=True)
        lock = scratch / "lock"
        process.run([str(ROOT / "service-vm/update-lock"), "--lock", str(lock)], timeout=900)
        process.run([*build, "--lock", str(lock)], timeout=900, grace=GRACE)


def _debootstrap(root: Path) -> None:
    modules = "\\n".join(INITRD_MODULES)
    configure = (
        'mkdir -p "$1/etc/initramfs-tools/conf.d"'
        ' && echo MODULES=list >"$1/etc/initramfs-tools/conf.d/lab"'
        f""" && printf '{modules}\\n' >"$1/etc/initramfs-tools/modules\""""
    )
    excluded = [f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in ("man", "doc", "locale")]
    process.run(
        [
            *("mmdebstrap", "--mode=root", "--variant=minbase", f"--include={','.join(PACKAGES)}"),
            *('--aptopt=Acquire::Languages "none"', '--aptopt=APT::Install-Recommends "false"', *excluded),
            *(f"--essential-hook={configure}", RELEASE, str(root)),
        ],
        timeout=900,
        grace=GRACE,
    )


def _install(root: Path) -> None:
    """Put in what Debian does not have, and the lab's own files."""
    process.run(
        [
            *process.python("pip", "install", "--quiet", "--target", str(root / "opt/fmctl"), "--only-binary=:all:"),
            *("--python-version", "3.11", "--platform", "manylinux2014_x86_64", "--platform", "manylinux_2_28_x86_64"),
            *("--constraint", str(ROOT / "tools" / "constraints.txt"), *REQUIREMENTS),
        ],
        timeout=600,
    )
    shutil.copytree(HERE / "hostvm", root, dirs_exist_ok=True)
    for folder in ("lab", "etc/fmctl", "usr/lib/fmctl"):
        (root / folder).mkdir()
    (root / "etc/hostname").write_text("hgx\n")
    chroot = ("chroot", str(root))
    process.run([*chroot, "passwd", "--delete", "root"], timeout=30)
    process.run([*chroot, "python3", "-m", "compileall", "-q", "/opt/fmctl"], timeout=300)
    process.run([*chroot, "systemctl", "enable", "lab-channel.service", "lab-shell.service"], timeout=30)
    process.run([*chroot, "systemctl", "mask", "serial-getty@ttyS0.service", "apt-daily.timer"], timeout=30)
