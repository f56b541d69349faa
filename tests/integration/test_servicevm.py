# SPDX-License-Identifier: Apache-2.0
"""The Service VM's life through the command line, on a pretended host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.integration.conftest import Chain, StartDaemon
from tests.support import eventually


def test_it_is_stopped_started_and_destroyed(start_daemon: StartDaemon) -> None:
    fmctl = start_daemon()
    assert fmctl.status()["service_vm"]["state"] == "ready"
    fmctl.done("activate", "3")
    assert fmctl.done("service-vm", "stop") == "the Service VM fmctl-service-vm is absent\n"
    done = fmctl("list", timeout=5)
    assert (done.returncode, done.stdout) == (5, "")
    fmctl.done("wait", "--for", "state=absent")
    assert fmctl.status()["service_vm"]["message"] == "it was stopped on request"
    fmctl.done("service-vm", "start")
    fmctl.done("wait")
    eventually(lambda: fmctl.active() == [3])
    assert fmctl.done("service-vm", "start", "-o", "json")
    stopped: Any = json.loads(fmctl.done("service-vm", "destroy", "-o", "json"))
    assert (stopped["state"], stopped["name"]) == ("absent", "fmctl-service-vm")


def test_the_log_shows_discovery_binding_and_the_states(start_daemon: StartDaemon) -> None:
    fmctl = start_daemon()
    log = fmctl.program.log
    for text in (
        "0000:17:00.0: set driver_override to fmctl-parked",
        "0000:04:00.0: bind to vfio-pci",
        "the Service VM is started from what the settings name with 5 devices",
        "the Service VM is booting",
    ):
        assert text in log
    eventually(lambda: "the Service VM is ready" in fmctl.program.log)


def test_its_console_is_shown(start_daemon: StartDaemon) -> None:
    fmctl = start_daemon()
    assert "the pretended guest boots" in fmctl.done("service-vm", "console", "-n", "5")


def test_what_fabric_manager_logs_in_it_is_shown(start_daemon: StartDaemon) -> None:
    fmctl = start_daemon()
    eventually(lambda: "fabric manager: " in fmctl.done("service-vm", "log"))
    told = json.loads(fmctl.done("service-vm", "log", "-n", "1", "-o", "json"))
    assert (len(told["lines"]), told["lines"][0]["source"], told["dropped"]) == (1, "fabric manager", 0)


def test_one_whose_files_the_settings_name_takes_no_image(start_daemon: StartDaemon) -> None:
    done = start_daemon()("service-vm", "upgrade", "some")
    assert done.returncode == 2
    assert "the settings name the files that it boots" in done.stderr


def test_the_generation_counts_fresh_starts(start_daemon: StartDaemon) -> None:
    fmctl = start_daemon()
    before = fmctl.status()["fabric"]["generation"]
    fmctl.done("service-vm", "stop")
    fmctl.done("service-vm", "start")
    fmctl.done("wait")
    assert fmctl.status()["fabric"]["generation"] == before + 1


def test_one_that_is_someone_else_s_is_never_touched(chain: Chain) -> None:
    chain.fabric_manager()
    chain.agent()
    fmctl = chain.daemon()
    for verb in ("start", "stop", "destroy"):
        done = fmctl("service-vm", verb)
        assert done.returncode == 2
        assert "someone else's" in done.stderr
    assert fmctl("service-vm", "console").returncode == 2
    assert fmctl.status()["service_vm"]["state"] == "unmanaged"
    assert "service VM" not in fmctl.done("status")


def test_an_agent_is_named_exactly_where_the_service_vm_is_not_managed(folder: Path) -> None:
    from tests.support import run

    settings = folder / "fmctld.yaml"
    for text in ("agent: 127.0.0.1:7000", "service_vm: {managed: false}"):
        settings.write_text(f"{text}\nlisten: unix:{folder}/fmctld.sock\n")
        done = run("daemon", "--config", str(settings))
        assert done.returncode == 2
        assert "the agent's address is not settled" in done.stderr
