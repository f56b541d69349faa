# SPDX-License-Identifier: Apache-2.0
"""Platform files: what is read, what is refused, and knowing a board by its table."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fmctl.core import platform, schema
from fmctl.core.errors import InvalidDocument
from fmctl.core.partition import Gpu, Partition, PartitionList
from fmctl.core.pci import PciClass, PciId
from fmctl.core.platform import (
    Devices,
    ErrorFamily,
    Fact,
    Hardware,
    Mark,
    Model,
    PartitionRow,
    Platform,
    ResetEffect,
    ResetMethod,
    ResetRules,
)

BOARD: dict[str, Any] = {
    "name": "board-2",
    "title": "A board with 2 GPUs",
    "hardware": "supported",
    "nvlink_generation": 4,
    "error_family": "nvl4",
    "line_rate_mbps": {"value": 26562, "mark": "M", "source": "a host"},
    "gpus": {"pci_class": "0302", "count": 2, "models": [{"id": "10de:2330", "name": "GPU"}]},
    "nvswitches": {"pci_class": "0207", "vpd": "SW_MNG", "models": [{"id": "15b3:1021", "name": "switch"}]},
    "reset": {
        "methods": {"value": ["flr", "bus"], "mark": "D", "source": "a tool"},
        "after_unclean_exit": {"value": "bus", "mark": "2nd", "source": "a report"},
        "after_activation": {"value": "harmless", "mark": "C", "source": "a guide"},
        "after_fm_first_start": {"value": True, "mark": "R", "source": "a guide"},
        "deadline_s": {"value": 90, "mark": "U", "source": "nobody"},
    },
    "partitions": [[1, [2, 1], 18], [4, [1], 0], [9, [2], 0]],
}
READ = Platform(
    name="board-2",
    title="A board with 2 GPUs",
    hardware=Hardware.SUPPORTED,
    nvlink_generation=4,
    error_family=ErrorFamily.NVL4,
    line_rate_mbps=Fact(26562, Mark.MEASURED, "a host"),
    gpus=Devices(PciClass(0x0302), (Model(PciId(0x10DE, 0x2330), "GPU"),), count=2),
    nvswitches=Devices(PciClass(0x0207), (Model(PciId(0x15B3, 0x1021), "switch"),), vpd="SW_MNG"),
    reset=ResetRules(
        methods=Fact((ResetMethod.FLR, ResetMethod.BUS), Mark.DERIVED, "a tool"),
        after_unclean_exit=Fact(ResetMethod.BUS, Mark.SECONDARY, "a report"),
        after_activation=Fact(ResetEffect.HARMLESS, Mark.CONFIRMED, "a guide"),
        after_fm_first_start=Fact(True, Mark.RECALLED, "a guide"),
        deadline_s=Fact(90, Mark.UNCONFIRMED, "nobody"),
    ),
    partitions=(PartitionRow(1, (2, 1), 18), PartitionRow(4, (1,), 0), PartitionRow(9, (2,), 0)),
)
PAIRS = list(enumerate(itertools.combinations(range(1, 13), 2)))[:64]
GONE = object()


def changed(**changes: Any) -> str:
    """The board's file with other values; two underscores lead into a mapping, GONE takes a key away."""
    document = copy.deepcopy(BOARD)
    for path, value in changes.items():
        *above, last = path.split("__")
        place = document
        for key in above:
            place = place[key]
        if value is GONE:
            del place[last]
        else:
            place[last] = value
    return yaml.safe_dump(document)


def read(**changes: Any) -> Platform:
    return platform.parse(changed(**changes), "board.yaml")


def table(rows: Mapping[int, tuple[int, ...]]) -> PartitionList:
    return PartitionList(tuple(Partition(row_id, tuple(map(Gpu, gpus))) for row_id, gpus in rows.items()))


def test_a_platform_file_is_read() -> None:
    assert read() == READ


def test_a_platform_survives_being_written_and_read() -> None:
    assert platform.parse(schema.dump(schema.plain(READ)), "board.yaml") == READ


def test_physical_ids_are_those_of_all_rows_ascending() -> None:
    assert read(partitions=[[0, [9], 0], [1, [3, 9], 18]]).physical_ids == (3, 9)


