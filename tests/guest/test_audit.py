# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from fmctl.core.errors import FmctlError
from fmctl.guest.audit import AuditFile


def test_lines_outlive_who_wrote_them(folder: Path) -> None:
    path = folder / "run" / "audit.jsonl"
    assert AuditFile(path).lines() == ()
    AuditFile(path).append("a")
    AuditFile(path).append("\N{EURO SIGN}")
    assert AuditFile(path).lines() == ("a", "\N{EURO SIGN}")
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_line_that_was_cut_off_spoils_no_other(folder: Path) -> None:
    path = folder / "audit.jsonl"
    path.write_bytes(b'a\n{"cut')
    AuditFile(path).append("b")
    assert AuditFile(path).lines() == ("a", '{"cut', "b")


def test_a_line_that_cannot_be_written_is_told(folder: Path) -> None:
    (folder / "file").write_text("")
    with pytest.raises(FmctlError, match="cannot be written"):
        AuditFile(folder / "file" / "audit.jsonl").append("a")
