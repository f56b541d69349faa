# SPDX-License-Identifier: Apache-2.0
"""What the documents say is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from fmctl.cli.main import cli
from tests.cli.test_render import H100_TABLE

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_the_readme_shows_the_table_as_it_is() -> None:
    assert H100_TABLE.replace("7             Active  ", "7             Inactive") in README


def commands(text: str) -> list[list[str]]:
    """Every fmctl command line that a block of the text holds."""
    lines = [line for block in re.findall(r"```\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    return [shlex.split(line.split("||")[0].rstrip("& "))[1:] for line in lines if line.startswith("fmctl ")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_command_lines_parse(document: Path) -> None:
    for arguments in commands(document.read_text()):
        command: click.Command = cli
        context = click.Context(cli)
        while isinstance(command, click.Group):
            _, arguments, _ = command.make_parser(context).parse_args(arguments)
            name, command_or_none, arguments = command.resolve_command(context, arguments)
            assert command_or_none is not None, name
            command = command_or_none
        arguments = [argument.replace("$FMCTL_ADDRESS", "unix:/tmp/x.sock") for argument in arguments]
        command.make_context(str(command.name), arguments, parent=context)


def test_the_readme_has_command_lines() -> None:
    assert len(commands(README)) > 5
