# SPDX-License-Identifier: Apache-2.0
"""`fmctl platform`: lists, shows and checks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from fmctl import platforms
from fmctl.cli.platform import platform as group
from fmctl.core import platform
from fmctl.core.errors import BadRequest, InvalidDocument

NAMES = ["hgx-a100-16", "hgx-a100-8", "hgx-b200-8", "hgx-h100-8"]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(group, arguments)


def printed(*arguments: str) -> str:
    result = run(*arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


def test_list_prints_a_table() -> None:
    assert printed("list") == (
        "NAME         TITLE                                                GPUs  NVLINK  HARDWARE\n"
        "----         -----                                                ----  ------  --------\n"
        "hgx-a100-16  NVIDIA HGX A100 and A800 with 16 GPUs on two boards  16    3       unsupported\n"
        "hgx-a100-8   NVIDIA HGX A100 and A800 with 8 GPUs                 8     3       unsupported\n"
        "hgx-b200-8   NVIDIA HGX B200, B100 and B300 with 8 GPUs           8     5       supported\n"
        "hgx-h100-8   NVIDIA HGX H100, H200, H800 and H20 with 8 GPUs      8     4       supported\n"
    )


def test_list_prints_the_rows_alone() -> None:
    with_headers, rows = printed("list", "-o", "table"), printed("list", "--no-headers")
    assert [line.split() for line in rows.splitlines()] == [line.split() for line in with_headers.splitlines()][2:]


def test_list_prints_names() -> None:
    assert printed("list", "-o", "name") == "".join(f"{name}\n" for name in NAMES)


def test_list_prints_the_same_documents_as_yaml_and_json() -> None:
    documents = json.loads(printed("list", "-o", "json"))
    text = printed("list", "-o", "yaml")
    assert yaml.safe_load(text) == documents
    assert text.endswith("\n") and not text.endswith("\n\n")
    assert [document["name"] for document in documents["platforms"]] == NAMES
    assert documents["platforms"][-1] == json.loads(printed("show", "hgx-h100-8", "-o", "json"))


@pytest.mark.parametrize("style", ["yaml", "json"])
@pytest.mark.parametrize("name", NAMES)
def test_what_show_prints_is_a_platform_file(name: str, style: str) -> None:
    text = printed("show", name, "-o", style)
    assert platform.parse(text, "shown") == platforms.load(name)
    assert text.endswith("\n")
    assert not text.endswith("\n\n")


def test_show_prints_yaml_with_marks_and_rows_as_in_the_files() -> None:
    text = printed("show", "hgx-h100-8")
    assert text.startswith("name: hgx-h100-8\n")
    assert "  after_activation:\n    value: harmless\n    mark: C\n    source: libvirt-hooks README" in text
    assert "    mark: '2nd'\n" in text
    assert "  pci_class: '0302'\n" in text
    assert "\npartitions:\n  - [0, [1, 2, 3, 4, 5, 6, 7, 8], 18]\n" in text


def test_show_prints_json_when_asked() -> None:
    text = printed("show", "hgx-b200-8", "-o", "json")
    assert text.startswith('{\n  "name": "hgx-b200-8",\n')
    document = json.loads(text)
    assert document["reset"]["after_fm_first_start"]["value"] is True
    assert document["reset"]["after_fm_first_start"]["mark"] == "C"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A file that describes another board."""
    path = tmp_path / "own.yaml"
    path.write_text(printed("show", "hgx-a100-8").replace("name: hgx-a100-8\n", "name: own-board\n"))
    return path


def test_show_takes_a_file(own: Path) -> None:
    assert printed("show", str(own)) == own.read_text()


def test_show_of_an_unknown_board_is_refused() -> None:
    error = run("show", "hgx-h100").exception
    assert isinstance(error, BadRequest)
    assert error.what == "there is no platform 'hgx-h100'; did you mean hgx-h100-8?"


def test_validate_says_what_the_file_describes(own: Path) -> None:
    assert printed("validate", str(own)) == f"{own} is a valid platform file: own-board, 8 GPUs, 15 partitions\n"


def test_validate_refuses_a_file_with_its_key_and_reason(own: Path) -> None:
    own.write_text(own.read_text().replace("count: 8", "count: 7"))
    result = run("validate", str(own))
    assert isinstance(result.exception, InvalidDocument)
    assert str(result.exception) == f"{own} is refused: partitions name 8 GPUs, but gpus.count is 7"
    assert result.stdout == ""


def test_validate_refuses_a_file_that_is_missing(tmp_path: Path) -> None:
    error = run("validate", str(tmp_path / "none.yaml")).exception
    assert isinstance(error, InvalidDocument)
    assert error.why == "No such file or directory"


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("list", "-o", "csv"), id="unknown-format"),
        pytest.param(("show",), id="show-nothing"),
        pytest.param(("validate",), id="validate-nothing"),
    ],
)
def test_misuse_is_a_usage_error(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr
