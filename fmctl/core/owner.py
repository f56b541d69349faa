# SPDX-License-Identifier: Apache-2.0
"""Owners: who a partition is held for, as they name themselves."""

from __future__ import annotations

from fmctl.core.errors import BadRequest

MAX_LENGTH = 128
RESERVED = "system:"
"""What the names of fmctl's own owners begin with."""


def check(owner: str) -> str:
    """The owner, if it is a name that a caller may use; raises BadRequest."""
    problem = _problem(owner)
    if problem:
        raise BadRequest(f"owner {owner[:MAX_LENGTH]!r} is refused", why=problem, fix="give another owner")
    return owner


def is_system(owner: str) -> bool:
    """Whether the name is one of fmctl's own, which no caller may use."""
    return owner.startswith(RESERVED)


def _problem(owner: str) -> str:
    if not owner:
        return "it is empty"
    if len(owner) > MAX_LENGTH:
        return f"it has {len(owner)} characters, and {MAX_LENGTH} are the most"
    if not owner.isprintable() or owner != owner.strip():
        return "it has characters that cannot be printed, or blanks at an end"
    if is_system(owner):
        return f"names that begin with {RESERVED} are fmctl's own"
    return ""
