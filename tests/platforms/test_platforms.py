# SPDX-License-Identifier: Apache-2.0
"""The boards that come with fmctl, against a second copy of what is known of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from fmctl import platforms
from fmctl.core.errors import BadRequest, InvalidDocument
from fmctl.core.platform import ErrorFamily, Fact, Hardware, Mark, Platform

NAMES = ("hgx-a100-16", "hgx-a100-8", "hgx-b200-8", "hgx-h100-8")

TABLES: dict[str, list[tuple[int, set[int]]]] = {
    "hgx-h100-8": [
        (0, {1, 2, 3, 4, 5, 6, 7, 8}),
        *[(1, {1, 2, 3, 4}), (2, {5, 6, 7, 8})],
        *[(3, {1, 3}), (4, {2, 4}), (5, {5, 7}), (6, {6, 8})],
        *[(7, {1}), (8, {2}), (9, {3}), (10, {4}), (11, {5}), (12, {6}), (13, {7}), (14, {8})],
    ],
    "hgx-b200-8": [
        (1, {1, 2, 3, 4, 5, 6, 7, 8}),
        *[(2, {1, 2, 3, 4}), (3, {5, 6, 7, 8})],
        *[(4, {1, 2}), (5, {3, 4}), (6, {5, 6}), (7, {7, 8})],
        *[(8, {1}), (9, {2}), (10, {3}), (11, {4}), (12, {5}), (13, {6}), (14, {7}), (15, {8})],
    ],
    "hgx-a100-8": [
        (1, {1, 2, 3, 4, 5, 6, 7, 8}),
        *[(7, {1, 2, 3, 4}), (8, {5, 6, 7, 8})],
        *[(11, {1, 2}), (12, {3, 4}), (13, {5, 6}), (14, {7, 8})],
        *[(19, {1}), (20, {2}), (21, {3}), (22, {4}), (23, {5}), (24, {6}), (25, {7}), (26, {8})],
    ],
    "hgx-a100-16": [
        (0, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}),
        *[(1, {1, 2, 3, 4, 5, 6, 7, 8}), (2, {9, 10, 11, 12, 13, 14, 15, 16})],
        *[(3, {1, 2, 3, 4, 9, 10, 11, 12}), (4, {5, 6, 7, 8, 13, 14, 15, 16})],
        *[(5, {1, 2, 3, 4, 13, 14, 15, 16}), (6, {5, 6, 7, 8, 9, 10, 11, 12})],
        *[(7, {1, 2, 3, 4}), (8, {5, 6, 7, 8}), (9, {9, 10, 11, 12}), (10, {13, 14, 15, 16})],
        *[(11, {1, 2}), (12, {3, 4}), (13, {5, 6}), (14, {7, 8})],
        *[(15, {9, 10}), (16, {11, 12}), (17, {13, 14}), (18, {15, 16})],
        *[(19, {1}), (20, {2}), (21, {3}), (22, {4}), (23, {5}), (24, {6}), (25, {7}), (26, {8})],
        *[(27, {9}), (28, {10}), (29, {11}), (30, {12}), (31, {13}), (32, {14}), (33, {15}), (34, {16})],
    ],
}
NVLINKS_PER_GPU = {"hgx-h100-8": 18, "hgx-b200-8": 18, "hgx-a100-8": 12, "hgx-a100-16": 12}

A100S = {"10de:20b0", "10de:20b2", "10de:20bd", "10de:20f3"}
DEVICES: dict[str, list[tuple[str, set[str], int | None, str | None]]] = {
    "hgx-h100-8": [
        (
            "0302",
            {
                *{"10de:2330", "10de:2336", "10de:2337", "10de:2338", "10de:2339"},
                *{"10de:2335", "10de:2324", "10de:2329", "10de:232c"},
            },
            8,
            None,
        ),
        ("0680", {"10de:22a3", "10de:22a4"}, 4, None),
        ("0580", {"11f8:4128"}, None, None),
    ],
    "hgx-b200-8": [
        ("0302", {"10de:2901", "10de:29bc", "10de:3182"}, 8, None),
        ("0207", {"15b3:1021"}, 4, "SW_MNG"),
    ],
    "hgx-a100-8": [("0302", A100S, 8, None), ("0680", {"10de:1af1"}, 6, None)],
    "hgx-a100-16": [("0302", A100S, 16, None), ("0680", {"10de:1af1"}, 12, None)],
}

RESET: dict[str, list[tuple[object, str]]] = {
    "hgx-h100-8": [(["flr", "bus"], "D"), ("bus", "2nd"), ("harmless", "C"), (False, "D"), (90, "D")],
    "hgx-b200-8": [(["flr", "bus"], "D"), ("bus", "D"), ("harmless", "C"), (True, "C"), (90, "D")],
    "hgx-a100-8": [(["bus"], "D"), ("bus", "D"), ("breaks-links", "C"), (False, "D"), (90, "D")],
    "hgx-a100-16": [(["bus"], "D"), ("bus", "D"), ("breaks-links", "C"), (False, "D"), (90, "D")],
}

GENERATION = {"hgx-h100-8": 4, "hgx-b200-8": 5, "hgx-a100-8": 3, "hgx-a100-16": 3}

MODULE_IDS = {
    "hgx-h100-8": ("registers", "C"),
    "hgx-b200-8": ("gpu-admin-tools", "C"),
    "hgx-a100-8": ("fabric-manager", "U"),
    "hgx-a100-16": ("fabric-manager", "U"),
}


@pytest.fixture(params=NAMES)
def board(request: pytest.FixtureRequest) -> Platform:
    return platforms.load(request.param)


def facts(value: Any) -> Iterator[Fact[Any]]:
    if isinstance(value, Fact):
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from facts(getattr(value, field.name))


def test_these_boards_come_with_fmctl() -> None:
    assert platforms.names() == NAMES
    assert tuple(board.name for board in platforms.every()) == NAMES


def test_the_table_is_that_of_the_guide(board: Platform) -> None:
    assert [(row.id, set(row.gpu_ids)) for row in board.partitions] == TABLES[board.name]


def test_gpus_have_all_their_nvlinks_or_none_where_they_are_alone(board: Platform) -> None:
    for row in board.partitions:
        assert row.nvlinks_per_gpu == (NVLINKS_PER_GPU[board.name] if len(row.gpu_ids) > 1 else 0)


def test_gpus_are_numbered_from_one(board: Platform) -> None:
    assert board.gpus.count is not None
    assert board.physical_ids == tuple(range(1, board.gpus.count + 1))


def test_devices_are_known_by_class_and_id(board: Platform) -> None:
    kinds = [kind for kind in (board.gpus, board.nvswitches, board.memory_controller) if kind]
    seen = [(str(kind.pci_class), {str(m.id) for m in kind.models}, kind.count, kind.vpd) for kind in kinds]
    assert seen == DEVICES[board.name]
    assert all(len(kind.models) == len({model.id for model in kind.models}) for kind in kinds)


def test_reset_rules_have_these_values_and_marks(board: Platform) -> None:
    rules = [getattr(board.reset, field.name) for field in dataclasses.fields(board.reset)]
    plain = [([method.value for method in rules[0].value], rules[0].mark.value)]
    plain += [(getattr(rule.value, "value", rule.value), rule.mark.value) for rule in rules[1:]]
    assert plain == RESET[board.name]


def test_what_tells_which_gpu_is_which_is_stated_for_every_board(board: Platform) -> None:
    method = board.module_ids.method
    assert (method.value.value, method.mark.value) == MODULE_IDS[board.name]


def test_every_fact_has_a_mark_and_a_source(board: Platform) -> None:
    found = list(facts(board))
    assert len(found) == 6 + bool(board.line_rate_mbps)
    assert all(isinstance(fact.mark, Mark) and len(fact.source) > 10 for fact in found)


def test_the_line_rate_is_stated_only_where_it_was_seen(board: Platform) -> None:
    rate = board.line_rate_mbps
    assert (rate and (rate.value, rate.mark.value)) == ((26562, "C") if board.name == "hgx-h100-8" else None)


def test_generation_and_error_family(board: Platform) -> None:
    assert board.nvlink_generation == GENERATION[board.name]
    assert board.error_family is (ErrorFamily.NVL5 if board.nvlink_generation == 5 else ErrorFamily.NVL4)


def test_real_a100_boards_are_left_alone_and_say_why(board: Platform) -> None:
    assert (board.hardware is Hardware.UNSUPPORTED) is board.name.startswith("hgx-a100")
    assert ("Service VM" in board.hardware_reason) is (board.hardware is Hardware.UNSUPPORTED)


def test_every_file_names_its_licence() -> None:
    for name in NAMES:
        text = resources.files(platforms).joinpath(f"{name}.yaml").read_text("utf-8")
        assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n")


@pytest.mark.parametrize(
    ("name", "guess"),
    [("hgx-h200-8", "; did you mean hgx-h100-8?"), ("dgx", ""), ("", ""), ("HGX-H100-8", "; did you mean hgx-h100-8?")],
)
def test_an_unknown_board_is_refused_with_those_that_are_known(name: str, guess: str) -> None:
    with pytest.raises(BadRequest) as refused:
        platforms.load(name)
    assert refused.value.what == f"there is no platform {name!r}{guess}"
    assert refused.value.why == "fmctl knows hgx-a100-16, hgx-a100-8, hgx-b200-8, hgx-h100-8"


def test_a_file_under_another_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = resources.files(platforms).joinpath("hgx-h100-8.yaml").read_text("utf-8")
    (tmp_path / "misnamed.yaml").write_text(text, "utf-8")
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    with pytest.raises(InvalidDocument, match=r"misnamed\.yaml is refused: name: it is 'hgx-h100-8'"):
        platforms.load("misnamed")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A platform file of the operator's, in the current folder."""
    text = resources.files(platforms).joinpath("hgx-h100-8.yaml").read_text("utf-8")
    path = tmp_path / "own.yaml"
    path.write_text(text.replace("name: hgx-h100-8", "name: own-board"), "utf-8")
    monkeypatch.chdir(tmp_path)
    return path


