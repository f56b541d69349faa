# SPDX-License-Identifier: Apache-2.0
"""Text tables, laid out as Go's tabwriter does; commands choose the columns."""

from __future__ import annotations

from collections.abc import Sequence


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, show_headers: bool = True) -> str:
    """Columns two blanks apart, under headers that are each underlined by dashes of their own length.

    Columns are as wide as what is printed in them, so rows without headers stand closer. No line ends in a blank.
    """
    above = [headers, ["-" * len(header) for header in headers]] if show_headers else []
    lines = [*above, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "".join("  ".join(map(str.ljust, line, widths)).rstrip(" ") + "\n" for line in lines)
