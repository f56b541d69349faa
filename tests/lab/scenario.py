# SPDX-License-Identifier: Apache-2.0
"""A scenario: a function that takes the emulated host and fails by raising. `tests.lab.scenarios` holds them.

They run in the order in which they stand, in one boot of each variant and round, so each brings about what it needs
itself, by `tests.lab.steps`, and does so quickly where an earlier one left it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from tests.lab import scenarios
from tests.lab.host import Host
from tests.lab.machine import Variant

Run = Callable[[Host], None]


@dataclass(frozen=True)
class Scenario:
    """What a variant must show."""

    name: str
    run: Run
    variants: frozenset[Variant]
    round: str


_all: list[Scenario] = []


def scenario(*variants: Variant) -> Callable[[Run], Run]:
    """Make a function a scenario of these variants; its name, in words, is the scenario's."""

    def register(run: Run) -> Run:
        module = run.__module__.rpartition(".")[2]
        its = next(name for name, modules in scenarios.ROUNDS.items() if module in modules)
        _all.append(Scenario(run.__name__.replace("_", " "), run, frozenset(variants), its))
        return run

    return register


def every() -> list[Scenario]:
    """All scenarios, in their order."""
    for module in (module for modules in scenarios.ROUNDS.values() for module in modules):
        importlib.import_module(f"{scenarios.__name__}.{module}")
    return list(_all)
