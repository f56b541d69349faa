# SPDX-License-Identifier: Apache-2.0
"""The recipe's own code: shell that shellcheck takes, and files that stay small."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from imagebuild import RECIPE

SCRIPTS = sorted(path for path in RECIPE.rglob("*") if path.is_file() and path.read_bytes().startswith(b"#!/bin/sh"))
MODULES = sorted(RECIPE.glob("imagebuild/*.py"))


def name(path: Path) -> str:
    return str(path.relative_to(RECIPE))


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    shellcheck = shutil.which("shellcheck")
    assert shellcheck, "make venv installs shellcheck"
    done = subprocess.run([shellcheck, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_there_are_scripts() -> None:
    assert len(SCRIPTS) > 4


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_modules_say_their_licence_and_role_and_stay_small(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n")
    assert text.count("\n") <= 400
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name


def test_no_host_is_named() -> None:
    for path in RECIPE.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert not re.search("https?://", path.read_text()), path
