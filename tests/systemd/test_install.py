# SPDX-License-Identifier: Apache-2.0
"""`make install` for real, below a folder of the test's own, from wheels alone. Run by `make install-test`."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmctl import __version__

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.install

OPTIONAL = {"libvirt", "grpc_reflection"}
"""What the system has to bring, and what an extra does."""
UNITS = ("fmctld.service", "fmctl-ready.service", "fmctl-ready.target")
HOOK = "etc/libvirt/hooks/qemu.d/fmctl"
NO_NETWORK = {
    "http_proxy": "http://127.0.0.1:9",
    "https_proxy": "http://127.0.0.1:9",
    "PIP_INDEX_URL": "http://127.0.0.1:9",
}


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    make("wheels", WHEELS=str(folder))
    return folder


@pytest.fixture(scope="session")
def installed(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fmctl, installed by somebody with a strict umask and no network."""
    folder = tmp_path_factory.mktemp("installed")
    install(folder, wheels)
    return folder


@pytest.fixture
def destination(installed: Path, tmp_path: Path) -> Path:
    """The same, for one test to change."""
    return shutil.copytree(installed, tmp_path / "destination", symlinks=True)


def make(target: str, *, env: dict[str, str] | None = None, **variables: str) -> str:
    arguments = [f"{name}={value}" for name, value in variables.items()]
    done = subprocess.run(
        ["/usr/bin/make", "--no-print-directory", target, *arguments],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
        umask=0o077,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def install(destination: Path, wheels: Path, **variables: str) -> str:
    return make("install", env=NO_NETWORK, DESTDIR=str(destination), WHEELS=str(wheels), **variables)


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything below a folder, with its mode and its time of change."""
    found = {}
    for path in folder.rglob("*"):
        state = path.lstat()
        found[str(path.relative_to(folder))] = (state.st_mode, state.st_mtime_ns)
    return found


def test_everything_is_in_its_place_and_readable(destination: Path) -> None:
    usr = destination / "usr"
    for name in UNITS:
        text = (usr / "lib/systemd/system" / name).read_text()
        assert "@PREFIX@" not in text
    assert "ExecStart=/usr/bin/fmctl daemon" in (usr / "lib/systemd/system/fmctld.service").read_text()
    hook = destination / HOOK
    assert hook.stat().st_mode & 0o777 == 0o755
    assert hook.read_text().endswith('exec /usr/bin/env /usr/bin/fmctl hook qemu -- "$@"\n')
    for name in ("lib/sysusers.d/fmctl.conf", "lib/tmpfiles.d/fmctl.conf", "share/doc/fmctl/LICENSE"):
        assert (usr / name).is_file()
    assert "socket_group" in (usr / "share/doc/fmctl/fmctld.yaml").read_text()
    assert sorted(path.name for path in destination.iterdir()) == ["etc", "usr"]
    assert list((destination / "etc/fmctl").iterdir()) == []
    for path in destination.rglob("*"):
        wanted = 0o555 if path.is_dir() else 0o444
        assert path.is_symlink() or path.stat().st_mode & wanted == wanted, path


def test_nothing_tells_where_it_was_made(installed: Path) -> None:
    done = subprocess.run(
        ["/usr/bin/grep", "-rlF", str(installed), str(installed)], capture_output=True, text=True, check=False
    )
    assert done.stdout == ""
    links = [path for path in installed.rglob("*") if path.is_symlink()]
    assert [path for path in links if str(installed) in str(path.readlink())] == []


def test_it_is_compiled(destination: Path) -> None:
    packages = next((destination / "usr/lib/fmctl/current/lib").glob("python3*/site-packages"))
    compiled = {path.name.split(".")[0] for path in (packages / "fmctl/__pycache__").iterdir()}
    assert {path.stem for path in (packages / "fmctl").glob("*.py")} <= compiled


def test_libvirt_alone_is_the_system_s(destination: Path) -> None:
    venv = destination / "usr/lib/fmctl/current"
    packages = next((venv / "lib").glob("python3*/site-packages"))
    names = {path.name for path in packages.iterdir()}
    assert {"click", "grpc", "jinja2", "yaml", "fmctl"} <= names
    assert not {"libvirt.py", "pip", "setuptools"} & names
    assert "include-system-site-packages = true" in (venv / "pyvenv.cfg").read_text()


def imported() -> set[str]:
    """What any module of the package imports, lazily or not, by the name of the outermost package."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / "fmctl").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names}


def test_all_that_it_imports_is_there(destination: Path) -> None:
    names = sorted(imported() - OPTIONAL)
    assert {"grpc", "jinja2", "yaml"} <= set(names)
    program = f"import importlib.util as u; print([n for n in {names} if u.find_spec(n) is None])"
    python = next((destination / "usr/lib/fmctl").glob("*-*/bin/python3"))
    done = subprocess.run([python, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def in_its_place(destination: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command where the destination's /usr/lib/fmctl and /usr/bin/fmctl are the system's."""
    script = (
        "mount -t tmpfs none /mnt && mkdir /mnt/upper /mnt/work && mount -t overlay none /usr"
        ' -o "lowerdir=$0/usr:/usr,upperdir=/mnt/upper,workdir=/mnt/work" && exec "$@"'
    )
    return subprocess.run(
        ["/usr/bin/unshare", "--mount", "--propagation=private", "sh", "-c", script, str(destination), *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd="/",
        env={"PATH": "/usr/sbin:/usr/bin"},
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
def test_it_runs_where_it_belongs(destination: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    moved = tmp_path_factory.mktemp("moved") / "root"
    shutil.move(destination, moved)
    done = in_its_place(moved, "fmctl", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert __version__ in done.stdout
    done = in_its_place(moved, "fmctl", "service-vm", "render", "--simulate", "hgx-h100-8")
    assert "<domain" in done.stdout, done.stderr
    done = in_its_place(
        moved, "/usr/lib/fmctl/current/bin/python3", "-c", "import fmctl, sys; print(fmctl.__file__, sys.prefix)"
    )
    assert done.stdout.startswith("/usr/lib/fmctl/"), done.stderr


def test_a_second_install_changes_nothing_of_the_program(destination: Path, wheels: Path) -> None:
    before = tree(destination / "usr/lib/fmctl")
    install(destination, wheels)
    after = tree(destination / "usr/lib/fmctl")
    assert {name for name, state in before.items() if after.get(name) != state} <= {"current"}
    assert before.keys() == after.keys()


def versions(destination: Path) -> list[str]:
    return sorted(path.name for path in (destination / "usr/lib/fmctl").iterdir() if path.name != "current")


def other_wheels(wheels: Path, folder: Path, text: str) -> Path:
    """The same wheels, and one more file, so that they are another version's."""
    shutil.copytree(wheels, folder)
    wheel = next(folder.glob("tenacity-*.whl"))
    shutil.copy(wheel, folder / re.sub("-py3", f"-{text}-py3", wheel.name, count=1))
    return folder


@contextlib.contextmanager
def watched(path: Path) -> Iterator[list[bool]]:
    """Whether a file was there, at every look while the block runs."""
    seen: list[bool] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            seen.append(path.exists())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    yield seen
    ended.set()
    thread.join()


def test_an_upgrade_keeps_what_runs_and_the_settings(
    destination: Path, wheels: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("upgrades")
    settings = destination / "etc/fmctl/fmctld.yaml"
    settings.write_text("log_level: debug\n")
    current = destination / "usr/lib/fmctl/current"
    first = current.readlink()
    with watched(destination / "usr/bin/fmctl") as seen:
        install(destination, other_wheels(wheels, folder / "a", "1"))
    assert len(seen) > 1000
    assert all(seen), "fmctl is there at every moment"
    second = current.readlink()
    assert first != second
    assert versions(destination) == sorted(map(str, {first, second}))
    install(destination, other_wheels(wheels, folder / "b", "2"))
    third = current.readlink()
    assert versions(destination) == sorted(map(str, {second, third}))
    assert settings.read_text() == "log_level: debug\n"


def test_a_failed_install_leaves_the_old_one(destination: Path, wheels: Path, tmp_path: Path) -> None:
    before = (destination / "usr/lib/fmctl/current").readlink()
    broken = tmp_path / "broken"
    shutil.copytree(wheels, broken)
    next(broken.glob("click-*.whl")).unlink()
    done = subprocess.run(
        [str(ROOT / "tools" / "install")],
        cwd=ROOT,
        env={**os.environ, "DESTDIR": str(destination), "WHEELS": str(broken)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert (destination / "usr/lib/fmctl/current").readlink() == before
    assert [path.name for path in (destination / "usr/lib/fmctl").iterdir() if path.name.startswith(".")] == []


def test_another_prefix(tmp_path: Path, wheels: Path) -> None:
    install(tmp_path, wheels, PREFIX="/opt/fmctl")
    script = (tmp_path / "opt/fmctl/lib/fmctl/current/bin/fmctl").read_text()
    assert script.startswith("#!/opt/fmctl/lib/fmctl/")
    assert "ExecStart=/opt/fmctl/bin/fmctl " in (tmp_path / "opt/fmctl/lib/systemd/system/fmctld.service").read_text()


def test_libvirt_s_hook_of_somebody_else_stays(destination: Path, wheels: Path) -> None:
    hook = destination / HOOK
    hook.write_text("#!/bin/sh\n# an older hook: fmctl's hook for libvirt\n")
    other = hook.with_name("other")
    other.write_text("#!/bin/sh\n")
    install(destination, wheels)
    assert "exec /usr/bin/env /usr/bin/fmctl" in hook.read_text()
    hook.write_text("#!/bin/sh\n# theirs\n")
    install(destination, wheels)
    assert "theirs" in hook.read_text()
    assert sorted(path.name for path in hook.parent.parent.rglob("*")) == ["fmctl", "other", "qemu.d"]
    make("uninstall", DESTDIR=str(destination))
    assert hook.is_file()
    assert other.is_file()


def test_a_newer_systemd_gets_its_drop_in(destination: Path, wheels: Path) -> None:
    drop_in = destination / "usr/lib/systemd/system/fmctld.service.d/10-systemd-254.conf"
    make("install", env={"SYSTEMD_VERSION": "255"}, DESTDIR=str(destination), WHEELS=str(wheels))
    assert drop_in.is_file()
    make("install", env={"SYSTEMD_VERSION": "252"}, DESTDIR=str(destination), WHEELS=str(wheels))
    assert not drop_in.exists()


def test_uninstall_leaves_the_configuration_alone(destination: Path) -> None:
    settings = destination / "etc/fmctl/fmctld.yaml"
    settings.write_text("log_level: debug\n")
    images = destination / "var/lib/fmctl/images/some"
    images.mkdir(parents=True)
    told = make("uninstall", DESTDIR=str(destination))
    assert "/etc/fmctl" in told
    left = [path for path in destination.rglob("*") if path.is_file()]
    assert left == [settings]
    assert images.is_dir()


@pytest.mark.parametrize("variables", [{"PREFIX": "usr"}, {"DESTDIR": "relative"}, {"WHEELS": "/no/such/folder"}])
def test_what_cannot_be_meant_is_refused(tmp_path: Path, variables: dict[str, str]) -> None:
    done = subprocess.run(
        [str(ROOT / "tools" / "install")],
        cwd=ROOT,
        env={**os.environ, "DESTDIR": str(tmp_path), **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("tools/install: ")
    assert list(tmp_path.iterdir()) == []
