# SPDX-License-Identifier: Apache-2.0
"""The kernel's command line, read as the kernel reads it."""

from __future__ import annotations

import pytest

from fmctl.core.kernel import parameters, words


@pytest.mark.parametrize(
    ("line", "found"),
    [
        pytest.param("", (), id="empty"),
        pytest.param("ro  quiet\tsplash\n", ("ro", "quiet", "splash"), id="blanks"),
        pytest.param('pci="noaer,noacs"', ("pci=noaer,noacs",), id="quoted-value"),
        pytest.param('"dyndbg=file drivers/pci/pci.c +p" ro', ("dyndbg=file drivers/pci/pci.c +p", "ro"), id="quoted"),
        pytest.param("ro -- init=x pci=noacs", ("ro",), id="for-the-first-process"),
        pytest.param("ro --verbose", ("ro", "--verbose"), id="dashes"),
        pytest.param('ro "unended quote', ("ro", "unended quote"), id="unended"),
    ],
)
def test_words_are_those_of_the_kernel(line: str, found: tuple[str, ...]) -> None:
    assert words(line) == found


def test_dashes_in_names_are_underscores_and_values_stay() -> None:
    line = ("vfio-iommu-type1.allow-unsafe-interrupts=Y", "a=b-c=d", "ro")
    assert list(parameters(line)) == [
        ("vfio_iommu_type1.allow_unsafe_interrupts", "Y"),
        ("a", "b-c=d"),
        ("ro", ""),
    ]
