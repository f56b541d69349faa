# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses

import pytest

from fmctl.core import schema
from fmctl.core.agentsettings import AgentSettings
from fmctl.core.errors import InvalidDocument
from fmctl.core.settings import DaemonSettings
from fmctl.core.values import LogLevel

BOTH = pytest.mark.parametrize("cls", [AgentSettings, DaemonSettings])


@BOTH
def test_an_empty_file_means_the_defaults(cls: type[AgentSettings | DaemonSettings]) -> None:
    assert schema.load(cls, "# nothing set\n", "x.yaml") == cls()


@BOTH
def test_what_is_shown_reads_back_to_the_same(cls: type[AgentSettings | DaemonSettings]) -> None:
    assert schema.load(cls, schema.documented(cls()), "x.yaml") == cls()


@BOTH
def test_every_setting_is_shown_under_its_meaning(cls: type[AgentSettings | DaemonSettings]) -> None:
    lines = schema.documented(cls()).splitlines()
    for field in dataclasses.fields(cls):
        (index,) = (i for i, line in enumerate(lines) if line.startswith(f"{field.name}:"))
        assert lines[index - 1].startswith("# ")


def test_a_file_s_values_are_taken() -> None:
    text = "listen: unix:/tmp/a.sock\ncall_timeout_s: 5\nlog_level: debug\nplatform: hgx-b200-8\n"
    read = schema.load(DaemonSettings, text, "fmctld.yaml")
    assert (str(read.listen), read.call_timeout_s, read.log_level, read.platform) == (
        "unix:/tmp/a.sock",
        5.0,
        LogLevel.DEBUG,
        "hgx-b200-8",
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("call_timeout: 5", "call_timeout: there is no such key; did you mean call_timeout_s?"),
        ("call_timeout_s: 0", "call_timeout_s: 0.0 is below 0.1"),
        ("call_timeout_s: soon", "call_timeout_s: a number is wanted, not 'soon'"),
        ("call_timeout_s: .nan", "call_timeout_s"),
        ("reflection: 1", "reflection: true or false is wanted, not 1"),
        ("log_level: loud", "log_level: 'loud' is none of debug, info, warning, error"),
        ("listen: /run/x.sock", "listen: unix:PATH or HOST:PORT is wanted"),
        ("listen: unix:x.sock", "listen: unix:x.sock needs an absolute path"),
        ("state_dir: lib", "state_dir: an absolute path is wanted"),
        ("- listen", "a mapping is wanted"),
        ("clean: {memory: command}", "clean: memory: command and memory_command go together"),
        ("clean: {memory_command: [x]}", "clean: memory: command and memory_command go together"),
        ("clean: {firmware: enforce}", "clean: firmware: enforce needs firmware_list"),
        ("clean: {memory: scrub}", "clean.memory: 'scrub' is none of reset-only, command"),
    ],
)
def test_a_bad_value_is_refused_with_file_key_and_reason(text: str, reason: str) -> None:
    with pytest.raises(InvalidDocument) as refusal:
        schema.load(DaemonSettings, text, "fmctld.yaml")
    assert refusal.value.what == "fmctld.yaml is refused"
    assert reason in refusal.value.why
