"""The older way to configure registries, inside containerd's config.toml: ``registry.mirrors`` and ``registry.configs`` of the CRI plugin.

containerd 2.3 drops it, and nodes still have it::

    [plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]
      endpoint = ["https://mirror.internal"]
    [plugins."io.containerd.grpc.v1.cri".registry.configs."mirror.internal".tls]
      ca_file = "/etc/ssl/mirror.crt"
    [plugins."io.containerd.grpc.v1.cri".registry.configs."mirror.internal".auth]
      username = "node"

The endpoints are asked in order, then the namespace itself, unless it is among them. ``mirrors."*"`` is for namespaces without an entry of their own. Where
``config_path`` is set, all of this is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from services.images.registry.credentials import Credentials, from_entry
from services.images.registry.host import TLS, Capability, Host, default_host, is_local
from services.kit import errors

PLUGINS = ("io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images")
DEFAULT_DIRECTORIES = (Path("/etc/containerd/certs.d"), Path("/etc/docker/certs.d"))
"""Where the CRI plugin looks if nothing at all is said."""

_TLS_KEYS = {"ca_file": str, "cert_file": str, "key_file": str, "insecure_skip_verify": bool}
_AUTH_KEYS = {"username": str, "password": str, "auth": str, "identitytoken": str}


@dataclass(frozen=True, slots=True)
class Registries:
    """The registry table of the CRI plugin. ``directories`` is its config_path."""

    directories: tuple[Path, ...] = ()
    mirrors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tls: Mapping[str, TLS] = field(default_factory=dict)
    auth: Mapping[str, Credentials] = field(default_factory=dict)

    @classmethod
    def of(cls, tables: Mapping[str, Any], file: str) -> Self:
        """From the tables of a config.toml; InvalidArgument names ``file`` and key."""
        plugins = tables.get("plugins", {})
        for name in PLUGINS:
            table = _table(_table(plugins, name, f"{file}: plugins"), "registry", f"{file}: {name}")
            if table:
                return cls._parse(table, f"{file}: {name} registry")
        return cls(DEFAULT_DIRECTORIES)

    @classmethod
    def _parse(cls, table: Mapping[str, Any], where: str) -> Self:
        paths = table.get("config_path", "")
        if not isinstance(paths, str):
            raise errors.InvalidArgument(f"{where}.config_path: {paths!r} is not a string")
        if paths:
            return cls(tuple(Path(each) for each in paths.split(":") if each))
        mirrors, tls, auth = {}, {}, {}
        for namespace in _table(table, "mirrors", where):
            mirror = _table(table["mirrors"], namespace, f"{where}.mirrors")
            endpoints = mirror.get("endpoint", [])
            if not isinstance(endpoints, list) or not all(isinstance(each, str) and each for each in endpoints):
                raise errors.InvalidArgument(f'{where}.mirrors."{namespace}".endpoint: {endpoints!r} is not a list of addresses')
            mirrors[namespace] = tuple(endpoints)
        for host in _table(table, "configs", where):
            config, here = _table(table["configs"], host, f"{where}.configs"), f'{where}.configs."{host}"'
            if given := _checked(_table(config, "tls", here), _TLS_KEYS, f"{here}.tls"):
                pair = (given.get("cert_file", ""), given.get("key_file", ""))
                tls[host] = TLS((given["ca_file"],) if given.get("ca_file") else (), (pair,) if pair[0] else (), given.get("insecure_skip_verify"))
            if given := _checked(_table(config, "auth", here), _AUTH_KEYS, f"{here}.auth"):
                try:
                    auth[host] = from_entry(given)
                except ValueError as error:
                    raise errors.InvalidArgument(f"{here}.auth: {error}") from None
        return cls((), mirrors, tls, auth) if mirrors or tls or auth else cls(DEFAULT_DIRECTORIES)

    def hosts(self, namespace: str) -> tuple[Host, ...]:
        """The hosts of ``namespace``: its mirrors, then itself."""
        endpoints = [_with_scheme(each) for each in self.mirrors.get(namespace, self.mirrors.get("*", ()))]
        if all(urlsplit(each).netloc != namespace for each in endpoints):
            endpoints.append(_with_scheme(default_host(namespace)))
        return tuple(self._host(each, namespace) for each in endpoints)

    def _host(self, endpoint: str, namespace: str) -> Host:
        parts = urlsplit(endpoint)
        if not parts.netloc or parts.scheme not in ("http", "https"):
            raise errors.InvalidArgument(f'registry.mirrors."{namespace}".endpoint: "{endpoint}" is not an address')
        return Host(parts.scheme, parts.netloc, parts.path.rstrip("/") or "/v2", Capability.PULL | Capability.RESOLVE | Capability.REFERRERS,
                    self.tls.get(parts.netloc, TLS()))

    async def credentials(self, host: str) -> Credentials | None:
        """What ``configs."HOST".auth`` has for a host, as a source of credentials."""
        return self.auth.get(host)


def _with_scheme(endpoint: str) -> str:
    return endpoint if "://" in endpoint else f"{'http' if is_local(endpoint.partition('/')[0]) else 'https'}://{endpoint}"


def _table(table: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    found = table.get(key, {})
    if not isinstance(found, Mapping):
        raise errors.InvalidArgument(f"{where}.{key} is not a table")
    return found


def _checked(table: Mapping[str, Any], kinds: Mapping[str, type], where: str) -> dict[str, Any]:
    for key, value in table.items():
        if key in kinds and not isinstance(value, kinds[key]):
            raise errors.InvalidArgument(f"{where}.{key}: {value!r} is not {'true or false' if kinds[key] is bool else 'a string'}")
    return {key: value for key, value in table.items() if key in kinds}
