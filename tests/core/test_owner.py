# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from fmctl.core import owner
from fmctl.core.errors import BadRequest


@pytest.mark.parametrize("name", ["a", "tenant-1", "Ünal & Co", "x" * 128])
def test_names_that_people_use_are_taken(name: str) -> None:
    assert owner.check(name) == name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "empty"),
        ("x" * 129, "129 characters"),
        ("a\nb", "cannot be printed"),
        ("\x1b[31m", "cannot be printed"),
        (" a", "blanks"),
        ("system:layout", "fmctl's own"),
    ],
)
def test_other_names_are_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(BadRequest, match=reason):
        owner.check(name)
