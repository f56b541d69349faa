# SPDX-License-Identifier: Apache-2.0
"""In which boot the host is, and what its firmware says of it. `sim.machine` pretends one."""

from __future__ import annotations

from pathlib import Path

from fmctl.core.fingerprint import Machine
from fmctl.host.attributes import text


def read(root: Path = Path("/")) -> Machine:
    """The host below `root`; its chassis' serial number is shown to root alone."""
    dmi = root / "sys" / "class" / "dmi" / "id"
    bios = " ".join(filter(None, (text(dmi / "bios_version"), text(dmi / "bios_date"))))
    return Machine(text(root / "proc/sys/kernel/random/boot_id"), bios, text(dmi / "chassis_serial"))
