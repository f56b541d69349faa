# SPDX-License-Identifier: Apache-2.0
"""The hook under libvirt itself, which waits for it: real documents, and a real daemon of a simulated host."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmctl.core.pci import Bdf
from tests.core.test_hook import hostdev
from tests.libvirt_support import UUID_2, document
from tests.support import Program, run

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
HOOK = """#!/bin/sh
export PYTHONPATH={root}
exec {python} -m fmctl hook qemu --address {address} --allow-simulated -- "$@"
"""


class Place:
    """A daemon of a simulated host, and a folder of hooks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = f"unix:{folder}/fmctld.sock"
        (folder / "hooks" / "qemu.d").mkdir(parents=True)

    def fmctl(self, *arguments: str) -> str:
        done = run(*arguments, env={"FMCTL_ADDRESS": self.address})
        assert done.returncode == 0, done.stderr
        return done.stdout

    def starts(self, *documents: str) -> list[str]:
        """What libvirt says of each domain that it is to start."""
        hook = self.folder / "hooks" / "qemu.d" / "fmctl"
        hook.write_text(HOOK.format(root=ROOT, python=sys.executable, address=self.address))
        hook.chmod(0o755)
        mount = f"mount --bind {self.folder}/hooks /etc/libvirt/hooks && exec {sys.executable} -m tests.libvirt.hooked"
        done = subprocess.run(
            ["/usr/bin/unshare", "--mount", "--propagation=private", "sh", "-c", mount],
            input="".join(f"{json.dumps(each)}\n" for each in documents),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            cwd=ROOT,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()


@pytest.fixture
def place() -> Iterator[Place]:
    folder = Path(tempfile.mkdtemp(prefix="fmctl-test-"))
    folder.chmod(0o755)
    place = Place(folder)
    arguments = ("daemon", "--simulate", "hgx-h100-8", "--listen", place.address)
    with Program(*arguments, log=folder / "log"):
        place.fmctl("wait", "--for", "ready", "--timeout", "30")
        (folder / "fmctld.sock").chmod(0o666)  # the libvirt of these tests is a plain user's
        yield place
    shutil.rmtree(folder)


def gpus(place: Place) -> list[Bdf]:
    """The GPUs' addresses, in the order of their physical ids, as of every simulated host."""
    found = json.loads(place.fmctl("inventory", "--simulate", "hgx-h100-8", "-o", "json"))["devices"]
    return sorted(Bdf.parse(device["address"]) for device in found if device["role"] == "gpu")


def test_libvirt_asks_and_keeps_to_the_answer(place: Place) -> None:
    one, two, three = gpus(place)[:3]
    place.fmctl("allocate", "--gpu-ids", "1,3", "--owner", "a", "--vm", UUID_2)

    def vm(*bdfs: Bdf, managed: str = "no") -> str:
        return document("tenant", UUID_2, "".join(hostdev(bdf, managed) for bdf in bdfs))

    said = place.starts(
        vm(),
        vm(one),
        vm(one, two, three),
        vm(one, three, managed="yes"),
        vm(one, three),
        document(devices=hostdev(one)),
    )
    assert said[0] == "", "a domain without GPUs starts"
    for refused in (*said[1:4], said[5]):
        assert refused.startswith("Hook script execution failed"), refused
        assert "fmctl: the domain" in refused
    assert "no active lease holds exactly the GPUs 1 for the VM" in said[1]
    assert "managed='yes'" in said[3]
    assert "passthrough" in said[4], "it went past the hook; this machine has no IOMMU"
