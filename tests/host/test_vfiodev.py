# SPDX-License-Identifier: Apache-2.0
"""What reaches the files, and what files of a real kernel can bring about."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fmctl import platforms
from fmctl.core.errors import FmctlError
from fmctl.core.pci import Bdf
from fmctl.core.vfio import PARKED, VFIO_PCI, Exposure, Holder, WriteFailed, WriteOverdue
from fmctl.host import sysfsaccess, sysfsjob
from fmctl.host.vfiodev import VfioFiles
from fmctl.sim.sysfs import SimulatedBus
from tests import stuckfs, sysfs_tree
from tests.support import children, eventually

GPU = Bdf.parse("0000:17:00.0")
GROUP = 11
SOON = 10.0
COMMAND = slice(4, 6)
READS_A_REQUEST = ["0", "0x0"]
"""The system call of a process that reads its standard input, as /proc shows it on x86-64."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    sysfs_tree.write(SimulatedBus(platforms.load("hgx-h100-8")), tmp_path / "sys")
    (tmp_path / "dev" / "vfio" / "devices").mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    return tmp_path


def device(root: Path) -> Path:
    return sysfs_tree.folder(root / "sys", GPU)


def config(root: Path, content: bytes) -> Path:
    file = device(root) / "config"
    file.write_bytes(content)
    return file


@pytest.mark.parametrize(("driver", "line"), [(VFIO_PCI, b"vfio-pci\n"), ("", b"\n")])
def test_an_override_is_a_line(root: Path, driver: str, line: bytes) -> None:
    (device(root) / "driver_override").write_bytes(b"")
    VfioFiles(root).override(GPU, driver, timeout=SOON)
    assert (device(root) / "driver_override").read_bytes() == line


def test_the_address_is_written_to_the_driver_and_to_the_bus(root: Path) -> None:
    driver = root / "sys" / "bus" / "pci" / "drivers" / "nouveau"
    driver.mkdir(parents=True)
    (device(root) / "driver").symlink_to(driver)
    for file in (driver / "unbind", root / "sys" / "bus" / "pci" / "drivers_probe", device(root) / "reset"):
        file.touch()
    files = VfioFiles(root)
    files.unbind(GPU, timeout=SOON)
    files.probe(GPU, timeout=SOON)
    files.reset(GPU, timeout=SOON)
    assert (driver / "unbind").read_text() == f"{GPU}\n"
    assert (root / "sys" / "bus" / "pci" / "drivers_probe").read_text() == f"{GPU}\n"
    assert (device(root) / "reset").read_text() == "1\n"


def test_a_reset_by_a_method_leaves_the_kernel_s_own_order_behind(root: Path) -> None:
    (device(root) / "reset").touch()
    VfioFiles(root).reset(GPU, method="bus", timeout=SOON)
    assert (device(root) / "reset").read_text() == "1\n"
    assert (device(root) / "reset_method").read_text().split("\n")[0] == "default"
    (device(root) / "reset").unlink()
    (device(root) / "reset_method").write_text("")
    with pytest.raises(WriteFailed, match="/reset"):
        VfioFiles(root).reset(GPU, method="bus", timeout=SOON)
    assert (device(root) / "reset_method").read_text() == "default\n"


def test_nothing_is_reset_by_another_method_than_the_one_that_is_meant(root: Path) -> None:
    (device(root) / "reset").touch()
    (device(root) / "reset_method").unlink()
    (device(root) / "reset_method").symlink_to("/sys/kernel/uevent_seqnum")  # which nobody may write
    with pytest.raises(WriteFailed, match="reset_method"):
        VfioFiles(root).reset(GPU, method="bus", timeout=SOON)
    assert (device(root) / "reset").read_text() == ""


def test_a_file_that_is_not_there_is_never_made(root: Path) -> None:
    (device(root) / "driver_override").unlink()
    with pytest.raises(WriteFailed) as failure:
        VfioFiles(root).override(GPU, PARKED, timeout=SOON)
    assert failure.value.what == f"the kernel refused {device(root) / 'driver_override'}"
    assert failure.value.why == os.strerror(errno.ENOENT)
    assert not (device(root) / "driver_override").exists()


def test_the_kernel_s_own_reason_is_given_and_what_to_do(root: Path) -> None:
    override = device(root) / "driver_override"
    override.unlink()
    override.symlink_to("/sys/kernel/uevent_seqnum")  # which nobody may write, not even root
    with pytest.raises(WriteFailed) as failure:
        VfioFiles(root).override(GPU, PARKED, timeout=SOON)
    assert (failure.value.why, failure.value.fix) == (os.strerror(errno.EACCES), "run as root")


