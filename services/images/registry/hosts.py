"""The hosts that serve a namespace, in the order in which they are asked.

The first source that says anything decides. It is the directory of the namespace below one of ``directories``
(containerd's ``certs.d``: ``NAME_PORT_``, ``NAME:PORT``, ``_default``), read anew each time, so that a change needs no
restart; else the older ``registry.mirrors`` of the CRI plugin (:mod:`.cri_config`); else the namespace is its own host.

If nothing says http or https, it is https, except for this machine itself on a port other than 443. There https is
tried first, without verification, and plain http if the other side speaks that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from services.images.registry.cri_config import Registries, paths
from services.images.registry.host import EVERYTHING, TLS, Host, default_host, is_local, name_and_port
from services.images.registry.hosts_toml import read_directory
from services.kit import errors


@dataclass(frozen=True, slots=True)
class Hosts:
    """The places where hosts are configured."""

    directories: tuple[Path, ...] = ()
    registries: Registries | None = None
    traceparent: frozenset[str] = frozenset()
    """Hosts that get trace context, beside those of which hosts.toml says so; "*": all."""

    @classmethod
    def of_config(
        cls,
        tables: Mapping[str, Any],
        file: str = "config.toml",
        config_path: str = "",
        traceparent: Iterable[str] = (),
    ) -> Self:
        """The directories of ``config_path``, which colons separate; else those of the CRI plugin's table in a
        config.toml; without such a table, the plugin's default directories.
        """
        traced = frozenset(traceparent)
        if config_path:
            return cls(paths(config_path), traceparent=traced)
        found = Registries.of(tables, file)
        return cls(found.directories, None if found.directories else found, traced)

    def of(self, namespace: str, default_scheme: str = "") -> tuple[Host, ...]:
        """The hosts of ``namespace`` (``docker.io``, ``127.0.0.1:5000``). ``default_scheme`` "http" is what
        --plain-http asks for.
        """
        found = self._of(namespace, default_scheme)
        return tuple(replace(host, traceparent=True) if self.traceparent & {host.host, "*"} else host for host in found)

    def _of(self, namespace: str, default_scheme: str) -> tuple[Host, ...]:
        directory = self._directory(namespace)
        if directory is not None:
            found = read_directory(directory)
        elif self.registries is not None and not default_scheme:
            return tuple(_with_fallback(host) for host in self.registries.hosts(namespace))
        else:
            found = (Host(),)
        return tuple(_with_fallback(host if host.host else _default(host, namespace, default_scheme)) for host in found)

    def _directory(self, namespace: str) -> Path | None:
        name, colon, port = namespace.rpartition(":")
        names = ([f"{name}_{port}_"] if colon and name else []) + [namespace, "_default"]
        for directory in self.directories:
            for candidate in names:
                try:
                    (directory / candidate).stat()
                except (FileNotFoundError, NotADirectoryError):
                    continue
                except OSError as error:
                    raise errors.FailedPrecondition(f"{directory / candidate}: {error.strerror}") from None
                return directory / candidate
        return None


def _default(host: Host, namespace: str, default_scheme: str) -> Host:
    """The namespace as its own host, with the certificates and headers of ``host``."""
    scheme, tls = default_scheme or "https", host.tls
    if namespace == "docker.io":
        scheme = "https"
    elif is_local(namespace) and not default_scheme:
        port = name_and_port(namespace)[1]
        scheme = "https" if port in ("", "443") else "http"
        if port != "80":
            tls = TLS(tls.ca, tls.client, skip_verify=True)
    return replace(host, scheme=scheme, host=default_host(namespace), path="/v2", capabilities=EVERYTHING, tls=tls)


def _with_fallback(host: Host) -> Host:
    """An http host with TLS settings is tried with TLS first, unless its port is http's own."""
    if host.scheme == "http" and host.tls.explicit and name_and_port(host.host)[1] != "80":
        return replace(host, scheme="https", fallback=True)
    return host
