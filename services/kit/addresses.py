"""Addresses of other processes, as an operator gives them: a unix socket, or TCP, with TLS if wanted."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from services.kit.settings import Seconds

CONNECT_TIMEOUT = 5.0
UNIX_PATH = 107
"""Bytes of a unix socket's path, at most (unix(7))."""

_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9_.])?")
_V6 = re.compile(r"[0-9A-Fa-f:.]+(%[A-Za-z0-9_.-]{1,32})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a service is, and how it is reached. ValueError, which begins with the field's name, if that makes no
    sense.
    """

    address: str
    """``/path`` or ``unix:///path`` of a unix socket, or ``HOST:PORT`` (``[ADDRESS]:PORT`` for IPv6)."""
    tls: bool = False
    """Whether the connection is TLS; it is so too if one of the next four is set. For TCP only."""
    ca: str = ""
    """File with the certificates (PEM) of those who may have signed the service's; empty: those that the machine
    trusts.
    """
    cert: str = ""
    """File with the certificate (PEM), and those between it and its authority, that this node shows the service."""
    key: str = ""
    """File with the key (PEM, without a password) of ``cert``; empty: it is in the same file."""
    server_name: str = ""
    """The name that the service's certificate must have; empty: the host of ``address``."""
    connect_timeout: Seconds = CONNECT_TIMEOUT
    """How long an attempt to connect may take, with TLS's handshake."""

    def __post_init__(self) -> None:
        if self.path:
            if len(self.path.encode("utf-8", "surrogateescape")) > UNIX_PATH:
                raise ValueError(f"address: {self.path} is longer than {UNIX_PATH} bytes, which a unix socket may have")
            if "\0" in self.path:
                raise ValueError(f"address: {self.path!r} has a zero byte")
            if self.secure:
                raise ValueError(f"address: TLS is for TCP, and {self.path} is a unix socket")
        else:
            self._check_tcp()
        for field in ("ca", "cert", "key"):
            value = getattr(self, field)
            if value and (not value.startswith("/") or "\0" in value):
                raise ValueError(f"{field}: {value!r} is not an absolute path")
        if self.key and not self.cert:
            raise ValueError("key: there is no cert to this key")
        if self.server_name and not (_NAME.fullmatch(self.server_name) or _V6.fullmatch(self.server_name)):
            raise ValueError(f"server_name: {self.server_name!r} is not a host name or address")
        if not 0 < self.connect_timeout <= 600:
            raise ValueError("connect_timeout: it is not more than 0 s and at most 10 min")

    def _check_tcp(self) -> None:
        host, colon, port = self._tcp.rpartition(":")
        if not colon or not host:
            raise ValueError(f"address: {self.address!r} is neither /path nor unix:///path of a socket, nor HOST:PORT")
        bracketed = host.startswith("[") and host.endswith("]")
        if not (_V6.fullmatch(host[1:-1]) if bracketed else _NAME.fullmatch(host)):
            hint = " (an IPv6 address is written in brackets: [::1]:PORT)" if ":" in host else ""
            raise ValueError(f"address: {host!r} of {self.address!r} is not a host{hint}")
        if not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):
            raise ValueError(f"address: {port!r} of {self.address!r} is not a port from 1 to 65535")

    @property
    def path(self) -> str:
        """The path of the unix socket; empty for TCP."""
        path = self.address.removeprefix("unix:")
        return "/" + path.lstrip("/") if path.startswith("/") else ""

    @property
    def _tcp(self) -> str:
        return self.address.removeprefix("tcp://").removeprefix("ipv4:").removeprefix("ipv6:")

    @property
    def host(self) -> str:
        """The host, an IPv6 address without brackets; empty for a unix socket."""
        return "" if self.path else self._tcp.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port; 0 for a unix socket."""
        return 0 if self.path else int(self._tcp.rpartition(":")[2])

    @property
    def secure(self) -> bool:
        """Whether the connection is TLS."""
        return bool(self.tls or self.ca or self.cert or self.key or self.server_name)

    @property
    def expected_name(self) -> str:
        """The name that the service's certificate must have."""
        return self.server_name or self.host

    def __str__(self) -> str:
        """``/path`` or ``HOST:PORT``."""
        return self.path or self._tcp


def address(given: Path | str | Address) -> Address:
    """The :class:`Address` of a path, of one in words, or itself."""
    return given if isinstance(given, Address) else Address(address=str(given))
