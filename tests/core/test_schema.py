# SPDX-License-Identifier: Apache-2.0
"""Documents: what is read, what is refused with file, key and reason, and the way back."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from fmctl.core import schema
from fmctl.core.errors import InvalidDocument
from fmctl.core.pci import PciId
from fmctl.core.schema import setting

T = TypeVar("T")


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Pair(Generic[T]):
    value: T
    note: str = ""

    def __post_init__(self) -> None:
        if self.note == "bad":
            raise ValueError("note is bad")


@dataclass(frozen=True)
class Document:
    text: str
    whole: int = setting(0, doc="a number", low=0, high=9)
    broken: float = setting(0.5, doc="a number", low=0, high=9)
    switch: bool = False
    colour: Colour = Colour.RED
    id: PciId | None = None
    words: tuple[str, ...] = ()
    pair: Pair[int] | None = None
    pairs: tuple[Pair[tuple[Colour, ...]], ...] = ()


FULL = """
text: t
whole: 3
broken: 1.5
switch: true
colour: blue
id: '10de:2330'
words: [a, b]
pair: {value: 7, note: n}
pairs: [{value: [red, blue]}]
"""
READ = Document(
    text="t",
    whole=3,
    broken=1.5,
    switch=True,
    colour=Colour.BLUE,
    id=PciId(0x10DE, 0x2330),
    words=("a", "b"),
    pair=Pair(7, "n"),
    pairs=(Pair((Colour.RED, Colour.BLUE)),),
)


def refusal(text: str) -> str:
    with pytest.raises(InvalidDocument) as refused:
        schema.load(Document, text, "some.yaml")
    assert refused.value.what == "some.yaml is refused"
    assert refused.value.fix == "correct some.yaml"
    return refused.value.why


def test_every_kind_of_value_is_read() -> None:
    assert schema.load(Document, FULL, "some.yaml") == READ


def test_what_is_left_out_has_its_default() -> None:
    assert schema.load(Document, "text: t", "some.yaml") == Document("t")


def test_a_whole_number_serves_as_a_number() -> None:
    read = schema.load(Document, "{text: t, broken: 2}", "some.yaml")
    assert isinstance(read.broken, float)
    assert read.broken == 2.0


def test_a_number_may_fill_64_bits() -> None:
    assert schema.load(Pair[int], f"value: {2**64 - 1}", "some.yaml").value == 2**64 - 1
    with pytest.raises(InvalidDocument, match="a number is too large"):
        schema.load(Pair[int], f"value: {2**64}", "some.yaml")


def test_an_optional_value_may_be_null() -> None:
    assert schema.load(Document, "{text: t, pair: null}", "some.yaml") == Document("t")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        pytest.param("", "text: it is missing", id="empty"),
        pytest.param("{}", "text: it is missing", id="missing"),
        pytest.param("{text: t, pair: {}}", "pair.value: it is missing", id="missing-below"),
        pytest.param("{text: t, colours: red}", "colours: there is no such key; did you mean colour?", id="unknown"),
        pytest.param("{text: t, zzz: 1}", "zzz: there is no such key", id="unknown-without-a-near-one"),
        pytest.param(
            "{text: t, pair: {value: 1, not: n}}", "pair.not: there is no such key; did you mean note?", id="below"
        ),
        pytest.param("{text: t, 1: 2}", "1: there is no such key", id="key-is-a-number"),
        pytest.param("{text: 1}", "text: a text is wanted, not 1", id="number-for-text"),
        pytest.param("{text: null}", "text: a text is wanted, not nothing", id="null-for-text"),
        pytest.param("{text: t, whole: 1.0}", "whole: a whole number is wanted, not 1.0", id="float-for-int"),
        pytest.param("{text: t, whole: true}", "whole: a whole number is wanted, not True", id="bool-for-int"),
        pytest.param("{text: t, broken: false}", "broken: a number is wanted, not False", id="bool-for-float"),
        pytest.param("{text: t, broken: '1'}", "broken: a number is wanted, not '1'", id="text-for-float"),
        pytest.param("{text: t, switch: 1}", "switch: true or false is wanted, not 1", id="int-for-bool"),
        pytest.param("{text: t, whole: -1}", "whole: -1 is below 0", id="below-its-bound"),
        pytest.param("{text: t, whole: 10}", "whole: 10 is above 9", id="above-its-bound"),
        pytest.param("{text: t, broken: .nan}", "broken: nan is below 0", id="nan"),
        pytest.param("{text: t, broken: .inf}", "broken: inf is above 9", id="infinite"),
        pytest.param("{text: t, colour: green}", "colour: 'green' is none of red, blue", id="not-a-choice"),
        pytest.param("{text: t, colour: [red]}", "colour: ['red'] is none of red, blue", id="list-for-choice"),
        pytest.param("{text: t, words: a}", "words: a list is wanted, not 'a'", id="text-for-list"),
        pytest.param("{text: t, words: [a, 1]}", "words[1]: a text is wanted, not 1", id="item"),
        pytest.param("{text: t, pairs: [{value: [x]}]}", "pairs[0].value[0]: 'x' is none of red, blue", id="deep"),
        pytest.param("{text: t, pair: 1}", "pair: a mapping is wanted, not 1", id="number-for-mapping"),
        pytest.param("{text: t, pair: {value: 1, note: bad}}", "pair: note is bad", id="refused-by-itself"),
        pytest.param(
            "{text: t, id: 10DE:2330}",
            "id: a PCI id such as '10de:2330' is wanted, in quotes and lower case, not '10DE:2330'",
            id="refused-by-parse",
        ),
        pytest.param("- text", "a mapping is wanted, not ['text']", id="list"),
        pytest.param("text", "a mapping is wanted, not 'text'", id="scalar"),
    ],
)
def test_a_refusal_names_file_key_and_reason(text: str, why: str) -> None:
    assert refusal(text) == why


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("text: [", "while parsing", id="syntax"),
        pytest.param("text: a\ntext: b\n", "key 'text' stands twice", id="key-twice"),
        pytest.param("{text: t, pair: {value: 1, value: 1}}", "key 'value' stands twice", id="key-twice-below"),
        pytest.param("text: a\n---\ntext: b\n", "single document", id="two-documents"),
        pytest.param("{text: !!python/name:os.system }", "python/name", id="python-tag"),
        pytest.param("<<: {text: a}\n", "merge", id="merge-key"),
        pytest.param("? [text]\n: t\n", "unhashable key", id="list-as-key"),
        pytest.param("text: 2001-99-99", "month must be in 1..12", id="impossible-date"),
        pytest.param("text: !!int many", "invalid literal", id="impossible-number"),
        pytest.param("text: !!bool perhaps", "perhaps", id="impossible-truth"),
        pytest.param("text: !!timestamp soon", "", id="impossible-time"),
        pytest.param(f"text: t\nbroken: 1{'0' * 400}", "a number is too large", id="number-too-large"),
        pytest.param(f"text: 0x{'f' * 9000}", "a number is too large", id="number-too-large-to-print"),
        pytest.param("text: \0", "special characters", id="zero-byte"),
        pytest.param("text: " + "[" * 5000, "", id="too-deep"),
    ],
)
def test_what_is_no_yaml_is_refused(text: str, reason: str) -> None:
    why = refusal(text)
    assert why.startswith("it is not valid YAML: ")
    assert reason in why
    assert "\n" not in why


plain_data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*Document.__dataclass_fields__, "value", "note"]), inner, max_size=5)
        | st.dictionaries(st.text(max_size=4) | st.integers() | st.none(), inner, max_size=2)
    ),
    max_leaves=12,
)


def loads_or_refuses(text: str) -> None:
    try:
        assert isinstance(schema.load(Document, text, "some.yaml"), Document)
    except InvalidDocument as refused:
        assert str(refused).startswith("some.yaml is refused: ")


@given(plain_data)
def test_no_data_ends_in_another_error(data: Any) -> None:
    loads_or_refuses(yaml.safe_dump(data))


@given(st.dictionaries(st.sampled_from(list(Document.__dataclass_fields__)), plain_data))
def test_no_value_of_a_known_key_ends_in_another_error(data: dict[str, Any]) -> None:
    loads_or_refuses(yaml.safe_dump({"text": "t", **data}))


@given(st.text(alphabet="tex:[]{},?!&*<|>-'\"#% \n\t019.xo_~é\0", max_size=40))
@example("text: &a [*a]")
@example("{text: 0b_}")
@example("text: 0000-00-00")
def test_no_text_ends_in_another_error(text: str) -> None:
    loads_or_refuses(text)


@given(
    st.builds(
        Document,
        text=st.text(max_size=20),
        whole=st.integers(0, 9),
        broken=st.floats(0, 9),
        switch=st.booleans(),
        colour=st.sampled_from(Colour),
        id=st.none() | st.builds(PciId, st.integers(0, 0xFFFF), st.integers(0, 0xFFFF)),
        words=st.lists(st.text(max_size=8)).map(tuple),
        pair=st.none() | st.integers(0, 2**32).map(Pair),
        pairs=st.lists(st.lists(st.sampled_from(Colour)).map(lambda c: Pair(tuple(c)))).map(tuple),
    )
)
@example(READ)
@example(Document("a\x85b\u2028c"))
def test_a_document_survives_being_written_and_read(document: Document) -> None:
    assert schema.load(Document, schema.dump(schema.plain(document)), "some.yaml") == document


def test_what_has_its_default_is_not_written() -> None:
    assert schema.plain(Document("t")) == {"text": "t"}
    assert schema.plain(Document("t", pair=Pair(0))) == {"text": "t", "pair": {"value": 0}}


def test_yaml_is_laid_out_as_people_write_it() -> None:
    plain = {"a": "é", "b": "0680", "row": [3, [1, 3]], "rows": [[1, [2]], [3, [4]]], "maps": [{"k": "2nd"}], "c": []}
    assert schema.dump(plain) == (
        "a: é\nb: '0680'\nrow: [3, [1, 3]]\nrows:\n  - [1, [2]]\n  - [3, [4]]\nmaps:\n  - k: '2nd'\nc: []\n"
    )


@given(st.from_regex(r"[a-z_]{1,12}", fullmatch=True), st.text(max_size=30) | st.booleans() | st.integers())
def test_one_entry_is_one_line_that_reads_back(key: str, value: str | int) -> None:
    line = schema.dump_entry(key, value)
    assert len(line.splitlines()) == 1
    assert yaml.safe_load(line) == {key: value}
