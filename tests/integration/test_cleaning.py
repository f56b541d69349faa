# SPDX-License-Identifier: Apache-2.0
"""GPUs between two tenants with whole programs: the operator's command is one, too."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from tests.integration.conftest import Fmctl, StartDaemon
from tests.support import eventually, run


def released(fmctl: Fmctl, request: str) -> None:
    """Lease the GPUs 1 and 3, and give them back."""
    asked = ("allocate", "--gpu-ids", "1,3", "--owner", "a", "--request-id", request, "-o", "json")
    lease = json.loads(fmctl.done(*asked))
    assert json.loads(fmctl.done("release", lease["id"], "--owner", "a", "-o", "json"))["state"] == "released"


def counts(fmctl: Fmctl) -> tuple[int, int, int]:
    """How many GPUs are free, being cleaned, and quarantined."""
    gpus = json.loads(fmctl.done("capacity", "-o", "json"))["gpus"]
    return gpus["free"], gpus["cleaning"], gpus["quarantined"]


def test_a_gpu_is_cleaned_by_the_operator_s_command_or_quarantined(start_daemon: StartDaemon, folder: Path) -> None:
    check, config = folder / "check", folder / "fmctld.yaml"
    check.write_text(f"#!/bin/sh\necho looked at $1 $2\ntest ! -e {folder}/dirty-$1\n")
    check.chmod(0o755)
    config.write_text(f"clean: {{memory: command, memory_command: [{check}]}}\n")
    fmctl = start_daemon("--config", str(config))
    released(fmctl, "1")
    assert counts(fmctl) == (8, 0, 0)
    fmctl.program.says("reset by bus; its memory was found clean by")
    fmctl.program.says("looked at 0000:17:00.0 10de:2330")

    (folder / "dirty-0000:17:00.0").touch()
    released(fmctl, "2")
    fmctl.program.says("reset by flr; its memory was found clean by")
    assert counts(fmctl) == (7, 0, 1)
    done = fmctl("allocate", "--gpu-ids", "1", "--owner", "b", "--request-id", "3")
    assert done.returncode == 4 and "ended with status 1" in done.stderr


def test_a_cleaning_that_a_dead_daemon_left_begins_anew(start_daemon: StartDaemon, folder: Path) -> None:
    check, config = folder / "check", folder / "fmctld.yaml"
    check.write_text(f"#!/bin/sh\nprintf '%s\\n' $$ >>{folder}/pids\ntest -e {folder}/go || exec sleep 60\n")
    check.chmod(0o755)
    config.write_text(f"clean: {{memory: command, memory_command: [{check}]}}\n")
    fmctl = start_daemon("--config", str(config))
    fmctl.done("activate", "7", "--owner", "a")
    (lease,) = json.loads(fmctl.done("lease", "list", "-o", "json"))["leases"]
    done = fmctl("release", lease["id"], "--owner", "a", timeout=3)
    assert done.returncode == 5 and "is being cleaned" in done.stderr
    pids = eventually(lambda: (folder / "pids").read_text().split())
    fmctl.program.end(signal.SIGKILL)
    os.kill(int(pids[0]), signal.SIGKILL)
    (folder / "go").touch()
    fmctl = start_daemon("--config", str(config))
    eventually(lambda: counts(fmctl) == (8, 0, 0), within=30.0)


def test_a_daemon_that_could_clean_no_gpu_does_not_start(folder: Path) -> None:
    listed, config = folder / "firmware.yaml", folder / "fmctld.yaml"
    listed.write_text(f"'10de:2330': ['{'a' * 64}']\n")
    config.write_text(f"clean: {{firmware: enforce, firmware_list: {listed}}}\n")
    argv = ("daemon", "--simulate", "hgx-h100-8", "--config", str(config), "--listen", f"unix:{folder}/fmctld.sock")
    done = run(*argv)
    assert done.returncode == 2
    assert "no source tells the firmware of 10de:2330" in done.stderr