@pytest.mark.parametrize(
    ("before", "after"),
    [("0605", "0205"), ("ffff", "fbff"), ("0400", "0000"), ("0204", "0204"), ("0000", "0000")],
    ids=["usual", "every bit", "alone", "the other byte", "off"],
)
def test_one_bit_is_cleared_and_no_other_byte_touched(root: Path, before: str, after: str) -> None:
    rest = bytes(range(0x10, 0x4A))
    file = config(root, bytes.fromhex(f"de103023{before}") + rest)
    VfioFiles(root).stop_bus_master(GPU, timeout=SOON)
    assert file.read_bytes() == bytes.fromhex(f"de103023{after}") + rest


def test_a_function_of_all_ones_is_left_alone(root: Path) -> None:
    file = config(root, b"\xff" * 64)
    VfioFiles(root).stop_bus_master(GPU, timeout=SOON)
    assert file.read_bytes() == b"\xff" * 64


@pytest.mark.parametrize(
    ("override", "command", "exposure"),
    [
        ("(null)\n", "0600", Exposure(masters_bus=True)),
        ("fmctl-parked\n", "0200", Exposure(PARKED)),
        ("\n", "0200", Exposure()),
        ("", "0200", Exposure()),
    ],
)
def test_what_a_function_is_open_to(root: Path, override: str, command: str, exposure: Exposure) -> None:
    config(root, bytes.fromhex(f"de103023{command}"))
    (device(root) / "driver_override").write_text(override)
    assert VfioFiles(root).exposure(GPU, timeout=SOON) == exposure


def busy_jobs() -> dict[int, str]:
    """The processes that do not wait for a request now, whoever their parent is, with their states."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_job = sysfsjob.__file__.encode() in (process / "cmdline").read_bytes().split(b"\0")
            if is_job and (process / "syscall").read_text().split()[:2] != READS_A_REQUEST:
                found[int(process.name)] = (process / "stat").read_text().rsplit(")", 1)[1].split()[0]
    return found


@pytest.fixture
def stuck(root: Path) -> Path:
    """A file that a write waits at for ever, since nobody reads."""
    override = device(root) / "driver_override"
    override.unlink()
    os.mkfifo(override)
    return override


def test_the_processes_that_wait_can_be_stopped_and_the_next_write_starts_another(root: Path) -> None:
    files = VfioFiles(root)
    files.override(GPU, PARKED, timeout=SOON)
    before = set(children(os.getpid()))
    sysfsaccess.stop()
    assert set(children(os.getpid())) < before
    files.override(GPU, "", timeout=SOON)
    assert (device(root) / "driver_override").read_text().startswith("\n")


def test_an_overdue_write_is_abandoned_within_its_deadline_and_reaped(root: Path, stuck: Path) -> None:
    files, before, started = VfioFiles(root), set(children(os.getpid())), time.monotonic()
    with pytest.raises(WriteOverdue, match=f"the kernel does not return from {stuck}"):
        files.override(GPU, PARKED, timeout=0.3)
    assert 0.3 <= time.monotonic() - started < 5
    eventually(lambda: set(children(os.getpid())) <= before)
    assert files.exposure(GPU, timeout=0.1) is None
    stuck.unlink()
    stuck.touch()
    files.override(GPU, PARKED, timeout=SOON)
    assert stuck.read_text() == f"{PARKED}\n"


def test_a_process_that_somebody_kills_is_not_taken_for_the_kernel_s_answer(root: Path, stuck: Path) -> None:
    with ThreadPoolExecutor() as pool:
        write = pool.submit(VfioFiles(root).override, GPU, PARKED, timeout=SOON)
        (pid,) = eventually(lambda: busy_jobs())
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WriteFailed, match=f"{stuck} was not reached: .* does not answer: it has ended"):
            write.result(SOON)


WRITER = """
import signal
import sys
from pathlib import Path
from fmctl.core.errors import FmctlError
from fmctl.core.pci import Bdf
from fmctl.host import sysfsjob
from fmctl.host.vfiodev import VfioFiles
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests in the background ignores it
print("writing", flush=True)
try:
    VfioFiles(Path(sys.argv[1])).override(Bdf.parse(sys.argv[2]), "x", timeout=float(sys.argv[3]))
