# SPDX-License-Identifier: Apache-2.0
"""Reading a document that an operator wrote; `core.schema` makes sense of its text."""

from __future__ import annotations

from pathlib import Path

from fmctl.core.errors import InvalidDocument


def read(path: Path) -> str:
    """The text of a UTF-8 file; raises InvalidDocument."""
    try:
        return path.read_text("utf-8")
    except OSError as error:
        reason = error.strerror or str(error)
    except ValueError as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
    raise InvalidDocument(f"{path} cannot be read", why=reason, fix="name a file that can be read")
