"""One host that serves a namespace, as configured: where it is, what it may be asked for, how to connect."""

from __future__ import annotations

import enum
import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit


class Capability(enum.Flag):
    """What a host is trusted with. A public mirror may PULL by digest, but not say what a tag means (RESOLVE)."""

    PULL = enum.auto()
    RESOLVE = enum.auto()
    PUSH = enum.auto()
    REFERRERS = enum.auto()


EVERYTHING = Capability.PULL | Capability.RESOLVE | Capability.PUSH | Capability.REFERRERS


@dataclass(frozen=True, slots=True)
class TLS:
    """Files of certificates: authorities trusted beside the system's, and (certificate, key) pairs to show, ""
    where the key is in the same file.
    """

    ca: tuple[str, ...] = ()
    client: tuple[tuple[str, str], ...] = ()
    skip_verify: bool | None = None

    @property
    def explicit(self) -> bool:
        """Whether anything is configured; an http host is then tried with TLS first."""
        return bool(self.ca or self.client or self.skip_verify is not None)


@dataclass(frozen=True, slots=True)
class Host:
    """``scheme://host`` + ``path`` is the root of its API. ``fallback``: https is tried, and plain http where the
    other side turns out to speak that.
    """

    scheme: str = ""
    host: str = ""
    path: str = ""
    capabilities: Capability = EVERYTHING
    tls: TLS = TLS()
    header: tuple[tuple[str, str], ...] = ()
    dial_timeout: float | None = None
    fallback: bool = False

    @property
    def key(self) -> str:
        """What it is remembered by (:mod:`.host_memory`)."""
        return f"{self.scheme}://{self.host}"

    def is_proxy_for(self, namespace: str) -> bool:
        """Whether it serves more than ``namespace``, and must be told which is meant (``?ns=``)."""
        return self.host not in (namespace, default_host(namespace))


def default_host(namespace: str) -> str:
    """The machine behind a namespace: its own name, but for docker.io."""
    return "registry-1.docker.io" if namespace == "docker.io" else namespace


def name_and_port(host: str) -> tuple[str, str]:
    """``host`` without and with its port; the port is "" if there is none, and brackets are off."""
    if host.startswith("["):
        name, _, rest = host[1:].partition("]")
        return name, rest.removeprefix(":")
    if host.count(":") == 1:
        name, _, port = host.partition(":")
        return name, port
    return host, ""


def is_local(host: str) -> bool:
    """Whether ``host``, with or without a port, is this machine's loopback."""
    name, _ = name_and_port(host)
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def same_host(one: str, other: str) -> bool:
    """Whether what the first URL's host may know, the second's may: it is the same, or the same with TLS where
    there was none.
    """
    (scheme, name, port), there = origin(one), origin(other)
    return (scheme, name, port) == there or (
        scheme == "http" and there in (("https", name, port), ("https", name, 443 if port == 80 else port))
    )


def is_address(url: str) -> bool:
    """Whether a URL that came from outside can be asked: http or https, with a host, and with a port only if it is
    one.
    """
    try:
        scheme, name, _ = origin(url)
    except ValueError:
        return False
    return scheme in ("http", "https") and bool(name)


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, name and port of a URL: what must be equal for two URLs to be the same host."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
