# SPDX-License-Identifier: Apache-2.0
"""Templates: values in, and the file and line of whatever goes wrong."""

from __future__ import annotations

import sys

import pytest

from fmctl.core import template
from fmctl.core.errors import FmctlError
from fmctl.core.template import BadTemplate, Template


def fill(text: str, other: str = "", **values: object) -> str:
    templates = {"one": Template("/t/one.j2", text), "two": Template("/t/two.j2", other)}
    return template.fill(templates, "one", values)


def test_values_are_escaped_for_xml() -> None:
    assert fill("<a b='{{ v }}'>", v="'\"<&>") == "<a b='&#39;&#34;&lt;&amp;&gt;'>"


def test_lines_with_a_tag_alone_leave_no_trace_and_the_last_newline_stays() -> None:
    assert fill("{# no #}\n  {% if v %}\n  a\n  {% endif %}\n", v=True) == "  a\n"


def test_one_template_can_import_another() -> None:
    assert fill("{% import 'two' as two %}{{ two.m(1) }}", "{% macro m(x) %}<{{ x }}>{% endmacro %}") == "<1>"


@pytest.mark.parametrize(
    ("text", "other", "where"),
    [
        ("a\n{{ v.missing }}\n", "", "/t/one.j2, line 2: 'int object' has no attribute 'missing'"),
        ("{{ nothing }}", "", "/t/one.j2, line 1: 'nothing' is undefined"),
        ("\n\n{% if %}", "", "/t/one.j2, line 3: "),
        ("\n{{ 1 // 0 }}", "", "/t/one.j2, line 2: "),
        ("{{ v.__class__ }}", "", "/t/one.j2, line 1: access to attribute '__class__' of 'int' object is unsafe."),
        ("{{ range(10**9) }}", "", "/t/one.j2, line 1: Range too big"),
        ("\n{% import 'three' as three %}", "", "/t/one.j2, line 2: three"),
        ("\n{% import 'two' as two %}", "a\n\n{% end %}", "/t/two.j2, line 3: "),
        (
            "{% import 'two' as two %}\n{{ two.m() }}",
            "{% macro m() %}\n{{ 1 // 0 }}{% endmacro %}",
            "/t/two.j2, line 2: ",
        ),
    ],
)
def test_what_fails_is_told_with_its_file_and_line(text: str, other: str, where: str) -> None:
    with pytest.raises(BadTemplate) as failure:
        fill(text, other, v=1)
    assert failure.value.why.startswith(where)
    assert failure.value.what == f"the template {where.split(',')[0]} cannot be filled"
    assert failure.value.fix == "correct it, or remove it to use fmctl's own"


def test_a_template_that_is_missing_altogether_is_told_by_its_name() -> None:
    with pytest.raises(BadTemplate) as failure:
        template.fill({}, "one", {})
    assert failure.value.what == "the template one cannot be filled"


def test_without_jinja2_the_fix_is_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2.sandbox", None)
    with pytest.raises(FmctlError) as failure:
        fill("a")
    assert failure.value.why == "jinja2 is not installed"
