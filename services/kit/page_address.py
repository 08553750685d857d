"""Where a process serves a page (:mod:`services.kit.http_server`). Apart from the server, since every process reads the
settings, and few serve a page.
"""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path


def parse_address(text: str) -> Path | tuple[str, int]:
    """The address to listen at: the absolute path of a unix socket, or ``HOST:PORT`` (``[::1]:80`` for IPv6; without a
    host, all addresses of the machine). ValueError.
    """
    if text.startswith("/"):
        if len(os.fsencode(text)) > 107:
            raise ValueError(f"{text!r} is longer than the 107 bytes of a socket's path")
        return Path(text)
    host, colon, port = text.rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError(f"{text!r} is neither HOST:PORT nor the absolute path of a unix socket")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r}: an IPv6 address stands in brackets, such as [::1]:80")
    return host, int(port)


def check(address: str) -> None:
    """Check the setting ``address`` of a page; empty if it is not served. ValueError begins with its name."""
    if address:
        try:
            parse_address(address)
        except ValueError as error:
            raise ValueError(f"address: {error}") from None


def overlap(first: str, second: str) -> bool:
    """Whether two addresses (:func:`parse_address`) exclude each other: only one server can listen there."""
    one, other = parse_address(first), parse_address(second)
    if isinstance(one, Path) or isinstance(other, Path):
        return isinstance(one, Path) and isinstance(other, Path) and os.path.realpath(one) == os.path.realpath(other)
    if one[1] != other[1] or not one[1]:
        return False
    return any(_covers(a, b) or _covers(b, a) for a in _hosts(one[0]) for b in _hosts(other[0]))


def _hosts(host: str) -> tuple[str, ...]:
    """The addresses that a host stands for, as far as this is known without asking the resolver."""
    if not host:
        return ("0.0.0.0", "::")  # noqa: S104 - compared, not listened at
    if host.lower() == "localhost":
        return ("127.0.0.1", "::1")
    try:
        return (str(ipaddress.ip_address(host)),)
    except ValueError:
        return (host.lower(),)


def _covers(wide: str, other: str) -> bool:
    return wide in (other, "::" if ":" in other else "0.0.0.0")  # noqa: S104 - compared, not listened at
