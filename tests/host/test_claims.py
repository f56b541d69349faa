# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from fmctl.core.errors import FmctlError
from fmctl.host.claims import FileClaims


def test_claims_outlive_the_process_that_made_them(folder: Path) -> None:
    FileClaims(folder / "claims.json").put(3, "tenant-ä")
    assert FileClaims(folder / "claims.json").owners() == {3: "tenant-ä"}


def test_a_crash_while_writing_leaves_the_old_claims(folder: Path) -> None:
    path = folder / "claims.json"
    FileClaims(path).put(3, "a")
    (folder / ".claims.json.new").write_text('{"3": ')
    assert FileClaims(path).owners() == {3: "a"}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"x": "a"}'], ids=["empty", "cut", "list", "no id"])
def test_a_damaged_file_is_refused_and_kept(folder: Path, text: str) -> None:
    path = folder / "claims.json"
    path.write_text(text)
    with pytest.raises(FmctlError, match="cannot be read") as refusal:
        FileClaims(path)
    assert "remove" in refusal.value.fix
    assert path.read_text() == text


def test_a_claim_that_cannot_be_written_is_not_believed(folder: Path) -> None:
    claims = FileClaims(folder / "gone" / "claims.json")
    with pytest.raises(FmctlError, match="cannot be written"):
        claims.put(3, "a")
    assert claims.owners() == {}
