# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

from fmctl.core.fingerprint import Machine
from fmctl.host import machine


def test_the_boot_and_what_the_firmware_says_are_read(tmp_path: Path) -> None:
    dmi, kernel = tmp_path / "sys/class/dmi/id", tmp_path / "proc/sys/kernel/random"
    dmi.mkdir(parents=True)
    kernel.mkdir(parents=True)
    (kernel / "boot_id").write_text("0f1e\n")
    (dmi / "bios_version").write_text("1.3a\n")
    (dmi / "bios_date").write_text("05/22/2026\n")
    (dmi / "chassis_serial").write_text("C123\n")
    assert machine.read(tmp_path) == Machine("0f1e", "1.3a 05/22/2026", "C123")


def test_a_host_that_says_nothing_is_no_error(tmp_path: Path) -> None:
    assert machine.read(tmp_path) == Machine()


def test_this_host_has_a_boot_id() -> None:
    assert machine.read().boot