REFUSALS = [
    pytest.param({"nvswitch": {}}, "nvswitch: there is no such key; did you mean nvswitches?", id="unknown-key"),
    pytest.param({"gpus__coun": 1}, "gpus.coun: there is no such key; did you mean count?", id="unknown-key-below"),
    pytest.param({"error_family": GONE}, "error_family: it is missing", id="missing-key"),
    pytest.param({"reset__deadline_s__mark": GONE}, "reset.deadline_s.mark: it is missing", id="missing-mark"),
    pytest.param({"reset__deadline_s__source": GONE}, "reset.deadline_s.source: it is missing", id="missing-source"),
    pytest.param({"reset__deadline_s__source": ""}, "reset.deadline_s: source is empty", id="empty-source"),
    pytest.param({"reset__deadline_s__mark": "X"}, "reset.deadline_s.mark: 'X' is none of C, M, 2nd", id="no-mark"),
    pytest.param({"title": 8}, "title: a text is wanted, not 8", id="wrong-type"),
    pytest.param({"gpus__count": True}, "gpus.count: a whole number is wanted, not True", id="bool-for-int"),
    pytest.param({"gpus__count": 0}, "gpus.count: 0 is below 1", id="count-zero"),
    pytest.param({"gpus__count": 3}, "partitions name 2 GPUs, but gpus.count is 3", id="count-mismatch"),
    pytest.param(
        {"gpus__count": 17, "partitions": [[n, [n], 0] for n in range(1, 18)]},
        "partitions name 17 GPUs; 1 to 16 are possible",
        id="board-of-17-gpus",
    ),
    pytest.param({"gpus__count": GONE}, "partitions name 2 GPUs, but gpus.count is missing", id="count-missing"),
    pytest.param({"gpus__models": []}, "gpus: models is empty", id="no-models"),
    pytest.param({"gpus__pci_class": 302}, "gpus.pci_class: a PCI class such as '0302' is wanted", id="bad-class"),
    pytest.param(
        {"gpus__models": [{"id": "10de:233", "name": "x"}]},
        "gpus.models[0].id: a PCI id such as '10de:2330' is wanted, in quotes and lower case, not '10de:233'",
        id="bad-pci-id",
    ),
    pytest.param({"name": "Board 2"}, "name 'Board 2' is not of lower-case words", id="bad-name"),
    pytest.param({"nvlink_generation": 1}, "nvlink_generation: 1 is below 2", id="generation-too-low"),
    pytest.param({"nvlink_generation": 6}, "nvlink_generation: 6 is above 5", id="generation-too-high"),
    pytest.param({"line_rate_mbps__value": 0}, "line_rate_mbps is 0; 1 to 2^32 - 1 are possible", id="line-rate-zero"),
    pytest.param(
        {"line_rate_mbps__value": 2**32},
        "line_rate_mbps is 4294967296; 1 to 2^32 - 1 are possible",
        id="line-rate-too-high",
    ),
    pytest.param(
        {"hardware": "unsupported"},
        "hardware is unsupported, but hardware_reason does not say why",
        id="unsupported-without-reason",
    ),
    pytest.param({"reset__methods__value": []}, "reset: methods is empty", id="no-reset-method"),
    pytest.param({"reset__methods__value": ["slot"]}, "reset.methods.value[0]: 'slot' is none of", id="method"),
    pytest.param(
        {"reset__methods__value": ["flr"]}, "reset: after_unclean_exit is bus, which is none of methods", id="exit"
    ),
    pytest.param({"reset__deadline_s__value": 0}, "reset: deadline_s is 0; it must be 1 or more", id="deadline"),
    pytest.param({"partitions": []}, "partitions has 0 rows; 1 to 64 are possible", id="no-rows"),
    pytest.param(
        {"partitions": [[n, [1], 0] for n in range(65)]}, "partitions has 65 rows; 1 to 64 are possible", id="many-rows"
    ),
    pytest.param({"partitions": [[1, [1], 0], [1, [2], 0]]}, "partitions has the partition id 1 twice", id="id-twice"),
    pytest.param(
        {"partitions": [[1, [1, 2], 0], [2, [2, 1], 0]]},
        "partitions has the set of GPUs (1, 2) twice",
        id="gpus-of-a-row-twice",
    ),
    pytest.param({"partitions": [[1, [2, 2], 0]]}, "partitions[0]: partition 1 names a GPU twice", id="gpu-twice"),
    pytest.param(
        {"partitions": [[1, [1, 0], 0]]},
        "partitions[0]: partition 1 has GPU 0; physical ids are 1 to 2^32 - 1",
        id="gpu-zero",
    ),
    pytest.param(
        {"partitions": [[1, [1, 2**32], 0]]},
        "partitions[0]: partition 1 has GPU 4294967296; physical ids are 1 to 2^32 - 1",
        id="gpu-too-high",
    ),
    pytest.param({"partitions": [[1, [], 0]]}, "partitions[0]: partition 1 has 0 GPUs", id="row-without-gpus"),
    pytest.param(
        {"partitions": [[1, list(range(1, 18)), 0]]},
        "partitions[0]: partition 1 has 17 GPUs; 1 to 16 are possible",
        id="row-of-17-gpus",
    ),
    pytest.param({"partitions": [[-1, [1], 0]]}, "partitions[0]: id -1 is not between 0", id="negative-id"),
    pytest.param({"partitions": [[2**32, [1], 0]]}, "partitions[0]: id 4294967296 is not between 0", id="id-too-high"),
    pytest.param({"partitions": [[1, [1], -1]]}, "partitions[0]: partition 1 has -1 NVLinks", id="negative-nvlinks"),
    pytest.param(
        {"partitions": [[1, [1], 65]]},
        "partitions[0]: partition 1 has 65 NVLinks; 0 to 64 are possible",
        id="too-many-nvlinks",
    ),
]


