# SPDX-License-Identifier: Apache-2.0
"""Packages of NVIDIA's names with nothing of NVIDIA's in them, made with dpkg-deb."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

VERSION = "580.95.05"
PROGRAM = "#!/bin/sh\necho 'Fabric Manager version is : 580.95.05'\n"
MODULE_C = """\
#include <linux/module.h>
static int __init stub_init(void) { pr_info("stub nvidia module\\n"); return 0; }
static void __exit stub_exit(void) {}
module_init(stub_init);
module_exit(stub_exit);
MODULE_LICENSE("GPL");
MODULE_VERSION("580.95.05");
"""
DKMS_CONF = f"""\
PACKAGE_NAME="nvidia"
PACKAGE_VERSION="{VERSION}"
BUILT_MODULE_NAME[0]="nvidia"
DEST_MODULE_LOCATION[0]="/updates/dkms"
MAKE[0]="make -C /lib/modules/${{kernelver}}/build M=${{dkms_tree}}/nvidia/{VERSION}/build modules"
"""


def deb(folder: Path, name: str, files: Mapping[str, str | bytes], version: str = f"{VERSION}-1") -> Path:
    tree = folder / f"tree-{name}"
    control = tree / "DEBIAN" / "control"
    control.parent.mkdir(parents=True)
    fields = {
        "Package": name,
        "Version": version,
        "Architecture": "amd64",
        "Maintainer": "nobody",
        "Description": "stub",
    }
    control.write_text("".join(f"{key}: {value}\n" for key, value in fields.items()))
    for path, content in files.items():
        target = tree / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.encode())
        target.chmod(0o755 if "bin/" in path else 0o644)
    built = folder / f"{name}_{version}_amd64.deb"
    subprocess.run(
        ["/usr/bin/dpkg-deb", "--root-owner-group", "--build", str(tree), str(built)], check=True, capture_output=True
    )
    return built


def fabric_manager(folder: Path, version: str = f"{VERSION}-1") -> None:
    """Fabric Manager, its library, and the subnet manager of NVLink 5."""
    unit = "[Service]\nExecStart=/usr/bin/nv-fabricmanager\n[Install]\nWantedBy=multi-user.target\n"
    deb(
        folder,
        "nvidia-fabricmanager",
        {
            "usr/bin/nv-fabricmanager": PROGRAM,
            "lib/systemd/system/nvidia-fabricmanager.service": unit,
            "usr/share/nvidia/nvswitch/fabricmanager.cfg": "FM_CMD_BIND_INTERFACE=127.0.0.1 \n",
        },
        version,
    )
    deb(folder, "nvidia-fabricmanager-dev", {"usr/lib/x86_64-linux-gnu/libnvfm.so.1": "stub"}, version)
    deb(folder, "nvlsm", {"opt/nvidia/nvlsm/sbin/nvlsm": PROGRAM}, "2025.03.1-1")


def precompiled(folder: Path, kernel: str, module: bytes) -> None:
    """A kernel module that was built for `kernel`; any module of that kernel does, under NVIDIA's name."""
    deb(folder, "nvidia-kernel-modules", {f"lib/modules/{kernel}/updates/nvidia.ko": module})


def dkms(folder: Path) -> None:
    """A kernel module as source."""
    source = f"usr/src/nvidia-{VERSION}"
    makefile = "obj-m := nvidia.o\n"
    deb(
        folder,
        "nvidia-kernel-open-dkms",
        {f"{source}/dkms.conf": DKMS_CONF, f"{source}/Makefile": makefile, f"{source}/nvidia.c": MODULE_C},
    )
