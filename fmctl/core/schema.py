# SPDX-License-Identifier: Apache-2.0
"""YAML text to frozen dataclasses, typed, with every refusal naming the file, the key and the reason; and back.

`core.settings`, `core.agentsettings` and `core.platform` declare their documents as dataclasses; nothing else describes
them. Supported types: str, int, float, bool, Enum, tuple[X, ...], X | None, dataclasses (generic ones too), and classes
with a `parse` class method that takes the plain value and raises ValueError, whose way back is `plain`, or `str` where
there is none. A dataclass may refuse its own values with ValueError.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Hashable
from enum import Enum
from typing import Any, TypeVar

import yaml

from fmctl.core.errors import InvalidDocument

T = TypeVar("T")


def setting(
    default: Any = dataclasses.MISSING, *, doc: str, low: float | None = None, high: float | None = None
) -> Any:
    """A documented field, with its bounds where it is a number."""
    return dataclasses.field(default=default, metadata={"doc": doc, "low": low, "high": high})


def load(cls: type[T], text: str, source: str) -> T:
    """Read a YAML document as `cls`; raises InvalidDocument, which names `source`."""
    try:
        data = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 (a SafeLoader that refuses duplicate keys)
    except _UNREADABLE as error:
        raise _refusal(source, "", f"it is not valid YAML: {' '.join(str(error).split())}") from error
    try:
        return typing.cast(T, _convert(cls, {} if data is None else data, "", {}))
    except _Wrong as wrong:
        raise _refusal(source, wrong.key, wrong.reason) from None


def dump_entry(key: str, value: Any) -> str:
    """One key with a plain value, as a line of YAML."""
    return yaml.dump({key: value}, Dumper=_Dumper, allow_unicode=True, width=10_000).strip()


def plain(value: Any) -> Any:
    """What YAML and JSON can write of a document, and `load` reads back to it; a field at its default is left out."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if hasattr(value, "parse"):
        return value.plain() if hasattr(value, "plain") else str(value)
    if dataclasses.is_dataclass(value):
        fields = {field.name: (getattr(value, field.name), field.default) for field in dataclasses.fields(value)}
        return {name: plain(item) for name, (item, default) in fields.items() if item != default}
    return value


def dump(document: Any) -> str:
    """Plain data as YAML, keys in their order."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def documented(settings: Any, indent: str = "") -> str:
    """The settings as YAML that reads back to the same, each under its text."""
    lines = []
    for field in dataclasses.fields(settings):
        low, high = field.metadata["low"], field.metadata["high"]
        limits = f" ({low:.12g} to {high:.12g})" if low is not None else ""
        lines.append(f"{indent}# {field.metadata['doc']}{limits}\n")
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value) and not hasattr(value, "parse"):
            lines.append(f"{indent}{field.name}:\n{documented(value, indent + '  ')}")
        else:
            lines.append(f"{indent}{dump_entry(field.name, plain(value))}\n")
    return "".join(lines)


def _refusal(source: str, key: str, reason: str) -> InvalidDocument:
    return InvalidDocument(f"{source} is refused", why=f"{key}: {reason}" if key else reason, fix=f"correct {source}")


class _Wrong(Exception):
    def __init__(self, key: str, reason: str) -> None:
        super().__init__(reason)
        self.key = key
        self.reason = reason


class _StrictLoader(yaml.SafeLoader):
    """A SafeLoader that refuses a key written twice, where YAML's own rule would drop the first in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Refuse a number that no setting can mean, and that Python may refuse to convert or to print."""
        value = super().construct_yaml_int(node)
        if value.bit_length() > 64:
            raise yaml.constructor.ConstructorError(None, None, "a number is too large", node.start_mark)
        return value


_StrictLoader.add_constructor("tag:yaml.org,2002:int", _StrictLoader.construct_yaml_int)

_UNREADABLE = (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""What PyYAML raises on a text it cannot read; scalars such as 2001-99-99 end in one of Python's own errors."""


class _Dumper(yaml.SafeDumper):
    """A SafeDumper that indents lists under their key, as people do."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: FBT001, FBT002
        super().increase_indent(flow, indentless=False)


def _represent_list(dumper: yaml.SafeDumper, data: list[Any]) -> yaml.SequenceNode:
    """One line for a list that holds a scalar, one line an item for the others."""
    nested = all(isinstance(item, (dict, list)) for item in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=not nested)


def _represent_str(dumper: yaml.SafeDumper, data: str) -> yaml.ScalarNode:
    """Quotes where PyYAML's choice misleads: 0680 is a number to other readers, and some line breaks get lost."""
    style = None
    if not data.isprintable():
        style = '"'
    elif data[:1].isdigit() and data.isalnum():
        style = "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(str, _represent_str)


def _convert(kind: Any, value: Any, key: str, limits: typing.Mapping[str, Any]) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, key, limits)
    if origin is tuple:
        return _sequence(arguments[0], value, key)
    if hasattr(kind, "parse"):
        return _parsed(kind, value, key)
    if dataclasses.is_dataclass(origin):
        return _record(typing.cast("type[Any]", origin), value, key, arguments)
    if dataclasses.is_dataclass(kind):
        return _record(typing.cast("type[Any]", kind), value, key)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _choice(kind, value, key)
    return _scalar(kind, value, key, limits)


def _sequence(kind: Any, value: Any, key: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _Wrong(key, f"a list is wanted, not {_shown(value)}")
    return tuple(_convert(kind, item, f"{key}[{index}]", {}) for index, item in enumerate(value))


def _parsed(kind: Any, value: Any, key: str) -> Any:
    try:
        return kind.parse(value)
    except ValueError as error:
        raise _Wrong(key, str(error)) from None


def _record(cls: type[Any], value: Any, key: str, arguments: tuple[Any, ...] = ()) -> Any:
    if not isinstance(value, dict):
        raise _Wrong(key, f"a mapping is wanted, not {_shown(value)}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    prefix = f"{key}." if key else ""
    for name in value:
        if name not in fields:
            raise _Wrong(f"{prefix}{name}", _unknown(str(name), fields))
    kinds = typing.get_type_hints(cls)
    bound = dict(zip(getattr(cls, "__parameters__", ()), arguments, strict=True))
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in value:
            kind = bound.get(kinds[name], kinds[name])
            values[name] = _convert(kind, value[name], prefix + name, field.metadata)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise _Wrong(prefix + name, "it is missing")
    try:
        return cls(**values)
    except ValueError as error:
        raise _Wrong(key, str(error)) from None


def _unknown(name: str, known: typing.Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"there is no such key; did you mean {near[0]}?" if near else "there is no such key"


def _choice(kind: type[Enum], value: Any, key: str) -> Enum:
    try:
        return kind(value)
    except ValueError:
        names = ", ".join(str(member.value) for member in kind)
        raise _Wrong(key, f"{_shown(value)} is none of {names}") from None


def _scalar(kind: Any, value: Any, key: str, limits: typing.Mapping[str, Any]) -> Any:
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise _Wrong(key, f"{_NAMES[kind]} is wanted, not {_shown(value)}")
    low, high = limits.get("low"), limits.get("high")
    if low is not None and not value >= low:
        raise _Wrong(key, f"{value} is below {low}")
    if high is not None and not value <= high:
        raise _Wrong(key, f"{value} is above {high}")
    return value


_NAMES: dict[Any, str] = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def _shown(value: Any) -> str:
    return "nothing" if value is None else repr(value)
