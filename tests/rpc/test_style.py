# SPDX-License-Identifier: Apache-2.0
"""The API keeps to buf's style rules, as far as names tell."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FileDescriptor

from fmctl.rpc.fmctl.v1 import (
    errors_pb2,
    fabric_controller_pb2,
    fabric_manager_pb2,
    gpu_pb2,
    hook_pb2,
    layout_pb2,
    lease_pb2,
    partition_pb2,
    service_vm_pb2,
)

FILES: list[FileDescriptor] = [
    module.DESCRIPTOR
    for module in (
        errors_pb2,
        fabric_controller_pb2,
        fabric_manager_pb2,
        gpu_pb2,
        layout_pb2,
        hook_pb2,
        lease_pb2,
        partition_pb2,
        service_vm_pb2,
    )
]
SNAKE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
PASCAL = re.compile(r"([A-Z][a-z0-9]+)+")


def messages() -> Iterator[Descriptor]:
    for file in FILES:
        yield from file.message_types_by_name.values()


def enums() -> Iterator[EnumDescriptor]:
    for file in FILES:
        yield from file.enum_types_by_name.values()


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.name))
def test_a_package_has_a_version_and_its_own_folder(file: FileDescriptor) -> None:
    assert file.package == "fmctl.v1"
    assert re.fullmatch(r"fmctl/v1/[a-z_]+\.proto", file.name)


def test_messages_and_fields_are_named_in_style() -> None:
    for message in messages():
        assert PASCAL.fullmatch(message.name)
        for field in message.fields:
            assert SNAKE.fullmatch(field.name), field.full_name


def test_enum_values_carry_the_enum_s_name_and_start_unspecified() -> None:
    for enum in enums():
        prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper()
        assert enum.values_by_number[0].name == f"{prefix}_UNSPECIFIED"
        assert all(value.name.startswith(f"{prefix}_") for value in enum.values)


def test_every_call_has_a_request_and_a_response_of_its_own() -> None:
    seen: set[str] = set()
    for file in FILES:
        for service in file.services_by_name.values():
            assert service.name.endswith("Service")
            for method in service.methods:
                names = {method.input_type.name, method.output_type.name}
                assert names == {f"{method.name}Request", f"{method.name}Response"}
                assert not names & seen
                seen |= names
