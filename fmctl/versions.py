# SPDX-License-Identifier: Apache-2.0
"""The matrix of versions that comes with fmctl, `versions.yaml`. `core.versions` compares by it."""

from __future__ import annotations

from functools import cache
from importlib import resources

from fmctl.core import schema
from fmctl.core.versions import Matrix


@cache
def matrix() -> Matrix:
    """What is known of the driver's branches."""
    text = resources.files("fmctl").joinpath("versions.yaml").read_text("utf-8")
    return schema.load(Matrix, text, "versions.yaml")
