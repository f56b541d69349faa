# SPDX-License-Identifier: Apache-2.0
"""A libvirtd of the tests' own, of a plain user and in a folder of its own, and domains small enough for it.

QEMU runs in software and boots no further than its firmware, so neither KVM nor root is needed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import libvirt

from tests import reaper
from tests.support import children, eventually

UUID = "6f0f3b54-8d0c-4d9e-9c1b-0f6d63746c01"
UUID_2 = "6f0f3b54-8d0c-4d9e-9c1b-0f6d63746c02"


POWERS_OFF = (
    bytes.fromhex("fb ba0206 b80001 ef b200 f4 ed f6c401 74f9 b204 b80020 ef ebfe").ljust(510, b"\0")
    + b"\x55\xaa"
    + bytes(1 << 20)
)
"""A boot sector that switches the power button on, waits for it, and powers off (ACPI 6.5, 4.8.3; PM base 0x600)."""


SLOW_QEMU = """#!/bin/sh
case "$*" in
    *guest=*) while [ ! -e {gate} ]; do sleep 0.05; done ;;
esac
exec qemu-system-x86_64 "$@"
"""


def document(name: str = "service-vm", uuid: str = UUID, devices: str = "", kind: str = "qemu") -> str:
    """A domain with a fingerprint."""
    return f"""
    <domain type='{kind}'>
      <name>{name}</name>
      <uuid>{uuid}</uuid>
      <metadata><fmctl:service-vm xmlns:fmctl='urn:fmctl:domain:1' fingerprint='print of {name}'/></metadata>
      <memory unit='MiB'>64</memory>
      <os><type machine='q35'>hvm</type></os>
      <features><acpi/></features>
      <devices><controller type='usb' model='none'/><memballoon model='none'/>{devices}</devices>
    </domain>"""


class PrivateLibvirtd:
    """A libvirtd that can be killed, stopped and started again while its domains go on."""

    def __init__(self, folder: Path) -> None:
        libvirtd = shutil.which("libvirtd", path=f"{os.environ['PATH']}:/usr/sbin")
        assert libvirtd, "make venv installs libvirtd"
        self._folder = folder
        self._reapers: list[subprocess.Popen[str]] = []
        self._pid = 0
        self._command = [libvirtd, "-f", str(folder / "libvirtd.conf"), "-p", str(folder / "libvirtd.pid")]
        for name in ("config/libvirt", "run", "cache", "data"):
            (folder / name).mkdir(parents=True)
        (folder / "sector").write_bytes(POWERS_OFF)
        (folder / "libvirtd.conf").touch()
        (folder / "config/libvirt/qemu.conf").write_text('stdio_handler = "file"\n')
        if os.geteuid() == 0:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, reaper.NOBODY, reaper.NOBODY)
        self.start()

    @property
    def uri(self) -> str:
        """Where it is reached."""
        return f"qemu+unix:///session?socket={self.address}"

    @property
    def address(self) -> Path:
        """Where it listens."""
        return self._folder / "run/libvirt/libvirt-sock"

    def start(self) -> None:
        """Start it, in the place of one that was killed."""
        folders = {"CONFIG_HOME": "config", "RUNTIME_DIR": "run", "CACHE_HOME": "cache", "DATA_HOME": "data"}
        with (self._folder / "log").open("a") as log:
            started = subprocess.Popen(
                [sys.executable, reaper.__file__, *self._command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=self._folder,
                env={"PATH": os.environ["PATH"], **{f"XDG_{key}": f"{self._folder}/{folders[key]}" for key in folders}},
            )
        self._reapers.append(started)
        assert started.stdout
        self._pid = int(started.stdout.readline())
        eventually(self._listens)

    def kill(self) -> None:
        """End it as by kill -9."""
        os.kill(self._pid, signal.SIGKILL)
        eventually(lambda: not self._listens())

    def stop(self) -> None:
        """Let it answer nothing."""
        os.kill(self._pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it answer again; start it if it was killed."""
        if self._listens():
            os.kill(self._pid, signal.SIGCONT)
        else:
            self.start()

    def qemu(self, uuid: str) -> int:
        """The process of a domain, as soon as there is one."""
        return eventually(lambda: [p for r in self._reapers for p in children(r.pid) if uuid in _command(p)])[0]

    def domain(self, uuid: str) -> libvirt.virDomain:
        """A domain, over a connection of its own."""
        return libvirt.open(self.uri).lookupByUUIDString(uuid)

    def clear(self) -> None:
        """Let it go on, and end every domain."""
        self.go_on()
        connection = libvirt.open(self.uri)
        for domain in connection.listAllDomains():
            with contextlib.suppress(libvirt.libvirtError):
                domain.destroy()
        connection.close()

    def slow_emulator(self) -> str:
        """A QEMU that starts no domain before `hurry` is called."""
        (self._folder / "hurry").unlink(missing_ok=True)
        script = self._folder / "slow-qemu"
        script.write_text(SLOW_QEMU.format(gate=self._folder / "hurry"))
        script.chmod(0o755)
        return f"<emulator>{script}</emulator>"

    def hurry(self) -> None:
        """Let the slow QEMU go on."""
        (self._folder / "hurry").touch()

    def power_button(self) -> str:
        """A drive whose boot sector heeds the power button."""
        return f"<disk type='file'><source file='{self._folder}/sector'/><target dev='sda' bus='sata'/></disk>"

    def close(self) -> None:
        """End it and all that it started."""
        for started in self._reapers:
            assert started.stdin and started.stdout
            started.stdin.close()
            started.wait(10)
            started.stdout.close()

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(self.address))
            return True
        return False


@contextlib.contextmanager
def private_libvirtd() -> Iterator[PrivateLibvirtd]:
    """A libvirtd for as long as the block."""
    folder = Path(tempfile.mkdtemp(prefix="fmctl-test-"))
    with contextlib.closing(PrivateLibvirtd(folder)) as daemon:
        yield daemon
    shutil.rmtree(folder)


class Stalling:
    """A way to libvirtd on which no request to list domains arrives, as while a hook of a domain runs."""

    LIST_ALL_DOMAINS = 273
    """The procedure, the fourth word of a request, the first being its length (libvirt.org/kbase/internals/rpc)."""

    def __init__(self, daemon: PrivateLibvirtd, folder: Path) -> None:
        self.uri = f"qemu+unix:///session?socket={folder}/stalling"
        self._target = str(daemon.address)
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(f"{folder}/stalling")
        self._listening.listen()
        self._open = [self._listening]
        self._spawn(self._accept)

    def _spawn(self, target: Callable[..., None], *arguments: socket.socket) -> None:
        def run() -> None:
            with contextlib.suppress(OSError):
                target(*arguments)

        threading.Thread(target=run, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listening.accept()
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._target)
            self._open += [client, server]
            self._spawn(self._requests, client, server)
            self._spawn(self._answers, server, client)

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        while head := client.recv(16, socket.MSG_WAITALL):
            length, _, _, procedure = struct.unpack(">4I", head)
            if procedure == self.LIST_ALL_DOMAINS:
                return
            server.sendall(head + client.recv(length - 16, socket.MSG_WAITALL))
        server.shutdown(socket.SHUT_RDWR)

    def _answers(self, server: socket.socket, client: socket.socket) -> None:
        while content := server.recv(4096):
            client.sendall(content)

    def cut(self) -> None:
        """Break all of it."""
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


def _command(pid: int) -> str:
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_text()
    except OSError:
        return ""
