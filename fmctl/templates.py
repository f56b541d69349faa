# SPDX-License-Identifier: Apache-2.0
"""Finding the templates of domain documents; `core.template` fills them.

Ours lie in vm-templates: beside the package in a checkout, inside it once it is installed.
"""

from __future__ import annotations

from pathlib import Path

from fmctl import files
from fmctl.core.errors import FmctlError, InvalidDocument
from fmctl.core.template import Template

_PACKAGE = Path(__file__).parent
_FOLDERS = (_PACKAGE / "vm-templates", _PACKAGE.parent / "vm-templates")


def read(folder: Path | None = None) -> dict[str, Template]:
    """Every template by its name: the operator's file of that name in `folder`, else ours; raises FmctlError."""
    if folder is not None and not folder.is_dir():
        raise InvalidDocument(
            "the templates cannot be read", why=f"{folder} is no folder", fix="make it, or correct template_dir"
        )
    return {ours.name: _template(ours, folder) for ours in sorted(_ours().glob("*.j2"))}


def _ours() -> Path:
    for folder in _FOLDERS:
        if folder.is_dir():
            return folder
    raise FmctlError("fmctl's templates are missing", why=f"{_FOLDERS[0]} is no folder", fix="install fmctl again")


def _template(ours: Path, folder: Path | None) -> Template:
    theirs = folder / ours.name if folder else ours
    path = theirs if theirs.exists() or theirs.is_symlink() else ours
    return Template(str(path), files.read(path))