def test_a_file_is_read(own: Path) -> None:
    assert platforms.read(own) == dataclasses.replace(platforms.load("hgx-h100-8"), name="own-board")


@pytest.mark.parametrize("form", ["own.yaml", "./own.yaml", "{folder}/own.yaml"])
def test_a_slash_or_the_ending_makes_it_a_path(own: Path, form: str) -> None:
    assert platforms.resolve(form.format(folder=own.parent)).name == "own-board"


def test_a_path_needs_no_ending_if_it_has_a_slash(own: Path) -> None:
    own.rename(own.with_name("own"))
    assert platforms.resolve("./own").name == "own-board"
    with pytest.raises(BadRequest, match="there is no platform 'own'"):
        platforms.resolve("own")


def test_anything_else_is_a_name(own: Path) -> None:
    assert platforms.resolve("hgx-b200-8") is platforms.load("hgx-b200-8")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        pytest.param(None, "No such file or directory", id="missing"),
        pytest.param("folder", "Is a directory", id="folder"),
        pytest.param(b"name: \xff\xfe", "it is not UTF-8 text", id="not-utf-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes | str | None, why: str) -> None:
    path = tmp_path / "board.yaml"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        path.mkdir()
    with pytest.raises(InvalidDocument) as refused:
        platforms.resolve(str(path))
    assert refused.value.what == f"{path} cannot be read"
    assert refused.value.why == why


def test_a_refusal_of_a_file_names_its_path(tmp_path: Path) -> None:
    path = tmp_path / "board.yaml"
    path.write_text("names: x\n")
    with pytest.raises(InvalidDocument) as refused:
        platforms.read(path)
    assert str(refused.value) == f"{path} is refused: names: there is no such key; did you mean name?"
