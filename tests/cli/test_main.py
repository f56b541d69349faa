# SPDX-License-Identifier: Apache-2.0
"""The command line as a user meets it, with no daemon behind it."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from fmctl import __version__
from tests.support import run


def test_version_and_help() -> None:
    assert run("--version").stdout == f"fmctl {__version__}\n"
    shown = run("--help")
    assert shown.returncode == 0
    hardware = ("gpu", "partition", "host", "vfio", "service-vm", "image", "tenant-vm", "platform")
    for group in ("lease", *hardware, "config", "sim"):
        assert "..." not in run(group, "--help").stdout.split("Commands:")[1]
    for command in ("allocate", "release", "capacity", "can-allocate", "explain", "watch", "reconcile"):
        assert f"\n  {command} " in shown.stdout
    for command in ("list", "activate", "deactivate", "status", "daemon", "agent", "sim", "platform", "config"):
        assert f"\n  {command}" in shown.stdout
    assert "..." not in shown.stdout.split("Commands:")[1]


@pytest.mark.parametrize(
    "command",
    [
        "",
        "list",
        "activate",
        "deactivate",
        "status",
        "wait",
        "doctor",
        "daemon",
        "agent",
        "inventory",
        "platform show",
        "sim fm",
        "vfio bind",
        "host prepare",
        "service-vm stop",
        "tenant-vm render",
        "allocate",
        "release",
        "lease list",
        "lease show",
        "lease update",
        "capacity",
        "can-allocate",
        "explain",
        "watch",
        "reconcile",
        "host info",
        "host cordon",
        "host uncordon",
        "host drain",
        "gpu list",
        "gpu unquarantine",
        "partition list",
        "partition uncordon",
        "gpumap",
        "gpumap show",
        "gpumap discover",
        "gpumap import",
        "gpumap verify",
        "gpumap accept",
    ],
)
def test_help_fits_eighty_columns(command: str) -> None:
    shown = run(*command.split(), "--help").stdout
    assert shown.startswith("Usage: fmctl")
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["frobnicate"], "No such command"),
        (["activate"], "either a partition ID or --gpu-ids"),
        (["activate", "3", "--gpu-ids", "1,3"], "either a partition ID or --gpu-ids"),
        (["activate", "three"], "'three' is no partition id"),
        (["activate", "9" * 5000], "is no partition id"),
        (["activate", "4294967296"], "is no partition id"),
        (["activate", "--", "-1"], "'-1' is no partition id"),
        (["activate", "--gpu-ids", "1;3"], "'1;3' is no list of physical ids"),
        (["activate", "--gpu-ids", "0,1"], "'0,1' is no list of physical ids"),
        (["activate", "--gpu-ids", ""], "'' is no list of physical ids"),
        (["activate", "--gpu-ids", "1,1"], "'1,1' names a GPU twice"),
        (["activate", "--gpus", "2"], "No such option"),
        (["deactivate"], "Missing argument"),
        (["list", "-o", "xml"], "'xml' is not one of"),
        (["list", "--address", "somewhere"], "unix:PATH or HOST:PORT is wanted"),
        (["list", "--timeout", "0"], "0"),
        (["wait", "--for", "godot"], "'godot' is neither ready nor state="),
        (["daemon", "--state-dir", "/tmp"], "--state-dir goes with --simulate"),
        (["daemon", "--simulate", "hgx-h100-8", "--platform", "hgx-h100-8"], "brings its own"),
        (["daemon", "--simulate", "hgx-h100"], "did you mean hgx-h100-8?"),
        (["daemon", "--listen", "127.0.0.1:0"], "unix:PATH or HOST:PORT is wanted"),
        (["daemon", "--listen", "127.0.0.1:50099"], "add --insecure-tcp"),
        (["daemon", "--listen", "0.0.0.0:50099", "--insecure-tcp"], "not a loopback address"),
        (["agent", "--listen", "vsock:3:5"], "grpcio knows no vsock"),
        (["agent", "--config", "/no/such/file"], "No such file or directory"),
        (["config", "show", "--config", "/etc/hostname"], "--config goes with a program"),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else "",
)
def test_misuse_is_exit_2_with_the_reason_on_stderr(arguments: list[str], says: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2, done.stderr
    assert says in " ".join(done.stderr.split())
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command",
    [["list"], ["activate", "3"], ["deactivate", "3"], ["status"], ["lease", "list"], ["watch"], ["host", "drain"]],
    ids=" ".join,
)
@pytest.mark.parametrize("address", ["unix:/no/such.sock", "127.0.0.1:1"])
def test_a_dead_address_is_exit_5_with_the_address(command: list[str], address: str) -> None:
    done = run(*command, "--address", address, "--timeout", "10")
    assert done.returncode == 5
    assert done.stdout == ""
    assert done.stderr.startswith(f"fmctl: fmctld at {address} does not answer\n  why: ")
    assert "\n  do:  see that it runs" in done.stderr


def test_the_address_may_come_from_the_environment_and_stand_anywhere() -> None:
    env = {"FMCTL_ADDRESS": "unix:/from/env.sock"}
    assert "at unix:/from/env.sock" in run("list", env=env).stderr
    assert "at unix:/before.sock" in run("--address", "unix:/before.sock", "list", env=env).stderr
    assert (
        "at unix:/after.sock" in run("--address", "unix:/before.sock", "list", "--address", "unix:/after.sock").stderr
    )


def test_waiting_ends_at_the_timeout() -> None:
    done = run("wait", "--address", "unix:/no/such.sock", "--timeout", "0.5")
    assert (done.returncode, done.stdout) == (5, "")


def test_settings_are_shown_with_their_meaning() -> None:
    shown = run("config", "show", "--defaults")
    assert shown.returncode == 0
    assert "listen: unix:/run/fmctl/fmctld.sock\n" in shown.stdout
    assert "listen: unix:/run/fmctl/agent.sock\n" in shown.stdout


def test_a_bad_settings_file_is_refused_with_file_key_and_reason(folder: Path) -> None:
    file = folder / "fmctld.yaml"
    file.write_text("listn: unix:/tmp/x.sock\n")
    for command in (["daemon"], ["config", "show", "daemon"]):
        done = run(*command, "--config", str(file))
        assert done.returncode == 2
        assert f"fmctl: {file} is refused\n  why: listn: there is no such key; did you mean listen?" in done.stderr


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    command = f"{sys.executable} -m fmctl config show --defaults | head -n 1"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False, timeout=30)
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


def test_a_full_disk_is_told() -> None:
    command = f"{sys.executable} -m fmctl config show --defaults > /dev/full"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_terminal_sees_the_same_as_a_pipe() -> None:
    primary, secondary = pty.openpty()
    argv = [sys.executable, "-m", "fmctl", "platform", "list"]
    subprocess.run(argv, stdout=secondary, check=True, timeout=30, env={**os.environ, "TERM": "xterm-256color"})
    os.close(secondary)
    seen = os.read(primary, 65536).decode().replace("\r\n", "\n")
    os.close(primary)
    assert seen == run("platform", "list").stdout
