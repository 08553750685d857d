"""kit.addresses: what is an address, and what is wrong with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.kit.addresses import Address, address


@pytest.mark.parametrize(
    ("text", "shown", "path", "host", "port"),
    [
        ("/run/a.sock", "/run/a.sock", "/run/a.sock", "", 0),
        ("unix:///run/a.sock", "/run/a.sock", "/run/a.sock", "", 0),
        ("unix:/run/a.sock", "/run/a.sock", "/run/a.sock", "", 0),
        ("/run/a:b.sock", "/run/a:b.sock", "/run/a:b.sock", "", 0),
        ("node-1.example:7", "node-1.example:7", "", "node-1.example", 7),
        ("127.0.0.1:65535", "127.0.0.1:65535", "", "127.0.0.1", 65535),
        ("tcp://127.0.0.1:1", "127.0.0.1:1", "", "127.0.0.1", 1),
        ("[::1]:50051", "[::1]:50051", "", "::1", 50051),
        ("[fe80::1%eth0]:1", "[fe80::1%eth0]:1", "", "fe80::1%eth0", 1),
    ],
)
def test_what_is_an_address(text: str, shown: str, path: str, host: str, port: int) -> None:
    """A path, or a host with a port."""
    found = Address(address=text)
    assert (str(found), found.path, found.host, found.port, found.secure) == (shown, path, host, port, False)
    assert address(found) is found
    assert address(text) == found


def test_a_path_object_is_a_unix_socket() -> None:
    """As the node's own are given."""
    assert address(Path("/run/a.sock")).path == "/run/a.sock"


def test_any_word_of_tls_means_tls() -> None:
    """The name that is expected is the host's, if no other is given."""
    assert Address(address="h:1", tls=True).expected_name == "h"
    assert Address(address="h:1", ca="/ca.pem").secure
    assert Address(address="h:1", cert="/c.pem", key="/k.pem").secure
    assert Address(address="[::1]:1", server_name="other").expected_name == "other"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"address": ""}, "address: '' is neither /path nor unix:///path of a socket, nor HOST:PORT"),
        ({"address": "run/a.sock"}, "address: 'run/a.sock' is neither"),
        ({"address": "/" + "x" * 107}, "longer than 107 bytes"),
        ({"address": "/a\0b"}, "zero byte"),
        ({"address": "host:0"}, "address: '0' of 'host:0' is not a port from 1 to 65535"),
        ({"address": "host:65536"}, "is not a port"),
        ({"address": "host:١"}, "is not a port"),
        ({"address": "::1:50"}, r"is not a host \(an IPv6 address is written in brackets"),
        ({"address": "http://host:50"}, "is not a host"),
        ({"address": "a b:50"}, "is not a host"),
        ({"address": "/a", "tls": True}, "address: TLS is for TCP, and /a is a unix socket"),
        ({"address": "/a", "ca": "/ca"}, "TLS is for TCP"),
        ({"address": "h:1", "ca": "ca.pem"}, "ca: 'ca.pem' is not an absolute path"),
        ({"address": "h:1", "key": "/k"}, "key: there is no cert"),
        ({"address": "h:1", "server_name": "a/b"}, "server_name: 'a/b' is not a host name"),
        ({"address": "h:1", "connect_timeout": 0.0}, "connect_timeout"),
    ],
)
def test_what_is_wrong_is_said(given: dict[str, Any], words: str) -> None:
    """The message begins with the field."""
    with pytest.raises(ValueError, match=words) as caught:
        Address(**given)
    assert str(caught.value).partition(":")[0] in {"address", "ca", "key", "server_name", "connect_timeout"}