except FmctlError as error:
    print(type(error).__name__)
"""


def writer(root: Path, timeout: float) -> subprocess.Popen[str]:
    argv = [sys.executable, "-W", "error", "-c", WRITER, str(root), str(GPU), str(timeout)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_process_ends_though_its_write_did_not(root: Path, stuck: Path) -> None:
    with writer(root, 0.2) as process:
        output, errors = process.communicate(timeout=10)
    assert (output, errors, process.returncode) == ("writing\nWriteOverdue\n", "", 0)


@pytest.mark.skipif(not stuckfs.is_possible(), reason="needs root and /dev/fuse")
def test_a_process_ends_though_its_write_hangs_in_the_kernel(root: Path, tmp_path: Path) -> None:
    (tmp_path / "mount").mkdir()
    override = device(root) / "driver_override"
    with stuckfs.stuck_file(tmp_path / "mount") as file:
        override.unlink()
        override.symlink_to(file)
        with writer(root, 1.0) as process:
            output, errors = process.communicate(timeout=10)
        assert (output, errors, process.returncode) == ("writing\nWriteOverdue\n", "", 0)
        assert list(busy_jobs().values()) == ["D"]
    eventually(lambda: not busy_jobs())


def test_an_interrupted_process_ends_though_its_write_did_not(root: Path, stuck: Path) -> None:
    with writer(root, 60) as process:
        assert process.stdout and process.stdout.readline() == "writing\n"
        jobs = eventually(lambda: {*busy_jobs()} & {*children(process.pid)})
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
    assert errors.splitlines()[-1] == "KeyboardInterrupt"
    eventually(lambda: not jobs & {*busy_jobs()})


def hold(root: Path, pid: int, command: str, *nodes: str) -> None:
    """Let a process have these files open."""
    files = root / "proc" / str(pid) / "fd"
    files.mkdir(parents=True)
    (files.parent / "comm").write_text(f"{command}\n")
    for number, node in enumerate(["null", *nodes]):
        (files / str(number)).symlink_to(root / "dev" / node)


def files(root: Path, error: int = 0) -> VfioFiles:
    """The adapter, where opening a node that is there fails with that error."""

    def open_node(path: Path, flags: int) -> int:
        descriptor = os.open(path, flags)
        if error:
            os.close(descriptor)
            raise OSError(error, os.strerror(error))
        assert flags == os.O_RDWR | os.O_CLOEXEC
        return descriptor

    return VfioFiles(root, open_node=open_node)


@pytest.mark.parametrize("node", [f"vfio/{GROUP}", f"vfio/noiommu-{GROUP}"])
def test_a_group_that_cannot_be_opened_twice_is_held(root: Path, node: str) -> None:
    (root / "dev" / node).touch()
    hold(root, 77, "cat", f"vfio/{GROUP}9", "vfio/vfio")
    assert files(root).holders(GROUP) is None
    assert files(root, errno.EBUSY).holders(GROUP) == ()
    hold(root, 4242, "qemu-system-x86", f"vfio/{GROUP}9", node)
    hold(root, 345, "qemu-system-x86", node)
    seen = (Holder(345, "qemu-system-x86"), Holder(4242, "qemu-system-x86"))
    assert files(root, errno.EBUSY).holders(GROUP) == seen
    assert files(root).holders(GROUP) is None


@pytest.mark.parametrize("error", [errno.ENOENT, errno.ENODEV, errno.ENXIO])
def test_a_group_that_is_going_away_is_held_by_nobody(root: Path, error: int) -> None:
    (root / "dev" / "vfio" / str(GROUP)).touch()
    assert files(root, error).holders(GROUP) is None


@pytest.mark.parametrize("error", [errno.EACCES, errno.EPERM])
def test_without_privileges_nothing_is_taken_for_free(root: Path, error: int) -> None:
    (root / "dev" / "vfio" / str(GROUP)).touch()
    with pytest.raises(FmctlError, match=f"who holds .*/vfio/{GROUP} cannot be told: {os.strerror(error)}") as failure:
        files(root, error).holders(GROUP)
    assert failure.value.fix == "run as root"


def test_a_group_is_not_kept_open(root: Path) -> None:
    (root / "dev" / "vfio" / str(GROUP)).touch()
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert VfioFiles(root).holders(GROUP) is None
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def with_device_node(root: Path) -> None:
    member = root / "sys" / "kernel" / "iommu_groups" / str(GROUP) / "devices"
    member.mkdir(parents=True)
    (member / str(GPU)).symlink_to(device(root).resolve())
    (device(root) / "vfio-dev" / "vfio3").mkdir(parents=True)
    (root / "dev" / "vfio" / "devices" / "vfio3").touch()


def test_a_function_can_be_held_without_its_group(root: Path) -> None:
    with_device_node(root)
    assert files(root).holders(GROUP) is None
    hold(root, 4242, "qemu-system-x86", "vfio/devices/vfio3")
    assert files(root).holders(GROUP) == (Holder(4242, "qemu-system-x86"),)
    (root / "dev" / "vfio" / str(GROUP)).touch()
    assert files(root, errno.EBUSY).holders(GROUP) == (Holder(4242, "qemu-system-x86"),)


def test_real_processes_are_found_by_their_open_files(root: Path) -> None:
    with_device_node(root)
    (root / "proc").rmdir()
    (root / "proc").symlink_to("/proc")
    with (root / "dev" / "vfio" / "devices" / "vfio3").open():
        (holder,) = VfioFiles(root).holders(GROUP) or ()
    assert holder == Holder(os.getpid(), Path("/proc/self/comm").read_text().strip())
    assert VfioFiles(root).holders(GROUP) is None


def test_a_process_without_a_name_is_still_a_holder(root: Path) -> None:
    (root / "dev" / "vfio" / str(GROUP)).touch()
    hold(root, 9, "", f"vfio/{GROUP}")
    assert files(root, errno.EBUSY).holders(GROUP) == (Holder(9, "?"),)


def test_a_vm_is_known_by_its_command_line(root: Path) -> None:
    (root / "dev" / "vfio" / str(GROUP)).touch()
    hold(root, 9, "qemu-system-x86", f"vfio/{GROUP}")
    for line, vm in (
        (b"qemu\0-name\0a\0-uuid\0AB-CD\0-m\x001", "ab-cd"),
        (b"qemu\0-uuid", ""),
        (b"qemu\0-device\0x,uuid=1", ""),
    ):
        (root / "proc" / "9" / "cmdline").write_bytes(line)
        assert files(root, errno.EBUSY).holders(GROUP) == (Holder(9, "qemu-system-x86", vm),)


class Store:
    """What a service manager holds, and passes on."""

    def __init__(self) -> None:
        self.held: dict[str, int] = {}

    def store(self, name: str, descriptor: int) -> None:
        self.held[name] = os.dup(descriptor)

    def discard(self, names: Collection[str]) -> None:
        for name in names:
            os.close(self.held.pop(name))

    def passed(self) -> dict[str, int]:
        """Copies for the next process; the manager keeps its own."""
        return {name: os.dup(descriptor) for name, descriptor in self.held.items()}


def test_a_kept_group_outlives_the_process(root: Path) -> None:
    (root / "dev" / "vfio" / str(GROUP)).touch()
    store = Store()
    first = VfioFiles(root, store=store)
    first.keep(GROUP)
    assert list(store.held) == [f"vfio-group-{GROUP}"]
    second = VfioFiles(root, store=store, stored=store.passed())
    assert second.kept == {GROUP}
    second.keep(GROUP)
    assert len(store.held) == 1
    second.give_up([GROUP])
    assert (second.kept, store.held) == (frozenset(), {})


@pytest.mark.parametrize("name", ["vfio-group-", "vfio-group-x", "another"])
def test_what_is_no_group_is_not_kept_on(root: Path, name: str) -> None:
    store = Store()
    store.held[name] = os.open(root, os.O_RDONLY)
    passed = store.passed()
    assert VfioFiles(root, store=store, stored=passed).kept == frozenset()
    assert store.held == {}
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(passed[name])


def test_two_threads_that_look_do_not_take_each_other_for_a_holder(root: Path) -> None:
    (root / "dev" / "vfio" / str(GROUP)).touch()
    opened = threading.Lock()

    def one_at_a_time(path: Path, flags: int) -> int:
        if not opened.acquire(blocking=False):
            raise OSError(errno.EBUSY, "it is open")
        time.sleep(0.001)
        opened.release()
        return os.open(path, flags)

    looking = VfioFiles(root, open_node=one_at_a_time)
    seen: list[object] = []
    threads = [threading.Thread(target=lambda: seen.extend(looking.holders(GROUP) for _ in range(50))) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [None] * 100
