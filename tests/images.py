# SPDX-License-Identifier: Apache-2.0
"""Small images of the Service VM, signed for real: as bytes by name of file, and as folders."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmctl.core import signature
from fmctl.core.signature import KeyKind, PublicKey, Trust

PAIR = signature.generate(KeyKind.ED25519)
OTHER = signature.generate(KeyKind.ECDSA_P256)
PINNED = PublicKey("/etc/fmctl/image.pub", PAIR.public)
FINGERPRINT = signature.fingerprint(PAIR.public)
TRUST = Trust(lambda: (PINNED,))
VERSIONS = {"agent": "0.1.0", "debian": "12", "kernel": "6.1.0-40-amd64", "python": "3.11.2"}
NVIDIA = {"driver": "580.95.05", "fabric_manager": "580.95.05"}


def contents(mark: str = "1") -> dict[str, bytes]:
    """The four files of an image, which differ by the mark."""
    return {name: f"{name} {mark}".encode() for name in ("agent.tar", "initrd", "root.squashfs", "vmlinuz")}


def plain(data: Mapping[str, bytes], **changes: Any) -> dict[str, Any]:
    """A manifest of those files."""
    return {
        "files": {name: hashlib.sha256(text).hexdigest() for name, text in data.items()},
        "format": 1,
        "kernel_arguments": "console=ttyS0 panic=-1 quiet",
        "packages": {"systemd": "252.39-1~deb12u1"},
        "simulated": False,
        "versions": {**VERSIONS, **NVIDIA},
        **changes,
    }


def text(document: Any) -> bytes:
    """A manifest as service-vm/build writes it."""
    return json.dumps(document, indent=2, sort_keys=True).encode() + b"\n"


def files(mark: str = "1", *, private: bytes | None = PAIR.private, **changes: Any) -> dict[str, bytes]:
    """A whole image, signed by that key, or by none."""
    data = contents(mark)
    manifest = text(plain(data, **changes))
    signed = {"manifest.json.sig": signature.sign(manifest, private)} if private else {}
    return {**data, "manifest.json": manifest, **signed}


def write(folder: Path, data: Mapping[str, bytes]) -> Path:
    """Those files as a folder that nobody else can write."""
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    folder.chmod(0o755)
    for name, content in data.items():
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o644)
    return folder
