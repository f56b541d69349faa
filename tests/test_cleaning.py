# SPDX-License-Identifier: Apache-2.0
"""What the settings say of cleaning, read for a daemon that starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmctl import local
from fmctl.core import schema
from fmctl.core.errors import FmctlError, InvalidDocument
from fmctl.core.pci import PciId
from fmctl.core.rules import Firmware, Memory
from fmctl.core.settings import CleanSettings

DIGEST = "a" * 64


def settings(text: str) -> CleanSettings:
    return schema.load(CleanSettings, text, "fmctld.yaml")


def test_by_default_a_gpu_is_only_reset_and_its_firmware_noted() -> None:
    rules = local.clean_rules(CleanSettings())
    assert (rules.memory, rules.firmware, rules.firmware_list) == (Memory.RESET_ONLY, Firmware.RECORD, None)
    assert rules.reset_timeout is None


def test_the_list_is_read_when_the_daemon_starts(tmp_path: Path) -> None:
    listed = tmp_path / "firmware.yaml"
    enforced = settings(f"firmware: enforce\nfirmware_list: {listed}\nreset_timeout_s: 5\n")
    with pytest.raises(FmctlError, match=r"firmware\.yaml"):
        local.clean_rules(enforced)
    listed.write_text("10de: x")
    with pytest.raises(InvalidDocument, match=r"firmware\.yaml is refused"):
        local.clean_rules(enforced)
    listed.write_text(f"'10de:2330': ['{DIGEST}']")
    rules = local.clean_rules(enforced)
    assert rules.firmware_list is not None and rules.firmware_list.allowed == {PciId(0x10DE, 0x2330): {DIGEST}}
    assert rules.reset_timeout == 5.0


@pytest.mark.parametrize("text", ["memory: command\nmemory_command: [{}]", "firmware_command: [{}]"])
def test_a_command_must_be_there_when_the_daemon_starts(text: str) -> None:
    local.clean_rules(settings(text.format("sh")))
    with pytest.raises(InvalidDocument, match="/nowhere/check cannot be run"):
        local.clean_rules(settings(text.format("/nowhere/check")))