@pytest.mark.parametrize(("changes", "why"), REFUSALS)
def test_a_refusal_names_file_key_and_reason(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidDocument) as refused:
        read(**changes)
    assert refused.value.what == "board.yaml is refused"
    assert refused.value.why.startswith(why)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"reset__deadline_s__value": 1}, id="deadline"),
        pytest.param({"line_rate_mbps__value": 1}, id="line-rate"),
        pytest.param({"line_rate_mbps__value": 2**32 - 1}, id="highest-line-rate"),
        pytest.param({"partitions": [[0, [1, 2**32 - 1], 0]]}, id="gpus"),
        pytest.param({"gpus__count": 1, "partitions": [[0, [1], 0]]}, id="one-gpu"),
        pytest.param({"partitions": [[2**32 - 1, [1, 2], 64]]}, id="id-and-nvlinks"),
        pytest.param({"gpus__count": 16, "partitions": [[0, list(range(1, 17)), 18]]}, id="row-of-16-gpus"),
        pytest.param({"gpus__count": 12, "partitions": [[n, list(pair), 0] for n, pair in PAIRS]}, id="64-rows"),
        pytest.param({"hardware": "unsupported", "hardware_reason": "it cannot"}, id="unsupported-with-reason"),
        pytest.param({"line_rate_mbps": GONE}, id="no-line-rate"),
    ],
)
def test_the_limits_themselves_are_taken(changes: dict[str, Any]) -> None:
    found = read(**changes)
    assert platform.parse(schema.dump(schema.plain(found)), "board.yaml") == found


@pytest.mark.parametrize(
    "row",
    [
        pytest.param([True, [1], 0], id="bool-as-id"),
        pytest.param([1, [True], 0], id="bool-as-gpu"),
        pytest.param([1, [1], False], id="bool-as-nvlinks"),
        pytest.param([1, ["1"], 0], id="text-as-gpu"),
        pytest.param([1, 1, 0], id="gpu-without-list"),
        pytest.param([1, [1]], id="too-short"),
        pytest.param([1, [1], 0, 0], id="too-long"),
        pytest.param({"id": 1}, id="mapping"),
        pytest.param(None, id="nothing"),
    ],
)
def test_a_row_has_one_form(row: object) -> None:
    with pytest.raises(InvalidDocument) as refused:
        read(partitions=[[1, [1, 2], 18], row])
    assert refused.value.why == f"partitions[1]: a row such as [3, [1, 3], 18] is wanted, not {row!r}"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        pytest.param(changed() + "name: other\n", "it is not valid YAML: key 'name' stands twice", id="key-twice"),
        pytest.param("name: [", "it is not valid YAML: ", id="not-yaml"),
        pytest.param("- name", "a mapping is wanted, not ['name']", id="not-a-mapping"),
        pytest.param("", "name: it is missing", id="empty"),
    ],
)
def test_a_text_that_is_no_platform_is_refused(text: str, why: str) -> None:
    with pytest.raises(InvalidDocument) as refused:
        platform.parse(text, "board.yaml")
    assert refused.value.what == "board.yaml is refused"
    assert refused.value.why.startswith(why)


