# SPDX-License-Identifier: Apache-2.0
"""Whole images, built and booted: `make image-test`, for they take minutes, and a network the first time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from imagebuild import CHECKOUT, manifest
from imagebuild.tree import Tree
from tests.image import nvidia as stub

pytestmark = pytest.mark.image

SERVING = "serving at unix:/run/fmctl/agent.sock"
BARE = "the bare kernel is up"
BARE_INIT = f"#!/bin/busybox sh\n/bin/busybox mount -t devtmpfs d /dev\n/bin/busybox echo {BARE} >/dev/console\n"


def build(*arguments: str | Path, checkout: Path = CHECKOUT) -> None:
    argv = [sys.executable, str(checkout / "service-vm" / "build"), *map(str, arguments)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr


def document(image: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((image / manifest.NAME).read_text())
    return read


def file_of(image: Path, path: str) -> bytes:
    argv = ["/usr/bin/unsquashfs", "-cat", str(image / "root.squashfs"), path]
    return subprocess.run(argv, capture_output=True, check=True).stdout


def listed(image: Path) -> str:
    argv = ["/usr/bin/unsquashfs", "-lln", str(image / "root.squashfs")]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


@dataclass
class Machine:
    """A running QEMU, without KVM."""

    process: subprocess.Popen[bytes]
    console: Path
    monitor: Path
    started: float

    def wait_for(self, text: str, timeout: float = 240) -> float:
        """Seconds from QEMU's start until its console says that."""
        while text not in self.console.read_text(errors="replace"):
            assert self.process.poll() is None, self.console.read_text(errors="replace")
            assert time.monotonic() - self.started < timeout, self.console.read_text(errors="replace")
            time.sleep(0.02)
        return time.monotonic() - self.started


def boot(image: Path, folder: Path, initrd: Path | None = None) -> Machine:
    folder.mkdir()
    console, monitor = folder / "console", folder / "monitor"
    console.touch()
    argv = [
        *("/usr/bin/qemu-system-x86_64", "-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", "512", "-smp", "2"),
        *("-nodefaults", "-display", "none", "-serial", f"file:{console}", "-no-reboot"),
        *("-monitor", f"unix:{monitor},server,nowait"),
        *("-kernel", str(image / "vmlinuz"), "-initrd", str(initrd or image / "initrd")),
        *("-append", str(document(image)["kernel_arguments"])),
        *("-drive", f"if=virtio,format=raw,readonly=on,file={image / 'root.squashfs'}"),
        *("-drive", f"if=virtio,format=raw,readonly=on,file={image / 'agent.tar'}"),
    ]
    started = time.monotonic()
    return Machine(subprocess.Popen(argv, stdin=subprocess.DEVNULL), console, monitor, started)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("image") / "one"
    build("--simulated-fm", "--output", target)
    return target


@pytest.fixture
def machine(image: Path, tmp_path: Path) -> Iterator[Machine]:
    made = boot(image, tmp_path / "machine")
    yield made
    made.process.kill()
    made.process.wait()


