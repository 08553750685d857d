"""A host that serves a namespace, as configured: its address, its capabilities, how to connect."""

from __future__ import annotations

import enum
import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit


class Capability(enum.Flag):
    """A permission of a host. A public mirror may PULL by digest, but not say what a tag means (RESOLVE)."""

    PULL = enum.auto()
    RESOLVE = enum.auto()
    PUSH = enum.auto()
    REFERRERS = enum.auto()


EVERYTHING = Capability.PULL | Capability.RESOLVE | Capability.PUSH | Capability.REFERRERS


@dataclass(frozen=True, slots=True)
class TLS:
    """Certificate files: authorities that are trusted besides the system's, and our (certificate, key) pairs; the key
    is "" if it is in the same file.
    """

    ca: tuple[str, ...] = ()
    client: tuple[tuple[str, str], ...] = ()
    skip_verify: bool | None = None
    alone: bool = False
    """Only ``ca`` is trusted, and not the system's authorities."""

    @property
    def explicit(self) -> bool:
        """Whether anything is configured; an http host is then tried with TLS first."""
        return bool(self.ca or self.client or self.skip_verify is not None)


@dataclass(frozen=True, slots=True)
class Host:
    """``scheme://host`` + ``path`` is the root of its API. ``fallback``: https is tried first, and plain http if the
    other side speaks that. ``traceparent``: it gets the trace context of each request (W3C).
    """

    scheme: str = ""
    host: str = ""
    path: str = ""
    capabilities: Capability = EVERYTHING
    tls: TLS = TLS()
    header: tuple[tuple[str, str], ...] = ()
    dial_timeout: float | None = None
    fallback: bool = False
    traceparent: bool = False

    @property
    def key(self) -> str:
        """The key in :mod:`.host_memory`."""
        return f"{self.scheme}://{public(self.host)}"

    def is_proxy_for(self, namespace: str) -> bool:
        """Whether it serves more than ``namespace``, and must be told which one is meant (``?ns=``)."""
        return self.host not in (namespace, default_host(namespace))


def default_host(namespace: str) -> str:
    """The host of a namespace: its own name, except for docker.io."""
    return "registry-1.docker.io" if namespace == "docker.io" else namespace


def name_and_port(host: str) -> tuple[str, str]:
    """The name and the port of ``host``; the port is "" if there is none; brackets are removed."""
    if host.startswith("["):
        name, _, rest = host[1:].partition("]")
        return name, rest.removeprefix(":")
    if host.count(":") == 1:
        name, _, port = host.partition(":")
        return name, port
    return host, ""


def public(host: str) -> str:
    """The host of a URL as everybody may see it: without a user's name and secret before it."""
    return host.rpartition("@")[2]


def shown(address: str) -> str:
    """An address from outside for a message, whether or not it is one: short, and without what may be a secret."""
    scheme, mark, rest = address.partition("?")[0].rpartition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{mark}{public(host)}{slash}{path}"[:200]


def is_local(host: str) -> bool:
    """Whether ``host``, with or without a port, is this machine's loopback."""
    name, _ = name_and_port(host)
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def same_host(one: str, other: str) -> bool:
    """Whether the second URL's host may know what the first one's may: it is the same, or the same with TLS instead of
    none.
    """
    (scheme, name, port), there = origin(one), origin(other)
    return (scheme, name, port) == there or (
        scheme == "http" and there in (("https", name, port), ("https", name, 443 if port == 80 else port))
    )


def is_address(url: str) -> bool:
    """Whether a URL from outside is usable: http or https, with a host, and with a valid port if any."""
    try:
        scheme, name, _ = origin(url)
    except ValueError:
        return False
    return scheme in ("http", "https") and bool(name)


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, name and port of a URL: two URLs with equal ones have the same host."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
