"""The HTTP proxy of the environment: HTTP_PROXY, HTTPS_PROXY and NO_PROXY, in either case, with containerd's rules.

aiohttp itself would also read ~/.netrc, although its credentials are not wanted. This machine's loopback is never
reached through a proxy.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from urllib.parse import urlsplit

from services.images.registry.host import is_local


def proxy_for(url: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """The proxy's URL for ``url``, or None for a direct connection."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    proxy = environment.get(f"{parts.scheme}_proxy") or environment.get(f"{parts.scheme.upper()}_PROXY")
    if (
        not proxy
        or is_local(host)
        or _direct(host, parts.port, environment.get("no_proxy") or environment.get("NO_PROXY") or "")
    ):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _direct(host: str, port: int | None, rules: str) -> bool:
    """Whether NO_PROXY covers a host. Its entries are ``*``, a name (with everything below it), ``.name`` (only below
    it), an address, or a network; each with or without a port.
    """
    for rule in (each.strip().lower() for each in rules.split(",")):
        if not rule:
            continue
        if rule == "*":
            return True
        try:
            if ipaddress.ip_address(host) in ipaddress.ip_network(rule, strict=False):
                return True
        except ValueError:
            pass
        name, colon, number = rule.rpartition(":")
        if colon and number.isdigit() and rule.count(":") == 1:
            if port is None or int(number) != port:
                continue
            rule = name  # noqa: PLW2901
        rule = rule.removeprefix("*")  # noqa: PLW2901
        if host.lower() == rule or host.lower().endswith(rule if rule.startswith(".") else f".{rule}"):
            return True
    return False
