# SPDX-License-Identifier: Apache-2.0
"""Asking the host whether passthrough is safe on it; `core.isolation` judges.

The daemon asks when it starts and before each activation, so no more is read than must be: the kernel's own words, and
a few registers of the ports above the board's devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from fmctl.core import acs, isolation
from fmctl.core.errors import HostCordoned
from fmctl.core.finding import Finding
from fmctl.core.inventory import Inventory
from fmctl.core.ports import Kernel, PciBus


def check(bus: PciBus, kernel: Kernel, inventory: Inventory) -> tuple[Finding, ...]:
    """All that makes passthrough of the board unsafe, or impossible."""
    access = {bdf: acs.read(partial(bus.config, bdf)) for bdf in isolation.counting(inventory)}
    functions = bus.functions() if isolation.wants_functions(access) else ()
    return isolation.judge(kernel.facts(), inventory, access, functions)


def refuse(findings: Sequence[Finding]) -> None:
    """Raise HostCordoned where there are findings, naming them all."""
    if findings:
        raise HostCordoned(
            f"passthrough is not safe on this host: {', '.join(finding.name for finding in findings)}",
            why="; ".join(finding.what for finding in findings),
            fix=findings[0].fix if len(findings) == 1 else "see `fmctl host check` for what to do about each",
        )
