# SPDX-License-Identifier: Apache-2.0
"""Addresses: three kinds, each read and written in one way."""

from __future__ import annotations

import ipaddress
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmctl.core.address import MAX_UNIX_PATH, Address, TcpAddress, UnixAddress, VsockAddress

ports = st.integers(1, 65535)
words = st.integers(0, 2**32 - 1)
names = st.from_regex(r"[A-Za-z0-9._-]{1,40}", fullmatch=True)
segments = st.from_regex(r"[A-Za-z0-9._:-]{1,12}", fullmatch=True).filter(lambda segment: segment != ".")
tcp = st.builds(TcpAddress, names | st.ip_addresses().map(str), ports)
unix = st.lists(segments, min_size=1, max_size=7).map(lambda parts: UnixAddress("/" + "/".join(parts)))
vsock = st.builds(VsockAddress, words, words)


@given(tcp | unix | vsock)
def test_an_address_survives_being_written_and_read(where: TcpAddress | UnixAddress | VsockAddress) -> None:
    assert Address.parse(str(Address(where))) == Address(where)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        pytest.param("unix:/run/fmctl/agent.sock", UnixAddress("/run/fmctl/agent.sock"), id="unix"),
        pytest.param("unix:///run/agent.sock", UnixAddress("/run/agent.sock"), id="unix-as-url"),
        pytest.param("unix://run/agent.sock", UnixAddress("/run/agent.sock"), id="two-slashes"),
        pytest.param("127.0.0.1:6666", TcpAddress("127.0.0.1", 6666), id="ipv4"),
        pytest.param("[::1]:6666", TcpAddress("::1", 6666), id="ipv6"),
        pytest.param("gpu-host.example:1", TcpAddress("gpu-host.example", 1), id="name"),
        pytest.param("  localhost:65535\n", TcpAddress("localhost", 65535), id="blanks-around"),
        pytest.param("vsock:4294967295:1447971919", VsockAddress(2**32 - 1, 0x564E4C4F), id="vsock"),
    ],
)
def test_each_kind_is_read(text: str, where: TcpAddress | UnixAddress | VsockAddress) -> None:
    assert Address.parse(text).where == where


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        pytest.param(6666, "not 6666", id="number"),
        pytest.param(None, "not None", id="nothing"),
        pytest.param("", "HOST:PORT is wanted", id="empty"),
        pytest.param("localhost", "HOST:PORT is wanted", id="no-port"),
        pytest.param("localhost:0", "HOST:PORT is wanted", id="port-zero"),
        pytest.param("localhost:65536", "HOST:PORT is wanted", id="port-too-high"),
        pytest.param("::1:6666", "HOST:PORT is wanted", id="ipv6-without-brackets"),
        pytest.param("localhost:٦٦", "HOST:PORT is wanted", id="digits-of-another-script"),
        pytest.param("[1.2.3.4]:80", "1.2.3.4", id="ipv4-in-brackets"),
        pytest.param("[::::]:80", "::::", id="not-ipv6"),
        pytest.param("unix:run/x.sock", "absolute path", id="relative-path"),
        pytest.param("unix:", "absolute path", id="no-path"),
        pytest.param("unix:/run/\0x", "zero byte", id="zero-byte"),
        pytest.param(f"unix:/{'x' * MAX_UNIX_PATH}", "107 bytes", id="long-path"),
        pytest.param(f"unix:/{'é' * (MAX_UNIX_PATH // 2)}x", "107 bytes", id="long-path-in-bytes"),
        pytest.param("vsock:3", "vsock:CID:PORT is wanted", id="vsock-without-port"),
        pytest.param("vsock:-1:1", "vsock:CID:PORT is wanted", id="negative-cid"),
        pytest.param("vsock:4294967296:1", "vsock:CID:PORT is wanted", id="cid-too-high"),
        pytest.param("vsock:3:4294967296", "vsock:CID:PORT is wanted", id="vsock-port-too-high"),
        pytest.param("vsock:٣:1", "vsock:CID:PORT is wanted", id="cid-of-another-script"),
    ],
)
def test_what_is_no_address_is_refused(value: object, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        Address.parse(value)


def test_a_path_of_exactly_the_limit_is_taken() -> None:
    path = "/" + "x" * (MAX_UNIX_PATH - 1)
    assert Address.parse(f"unix:{path}").where == UnixAddress(path)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("10.0.0.1", False),
        ("0.0.0.0", False),
        ("::", False),
        ("localhost.example", False),
    ],
)
def test_loopback_is_what_no_other_host_can_reach(host: str, *, loopback: bool) -> None:
    assert TcpAddress(host, 1).is_loopback is loopback


@given(st.ip_addresses(v=6), ports)
def test_ipv6_is_written_in_brackets(host: ipaddress.IPv6Address, port: int) -> None:
    assert str(TcpAddress(str(host), port)) == f"[{host}]:{port}"