def test_another_folder_and_another_cache_give_the_same_bytes(image: Path, tmp_path: Path) -> None:
    for folder in ("fmctl", "vm-templates", "service-vm", "systemd", "tools"):
        if (CHECKOUT / folder).is_dir():
            shutil.copytree(CHECKOUT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    build("--simulated-fm", "--output", tmp_path / "image", checkout=tmp_path)
    assert document(tmp_path / "image") == document(image)
    assert manifest.read(tmp_path / "image")["simulated"] is True


@pytest.mark.skipif(os.geteuid() != 0, reason="it needs a second user")
def test_without_root_it_is_the_same(image: Path, tmp_path: Path) -> None:
    build("--simulated-fm", "--mode", "unshare", "--output", tmp_path / "image")
    assert document(tmp_path / "image") == document(image)


def test_the_root_has_no_way_in(image: Path) -> None:
    names = listed(image)
    for word in ("getty", "sulogin", "/bin/login", "sshd", "networkd", "logind", "emergency", "debug-shell", "udevd"):
        assert word not in names
    assert file_of(image, "etc/shadow").startswith(b"root:!")
    assert (image / "root.squashfs").stat().st_size < 40 << 20


def test_it_boots_within_three_times_a_bare_kernel_and_obeys_the_power_button(
    image: Path, machine: Machine, tmp_path: Path
) -> None:
    served = machine.wait_for(SERVING)
    time.sleep(3)
    subprocess.run(
        [sys.executable, "-c", POWER_BUTTON, str(machine.monitor)], check=True, timeout=60, capture_output=True
    )
    assert machine.process.wait(timeout=120) == 0
    bare = Tree()
    bare.folder("dev")
    bare.file("bin/busybox", file_of(image, "usr/bin/busybox"), 0o755)
    bare.file("init", BARE_INIT.encode(), 0o755)
    bare.write_cpio(tmp_path / "bare", 0)
    other = boot(image, tmp_path / "other", tmp_path / "bare")
    try:
        reached = other.wait_for(BARE)
    finally:
        other.process.kill()
        other.process.wait()
    assert served < 3.0 * reached, (served, reached)


POWER_BUTTON = """
import socket, sys
with socket.socket(socket.AF_UNIX) as monitor:
    monitor.connect(sys.argv[1])
    said = monitor.recv(4096)
    monitor.sendall(b"system_powerdown\\n")
    while not said.endswith(b"system_powerdown\\x1b[K\\r\\n(qemu) "):
        said += monitor.recv(4096)
"""


def test_only_the_agent_is_new(image: Path, tmp_path: Path) -> None:
    build("--agent-only", "--from", image, "--output", tmp_path / "same")
    assert document(tmp_path / "same") == document(image)
    copy = tmp_path / "checkout"
    for folder in ("fmctl", "vm-templates", "service-vm"):
        shutil.copytree(CHECKOUT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "fmctl" / "__init__.py").write_text('"""Newer."""\n\n__version__ = "9.9.9"\n')
    build("--agent-only", "--from", image, "--output", tmp_path / "newer", checkout=copy)
    old, new = document(image), document(tmp_path / "newer")
    assert new["versions"] == {**old["versions"], "agent": "9.9.9"}
    assert new["files"] == {**old["files"], "agent.tar": new["files"]["agent.tar"]}
    assert new["files"]["agent.tar"] != old["files"]["agent.tar"]


def test_extra_files_are_there_and_told(image: Path, tmp_path: Path) -> None:
    (tmp_path / "extra" / "usr" / "bin").mkdir(parents=True)
    (tmp_path / "extra" / "usr" / "bin" / "hook").write_text("#!/bin/sh\n")
    build("--simulated-fm", "--extra", tmp_path / "extra", "--output", tmp_path / "image")
    assert document(tmp_path / "image")["extra"] == ["/usr/bin/hook"]
    assert file_of(tmp_path / "image", "usr/bin/hook") == b"#!/bin/sh\n"
    assert document(tmp_path / "image")["files"]["initrd"] == document(image)["files"]["initrd"]


def test_a_driver_s_precompiled_modules_are_in_its_image(image: Path, tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    kernel = document(image)["versions"]["kernel"]
    module = file_of(image, f"usr/lib/modules/{kernel}/kernel/drivers/block/virtio_blk.ko")
    stub.fabric_manager(packages)
    stub.precompiled(packages, kernel, module)
    build("--driver", "580", "--packages", packages, "--output", tmp_path / "image")
    made = document(tmp_path / "image")
    assert made["simulated"] is False
    assert (made["versions"]["driver"], made["versions"]["nvlsm"]) == ("580.95.05", "2025.03.1")
    assert made["packages"]["nvidia-fabricmanager"] == "580.95.05-1"
    names = listed(tmp_path / "image")
    assert "updates/nvidia.ko" in names and "mlx5_ib.ko" in names and "ib_umad.ko" in names
    assert "nvidia-fabricmanager.service -> /dev/null" in names
    assert "/etc/fmctl/platform.yaml" not in names


def test_a_driver_s_module_is_built_in_a_stage_that_leaves_nothing(image: Path, tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    stub.fabric_manager(packages)
    stub.dkms(packages)
    build("--driver", "580", "--packages", packages, "--output", tmp_path / "image")
    names = listed(tmp_path / "image")
    assert "updates/dkms/nvidia.ko" in names
    assert "/usr/src" not in names and "/gcc" not in names
    kernel = document(image)["versions"]["kernel"]
    module = file_of(tmp_path / "image", f"usr/lib/modules/{kernel}/updates/dkms/nvidia.ko")
    assert f"vermagic={kernel} ".encode() in module
