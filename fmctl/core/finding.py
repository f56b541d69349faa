# SPDX-License-Identifier: Apache-2.0
"""One thing that is wrong with a host, as an operator reads it. `core.isolation` and `core.kernel` find them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """What is wrong, why it matters, and what to do; `name` is short and stays the same between versions."""

    name: str
    what: str
    why: str
    fix: str
