# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses

import pytest

from fmctl import templates
from fmctl.core import fmconfig
from fmctl.core.address import Address
from fmctl.core.errors import FmctlError
from fmctl.core.fmconfig import ConfigValues
from fmctl.core.template import Template

OURS = templates.fabric_manager_config()
VALUES = ConfigValues(
    Address.parse("unix:/run/fmctl/fm.sock"), "/run/fmctl/fabricmanager.state", "/var/log/fabricmanager.log", 16
)
STOCK = """\
# Fabric Manager \N{EN DASH} a comment with FABRIC_MODE=7 in it
LOG_LEVEL=4
FABRIC_MODE=0
DAEMONIZE=1
FABRIC_MODE_RESTART=1
STATE_FILE_NAME=/tmp/fabricmanager.state
FM_CMD_BIND_INTERFACE=127.0.0.1\N{SPACE}
FM_CMD_PORT_NUMBER=6666
FM_CMD_UNIX_SOCKET_PATH=
FM_CMD_VSOCK_CID=4294967295
FM_STAY_RESIDENT_ON_FAILURES=1
TOPOLOGY_FILE_PATH = /usr/share/nvidia/nvswitch\t
"""


def made(address: str = "unix:/run/fmctl/fm.sock", stock: str = STOCK) -> dict[str, str]:
    return fmconfig.parse(fmconfig.make(OURS, dataclasses.replace(VALUES, api=Address.parse(address)), stock))


def test_values_are_stripped_and_comments_are_none() -> None:
    parsed = fmconfig.parse(STOCK)
    assert parsed["FM_CMD_BIND_INTERFACE"] == "127.0.0.1"
    assert parsed["TOPOLOGY_FILE_PATH"] == "/usr/share/nvidia/nvswitch"
    assert parsed["FM_CMD_UNIX_SOCKET_PATH"] == ""
    assert parsed["FABRIC_MODE"] == "0"
    assert len(parsed) == 11


def test_a_value_may_hold_an_equals_sign() -> None:
    assert fmconfig.parse("A=b=c\n\n  # D=1\nno key\n") == {"A": "b=c"}


def test_our_keys_win_and_the_others_stay() -> None:
    config = made()
    assert config == {
        "FABRIC_MODE": "1",
        "FABRIC_MODE_RESTART": "0",
        "DAEMONIZE": "0",
        "FM_STAY_RESIDENT_ON_FAILURES": "0",
        "STATE_FILE_NAME": "/run/fmctl/fabricmanager.state",
        "LOG_USE_SYSLOG": "0",
        "LOG_FILE_NAME": "/var/log/fabricmanager.log",
        "LOG_APPEND_TO_LOG": "1",
        "LOG_FILE_MAX_SIZE": "16",
        "LOG_MAX_ROTATE_COUNT": "2",
        "FM_CMD_UNIX_SOCKET_PATH": "/run/fmctl/fm.sock",
        "LOG_LEVEL": "4",
        "TOPOLOGY_FILE_PATH": "/usr/share/nvidia/nvswitch",
    }


def test_no_key_stands_twice_and_no_line_ends_in_a_space() -> None:
    lines = fmconfig.make(OURS, VALUES, STOCK).splitlines()
    keys = [line.partition("=")[0] for line in lines if not line.startswith("#")]
    assert len(set(keys)) == len(keys)
    assert [line for line in lines if line != line.strip()] == []
    assert fmconfig.make(OURS, VALUES, STOCK).endswith("\n")


def test_without_nvidia_s_own_file_ours_is_enough() -> None:
    assert set(made(stock="")) == set(made()) - {"LOG_LEVEL", "TOPOLOGY_FILE_PATH"}


@pytest.mark.parametrize(
    ("address", "keys"),
    [
        ("unix:/run/x.sock", {"FM_CMD_UNIX_SOCKET_PATH": "/run/x.sock"}),
        (
            "127.0.0.1:7000",
            {
                "FM_CMD_UNIX_SOCKET_PATH": "",
                "FM_CMD_BIND_INTERFACE": "127.0.0.1",
                "FM_CMD_PORT_NUMBER": "7000",
            },
        ),
        (
            "vsock:1:1447971919",
            {
                "FM_CMD_UNIX_SOCKET_PATH": "",
                "FM_CMD_VSOCK_CID": "1",
                "FM_CMD_VSOCK_PORT_NUMBER": "1447971919",
            },
        ),
    ],
)
def test_its_calls_come_where_the_agent_dials_and_nowhere_else(address: str, keys: dict[str, str]) -> None:
    config = made(address)
    assert {key: value for key, value in config.items() if key.startswith("FM_CMD_")} == keys
    assert str(fmconfig.api(config)) == address


def test_defaults_of_the_api_are_fabric_manager_s() -> None:
    assert str(fmconfig.api({})) == "127.0.0.1:6666"
    assert str(fmconfig.api({"FM_CMD_VSOCK_CID": "3"})) == "vsock:3:1447971919"
    assert str(fmconfig.api({"FM_CMD_BIND_INTERFACE": "::1"})) == "[::1]:6666"


@pytest.mark.parametrize("path", ["/run/a\nFABRIC_MODE=0", "/run/a\r", "/run/a "])
def test_a_value_that_would_end_its_line_is_refused(path: str) -> None:
    with pytest.raises(FmctlError) as refusal:
        fmconfig.make(OURS, dataclasses.replace(VALUES, state_file=path))
    assert "holds what a line of it cannot" in refusal.value.why
    with pytest.raises(FmctlError):
        fmconfig.make(OURS, dataclasses.replace(VALUES, log_file=path))


def test_a_template_that_names_what_there_is_not_is_refused() -> None:
    with pytest.raises(FmctlError) as refusal:
        fmconfig.make(Template("x.j2", "A={{ mistyped }}\n"), VALUES)
    assert (refusal.value.what, "mistyped" in refusal.value.why) == ("the template x.j2 cannot be filled", True)
