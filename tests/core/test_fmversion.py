# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from fmctl.core import fmversion
from fmctl.core.errors import VersionMismatch


@pytest.mark.parametrize(
    ("output", "version"),
    [
        ("Fabric Manager version is : 580.178.04\n", "580.178.04"),
        ("some warning\nFabric Manager version is : 570.86.15\r\n", "570.86.15"),
        ("Fabric Manager version is :\n", ""),
        ("version 580\n", ""),
        ("", ""),
    ],
)
def test_the_version_is_read(output: str, version: str) -> None:
    assert fmversion.parse(output) == version


def test_only_two_known_versions_differ() -> None:
    assert fmversion.difference("580.95.05", "580.95.05") == ""
    assert fmversion.difference("", "580.95.05") == fmversion.difference("580.95.05", "") == ""
    assert fmversion.difference("580.95.05", "580.65.06") == "Fabric Manager is 580.95.05, and the driver 580.65.06"


def test_a_difference_is_refused_with_both_named() -> None:
    fmversion.refuse_difference("580.95.05", "")
    with pytest.raises(VersionMismatch, match=r"580\.95\.05.*580\.65\.06"):
        fmversion.refuse_difference("580.95.05", "580.65.06")
