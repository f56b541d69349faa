# SPDX-License-Identifier: Apache-2.0
"""A file that is whole at any time, as `guest.fmservice` and `guest.package` want theirs."""

from __future__ import annotations

from pathlib import Path


def replace(path: Path, text: str) -> None:
    """Let the file be that text, in the place of an old one; raises OSError.

    Nobody else may write to its folder, nor may two replace one file at once.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.write_text(text, "utf-8")
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
