# SPDX-License-Identifier: Apache-2.0
"""The kernel of the emulated host and of its tenants' VMs, unpacked: to do that as each boots takes half of its time.

QEMU boots an ELF file by its PVH entry. The Service VM boots what its image has, as it is.
"""

from __future__ import annotations

import lzma
from pathlib import Path

from fmctl.core.errors import FmctlError

# The boot protocol's header, by Documentation/arch/x86/boot.rst of Linux.
_SETUP_SECTORS = 0x1F1
_PAYLOAD = slice(0x248, 0x24C)
_PAYLOAD_LENGTH = slice(0x24C, 0x250)
_SECTOR = 512
_ELF = b"\x7fELF"


def unpack(compressed: Path, target: Path) -> None:
    """Write the ELF file that a bzImage of Debian's has inside; raises FmctlError where it is packed in another way."""
    image = compressed.read_bytes()
    start = (image[_SETUP_SECTORS] + 1) * _SECTOR + int.from_bytes(image[_PAYLOAD], "little")
    packed = image[start : start + int.from_bytes(image[_PAYLOAD_LENGTH], "little")]
    try:
        content = lzma.LZMADecompressor().decompress(packed)
    except lzma.LZMAError as error:
        raise FmctlError(f"{compressed} cannot be unpacked", why=f"it is not packed by xz: {error}") from error
    if not content.startswith(_ELF):
        raise FmctlError(f"{compressed} cannot be unpacked", why="no ELF file is inside")
    target.write_bytes(content)