@given(
    st.sampled_from(["name", "nvlink_generation", "line_rate_mbps", "gpus", "reset", "partitions"]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["value", "mark", "models"]), inner)
        ),
        max_leaves=8,
    ),
)
def test_no_value_ends_in_another_error(key: str, value: Any) -> None:
    try:
        assert isinstance(read(**{key: value}), Platform)
    except InvalidDocument as refused:
        assert refused.what == "board.yaml is refused"


WHOLE = {1: (1, 2), 4: (1,), 9: (2,)}


@pytest.mark.parametrize(
    ("listed", "generation", "described"),
    [
        pytest.param(WHOLE, 4, True, id="the-table"),
        pytest.param(dict(reversed(WHOLE.items())), 4, True, id="in-another-order"),
        pytest.param({**WHOLE, 1: (2, 1)}, 4, True, id="gpus-in-another-order"),
        pytest.param({1: (1, 2), 4: (1,)}, 4, False, id="part-of-a-static-list"),
        pytest.param({4: (1,)}, 3, True, id="part-of-a-list-that-shrinks"),
        pytest.param({}, 3, False, id="nothing"),
        pytest.param({**WHOLE, 10: (2,)}, 3, False, id="a-row-too-many"),
        pytest.param({**WHOLE, 9: (1,)}, 3, False, id="other-gpus"),
        pytest.param({0: (1, 2), 4: (1,), 9: (2,)}, 3, False, id="another-id"),
    ],
)
def test_a_board_is_known_by_its_table(listed: dict[int, tuple[int, ...]], generation: int, *, described: bool) -> None:
    assert read(nvlink_generation=generation).describes(table(listed)) is described


@pytest.mark.parametrize(("generation", "drops"), [(2, True), (3, True), (4, False), (5, False)])
def test_lists_shrink_before_nvlink_4(generation: int, *, drops: bool) -> None:
    assert read(nvlink_generation=generation).drops_failed_gpus is drops


SMALL: dict[str, Any] = {"nvlink_generation": 3, "partitions": [[1, [1, 2], 12], [4, [1], 0], [9, [2], 0]]}
LARGE: dict[str, Any] = {**SMALL, "partitions": [*SMALL["partitions"], [10, [3], 0]], "gpus__count": 3}
OTHER: dict[str, Any] = {**SMALL, "partitions": [[0, [1, 2], 12]]}
BOARDS = {"small": SMALL, "twin": SMALL, "large": LARGE, "other": OTHER}


@pytest.mark.parametrize(
    ("names", "listed", "recognised"),
    [
        pytest.param(["small", "other"], WHOLE, "small", id="one-fits"),
        pytest.param(["small", "large"], WHOLE, "small", id="a-whole-table-before-a-part"),
        pytest.param(["large", "small"], {**WHOLE, 10: (3,)}, "large", id="a-larger-whole-table"),
        pytest.param(["small", "other"], {4: (1,)}, "small", id="a-part"),
        pytest.param(["small", "large"], {4: (1,)}, None, id="a-part-of-two"),
        pytest.param(["small", "twin"], WHOLE, None, id="two-fit"),
        pytest.param(["other"], WHOLE, None, id="none-fits"),
        pytest.param([], WHOLE, None, id="no-platforms"),
    ],
)
def test_a_board_is_recognised_if_no_other_fits(
    names: list[str], listed: dict[int, tuple[int, ...]], recognised: str | None
) -> None:
    found = platform.recognise(table(listed), [read(name=name, **BOARDS[name]) for name in names])
    assert (found.name if found else None) == recognised
