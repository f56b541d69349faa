# SPDX-License-Identifier: Apache-2.0
"""Compiling the C programs of these tests."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


def compile_c(program: Path, *arguments: Path | str) -> None:
    compiler = shutil.which("cc")
    assert compiler, "these tests need a C compiler"
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-pthread", "-g"]
    subprocess.run([compiler, *flags, "-o", program, *arguments], check=True)
