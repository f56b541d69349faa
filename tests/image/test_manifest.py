# SPDX-License-Identifier: Apache-2.0
"""manifest.json, written and read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fmctl.core.errors import InvalidDocument
from imagebuild import manifest


def image(folder: Path) -> dict[str, object]:
    for name in manifest.FILES:
        (folder / name).write_text(name)
    document = manifest.document(
        manifest.digests(folder), {"kmod": "30"}, {"agent": "0.1.0"}, ["/b", "/a"], simulated=True
    )
    (folder / manifest.NAME).write_text(manifest.text(document))
    return document


def test_its_text_has_one_form(tmp_path: Path) -> None:
    document = image(tmp_path)
    text = (tmp_path / manifest.NAME).read_text()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"
    assert json.loads(text) == document
    assert list(json.loads(text)["files"]) == ["agent.tar", "initrd", "root.squashfs", "vmlinuz"]
    assert json.loads(text)["extra"] == ["/a", "/b"]


def test_a_sound_image_is_read(tmp_path: Path) -> None:
    document = image(tmp_path)
    assert manifest.read(tmp_path) == document


@pytest.mark.parametrize("name", manifest.FILES)
def test_a_changed_file_is_named(tmp_path: Path, name: str) -> None:
    image(tmp_path)
    (tmp_path / name).write_text("changed")
    with pytest.raises(InvalidDocument, match="was changed") as caught:
        manifest.read(tmp_path)
    assert name in caught.value.why


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": 3}', '{"files": {}, "format": 1}'])
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    image(tmp_path)
    (tmp_path / manifest.NAME).write_text(text)
    with pytest.raises(InvalidDocument, match="is no image"):
        manifest.read(tmp_path)


def test_another_agent_changes_nothing_else(tmp_path: Path) -> None:
    document = image(tmp_path)
    other = manifest.with_agent(document, "0" * 64, "0.2.0")
    assert other["files"]["agent.tar"] == "0" * 64
    assert other["versions"]["agent"] == "0.2.0"
    back = manifest.with_agent(other, manifest.digests(tmp_path)["agent.tar"], "0.1.0")
    assert back == document
