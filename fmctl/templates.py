# SPDX-License-Identifier: Apache-2.0
"""Finding the templates of domain documents and of fabricmanager.cfg; `core` fills them.

Ours lie in vm-templates and in service-vm: beside the package in a checkout, inside it once it is installed.
"""

from __future__ import annotations

from pathlib import Path

from fmctl import files
from fmctl.core.errors import FmctlError, InvalidDocument
from fmctl.core.template import Template

_PACKAGE = Path(__file__).parent


def read(folder: Path | None = None) -> dict[str, Template]:
    """Every template by its name: the operator's file of that name in `folder`, else ours; raises FmctlError."""
    if folder is not None and not folder.is_dir():
        raise InvalidDocument(
            "the templates cannot be read", why=f"{folder} is no folder", fix="make it, or correct template_dir"
        )
    return {ours.name: _template(ours, folder) for ours in sorted(_ours("vm-templates").glob("*.j2"))}


def fabric_manager_config() -> Template:
    """The template of Fabric Manager's configuration; raises FmctlError."""
    return _template(_ours("service-vm") / "fabricmanager.cfg.j2", None)


def _ours(name: str) -> Path:
    folders = (_PACKAGE / name, _PACKAGE.parent / name)
    for folder in folders:
        if folder.is_dir():
            return folder
    raise FmctlError("fmctl's templates are missing", why=f"{folders[0]} is no folder", fix="install fmctl again")


def _template(ours: Path, folder: Path | None) -> Template:
    theirs = folder / ours.name if folder else ours
    path = theirs if theirs.exists() or theirs.is_symlink() else ours
    return Template(str(path), files.read(path))
