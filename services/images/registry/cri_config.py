"""The older configuration of registries, inside containerd's config.toml: ``registry.mirrors`` and ``registry.configs``
of the CRI plugin.

containerd 2.3 drops it, and nodes still have it::

    [plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]
      endpoint = ["https://mirror.internal"]
    [plugins."io.containerd.grpc.v1.cri".registry.configs."mirror.internal".tls]
      ca_file = "/etc/ssl/mirror.crt"
    [plugins."io.containerd.grpc.v1.cri".registry.configs."mirror.internal".auth]
      username = "node"

The endpoints are asked in order, then the namespace itself, unless it is among them. ``mirrors."*"`` is for namespaces
without an entry of their own. If ``config_path`` is set, all of this is ignored. From version 3 of the file on, the
table is [plugins."io.containerd.cri.v1.images".registry], and the older one is ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from services.images.registry.credentials import Credentials, from_entry
from services.images.registry.host import TLS, Capability, Host, default_host, is_local
from services.kit import errors

CURRENT, OLDER = "io.containerd.cri.v1.images", "io.containerd.grpc.v1.cri"
"""The CRI plugin's names: from version 3 of the configuration file on, and before."""
DEFAULT_DIRECTORIES = (Path("/etc/containerd/certs.d"), Path("/etc/docker/certs.d"))
"""The directories that the CRI plugin uses if nothing is configured."""

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
        plugins = _table(tables, "plugins", file)
        name, _ = plugin_of(tables)
        if not name:
            return cls(DEFAULT_DIRECTORIES)
        return cls._parse(
            _table(_table(plugins, name, f"{file}: plugins"), "registry", f"{file}: {name}"), f"{file}: {name} registry"
        )

    @classmethod
    def _parse(cls, table: Mapping[str, Any], where: str) -> Self:
        config_path = table.get("config_path", "")
        if not isinstance(config_path, str):
            raise errors.InvalidArgument(f"{where}.config_path: {config_path!r} is not a string")
        if config_path:
            return cls(paths(config_path))
        mirrors, tls, auth = {}, {}, {}
        for namespace in _table(table, "mirrors", where):
            mirror = _table(table["mirrors"], namespace, f"{where}.mirrors")
            endpoints = mirror.get("endpoint", [])
            if not isinstance(endpoints, list) or not all(isinstance(each, str) and each for each in endpoints):
                raise errors.InvalidArgument(
                    f'{where}.mirrors."{namespace}".endpoint: {endpoints!r} is not a list of addresses'
                )
            mirrors[namespace] = tuple(endpoints)
        for host in _table(table, "configs", where):
            config, here = _table(table["configs"], host, f"{where}.configs"), f'{where}.configs."{host}"'
            if given := _checked(_table(config, "tls", here), _TLS_KEYS, f"{here}.tls"):
                pair = (given.get("cert_file", ""), given.get("key_file", ""))
                tls[host] = TLS(
                    (given["ca_file"],) if given.get("ca_file") else (),
                    (pair,) if pair[0] else (),
                    given.get("insecure_skip_verify"),
                )
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
        return Host(
            parts.scheme,
            parts.netloc,
            parts.path.rstrip("/") or "/v2",
            Capability.PULL | Capability.RESOLVE | Capability.REFERRERS,
            self.tls.get(parts.netloc, TLS()),
        )

    async def credentials(self, host: str) -> Credentials | None:
        """The credentials in ``configs."HOST".auth``; a source of credentials."""
        return self.auth.get(host)


def paths(config_path: str) -> tuple[Path, ...]:
    """The directories of a config_path, which colons separate."""
    return tuple(Path(each) for each in config_path.split(":") if each)


def plugin_of(tables: Mapping[str, Any]) -> tuple[str, str]:
    """The name under which the CRI plugin has a registry table that counts, and the name of one that does not count; ""
    for neither.

    containerd knows by the file's version which of the two is meant. In a file without a version, the one that exists.
    """
    plugins = tables.get("plugins", {})
    there = [
        name
        for name in (CURRENT, OLDER)
        if isinstance(plugins, Mapping)
        and name in plugins
        and isinstance(plugins[name], Mapping)
        and plugins[name].get("registry")
    ]
    match tables.get("version"):
        case 2:
            counts = [name for name in there if name == OLDER]
        case int():
            counts = [name for name in there if name == CURRENT]
        case _:
            counts = there
    chosen = counts[0] if counts else ""
    return chosen, next((name for name in there if name != chosen), "")


def unused(tables: Mapping[str, Any]) -> Iterator[str]:
    """The parts of the CRI plugin's tables that have no effect, each with its table. ``tables`` are as for
    :meth:`Registries.of`.
    """
    name, other = plugin_of(tables)
    if other:
        said = f"version = {tables['version']}" if "version" in tables else f'[plugins."{name}".registry]'
        yield f'[plugins."{other}".registry] has no effect beside {said}'
    if not name:
        return
    table, where = tables["plugins"][name], f'[plugins."{name}".registry'
    if len(table) > 1:
        yield f'[plugins."{name}"] is containerd\'s, and nothing but its registry table means anything here'
    registry = table["registry"]
    for key in filter(registry.get, registry):
        if key not in ("config_path", "mirrors", "configs"):
            yield f"{where}] {key} is containerd's and means nothing here"
        elif key != "config_path" and registry.get("config_path"):
            yield f"{where}] {key} has no effect beside config_path"
    if registry.get("config_path"):
        return
    for namespace, mirror in registry.get("mirrors", {}).items():
        yield from (f'{where}.mirrors."{namespace}"] {key} is not known' for key in mirror if key != "endpoint")
    for host, config in registry.get("configs", {}).items():
        here = f'{where}.configs."{host}"'
        yield from (f"{here}] {key} is not known" for key in config if key not in ("tls", "auth"))
        yield from (f"{here}.tls] {key} is not known" for key in config.get("tls", {}) if key not in _TLS_KEYS)
        if "auth" in config:
            yield (
                f"{here}.auth] has no effect: clients that pull bring their own credentials, and the kubelet's pulls "
                "(CRI) are not served yet"
            )


def _with_scheme(endpoint: str) -> str:
    return (
        endpoint if "://" in endpoint else f"{'http' if is_local(endpoint.partition('/')[0]) else 'https'}://{endpoint}"
    )


def _table(table: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    found = table.get(key, {})
    if not isinstance(found, Mapping):
        raise errors.InvalidArgument(f"{where}.{key} is not a table")
    return found


def _checked(table: Mapping[str, Any], kinds: Mapping[str, type], where: str) -> dict[str, Any]:
    for key, value in table.items():
        if key in kinds and not isinstance(value, kinds[key]):
            raise errors.InvalidArgument(
                f"{where}.{key}: {value!r} is not {'true or false' if kinds[key] is bool else 'a string'}"
            )
    return {key: value for key, value in table.items() if key in kinds}
