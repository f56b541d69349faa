# SPDX-License-Identifier: Apache-2.0
"""Fabric Manager's version and the NVIDIA driver's, which must be the same (FM User Guide)."""

from __future__ import annotations

import re

from fmctl.core.errors import VersionMismatch


def parse(output: str) -> str:
    """The version in what `nv-fabricmanager -v` prints; empty where there is none."""
    found = re.search(r"^Fabric Manager version is\s*:\s*([0-9A-Za-z.+~-]+)\s*$", output, re.MULTILINE)
    return found[1] if found else ""


def difference(fabric_manager: str, driver: str) -> str:
    """How the two differ; empty where they do not, or either is unknown."""
    if not fabric_manager or not driver or fabric_manager == driver:
        return ""
    return f"Fabric Manager is {fabric_manager}, and the driver {driver}"


def refuse_difference(fabric_manager: str, driver: str) -> None:
    """Raise VersionMismatch where the two are known to differ."""
    if text := difference(fabric_manager, driver):
        raise VersionMismatch(
            "Fabric Manager is not started", why=text, fix="use an image of the Service VM with both of one version"
        )
