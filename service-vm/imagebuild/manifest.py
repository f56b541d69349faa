# SPDX-License-Identifier: Apache-2.0
"""manifest.json: what an image's files are, by SHA-256, and what is in them. It is what gets signed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmctl.core.errors import InvalidDocument
from imagebuild.cache import sha256

NAME = "manifest.json"
FILES = ("agent.tar", "initrd", "root.squashfs", "vmlinuz")
KERNEL_ARGUMENTS = "console=ttyS0 panic=-1 quiet"
FORMAT = 1


def document(
    files: Mapping[str, str],
    packages: Mapping[str, str],
    versions: Mapping[str, str],
    extra: list[str],
    *,
    simulated: bool,
) -> dict[str, Any]:
    """The manifest of an image whose files have these SHA-256."""
    return {
        "extra": sorted(extra),
        "files": dict(files),
        "format": FORMAT,
        "kernel_arguments": KERNEL_ARGUMENTS,
        "packages": dict(packages),
        "simulated": simulated,
        "versions": dict(versions),
    }


def with_agent(manifest: Mapping[str, Any], digest: str, version: str) -> dict[str, Any]:
    """The manifest of the same image with another agent."""
    files = {**manifest["files"], "agent.tar": digest}
    return {**manifest, "files": files, "versions": {**manifest["versions"], "agent": version}}


def text(manifest: Mapping[str, Any]) -> str:
    """The document's one form."""
    return json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def read(folder: Path) -> dict[str, Any]:
    """An image's manifest, whose files were compared with it; raises InvalidDocument."""
    try:
        manifest: dict[str, Any] = json.loads((folder / NAME).read_text())
        wrong = [name for name, digest in manifest["files"].items() if sha256(folder / name) != digest]
        if manifest["format"] != FORMAT or set(manifest["files"]) != set(FILES):
            raise ValueError(f"{NAME} is of a format that this version does not know")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InvalidDocument(f"{folder} is no image", why=str(error), fix="name the folder of an image") from error
    if wrong:
        raise InvalidDocument(
            f"the image {folder} was changed", why=f"not as {NAME} says: {', '.join(wrong)}", fix="build it again"
        )
    return manifest


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of an image's files."""
    return {name: sha256(folder / name) for name in FILES}
