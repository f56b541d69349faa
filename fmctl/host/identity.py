# SPDX-License-Identifier: Apache-2.0
"""Which host this is."""

from __future__ import annotations

from pathlib import Path


def machine_id(root: Path = Path("/")) -> str:
    """The host's own id, the same after every boot (machine-id(5)); empty where it has none."""
    try:
        return (root / "etc/machine-id").read_text("ascii").strip()
    except (OSError, ValueError):
        return ""
