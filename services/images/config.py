"""Settings of the images service: table [images], and the keys of containerd's plugins that mean the same. Ours
override theirs.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from services.images import verifier_config
from services.images.concurrency import budget
from services.images.documents.limits import LAYERS
from services.images.registry.limits import BLOB_LIMIT
from services.images.registry_timeouts import Retry, Timeouts
from services.kit import settings
from services.kit.settings import Seconds
from services.oci import platforms
from services.oci.platforms import Platform

TRANSFER = "io.containerd.transfer.v1.local"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpack:
    """A platform, and the snapshotter by which its images may be unpacked."""

    platform: str = ""
    """For example linux/amd64."""
    snapshotter: str = ""

    def __post_init__(self) -> None:
        platforms.parse(self.platform)
        if not self.snapshotter:
            raise ValueError(f"snapshotter: none is named for {self.platform}")

    @property
    def parsed(self) -> Platform:
        """The parsed platform."""
        return platforms.parse(self.platform)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The images service. Keys that correspond to keys of containerd's transfer plugin are also read from
    [plugins."io.containerd.transfer.v1.local"].
    """

    hold: Seconds = 5.0
    """Seconds that a call waits for the metadata service while that is away, at most until the call's deadline."""

    connections: int = budget.CONNECTIONS
    """Connections to registries that all pulls and pushes together may have at once."""

    downloads: int = budget.LAYERS
    """Layers that all pulls together may fetch at once. containerd's max_concurrent_downloads, where 0 means as many as
    there are connections.
    """

    uploads: int = budget.UPLOADS
    """Layers that all pushes together may send at once. containerd's max_concurrent_uploaded_layers; 0 means the
    same.
    """

    streams: int = budget.STREAMS
    """Parts of one large layer that are fetched at once, if the registry serves parts. 1: each layer comes over one
    connection.
    """

    unpacks: int = budget.WORKERS
    """Layers that may be unpacked at once. containerd's max_concurrent_unpacks, where 0 means this setting's
    default.
    """

    layers: int = LAYERS
    """Layers that a pulled or imported image may have. Clients that pull by themselves are not limited."""

    largest: int = BLOB_LIMIT
    """Bytes that a pulled blob may have."""

    config_path: str = ""
    """Directories (several are separated by colons) with HOST/hosts.toml files, for requests that name none. "": those
    in the CRI plugin's table, or else /etc/containerd/certs.d and /etc/docker/certs.d.
    """

    traceparent: tuple[str, ...] = ()
    """Registries, as HOST or HOST:PORT, that get the trace context of each request (W3C's ``traceparent``), so that
    their traces continue ours. "*": all. hosts.toml says it for one host: ``traceparent = true``.
    """

    unpack_config: tuple[Unpack, ...] = ()
    """The unpackings that clients may ask for, each as {platform, snapshotter}. A client that names no snapshotter gets
    overlayfs if it is listed for the platform, else the first one listed. Empty: any that runs on this machine.
    """

    verifier: verifier_config.Config = field(default_factory=verifier_config.Config)

    timeouts: Timeouts = field(default_factory=Timeouts)

    retry: Retry = field(default_factory=Retry)

    def __post_init__(self) -> None:
        for key in ("connections", "downloads", "uploads", "streams", "unpacks", "layers", "largest"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}: {getattr(self, key)} is less than one")
        for host in self.traceparent:
            if not re.fullmatch(r"\*|[A-Za-z0-9._-]+(:[0-9]+)?|\[[0-9A-Fa-f:.]+\](:[0-9]+)?", host):
                raise ValueError(f'traceparent: "{host}" is not a host, such as registry.internal:5000')


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unpack(Unpack):
    """An entry of containerd's unpack_config."""

    differ: str = ""
    config_type: str = ""
    layer_types: tuple[str, ...] = ()
    optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Transfer:
    """The keys of containerd's transfer plugin that are read."""

    max_concurrent_downloads: int = 0
    max_concurrent_uploaded_layers: int = 0
    max_concurrent_unpacks: int = 0
    config_path: str = ""
    unpack_config: tuple[_Unpack, ...] = ()


_CONTAINERD_KEYS = {
    "downloads": "max_concurrent_downloads",
    "uploads": "max_concurrent_uploaded_layers",
    "unpacks": "max_concurrent_unpacks",
    "config_path": "config_path",
    "unpack_config": "unpack_config",
}
"""From our keys to the transfer plugin's."""


def load(file: settings.File) -> Config:
    """The settings in ``file``: containerd's keys, overridden by ours."""
    ours = settings.load(Config, file, "images")
    theirs, said = settings.load_plugin(_Transfer, file, TRANSFER)
    verifier, _ = settings.load_plugin(verifier_config.Config, file, verifier_config.PLUGIN)
    found: dict[str, Any] = {
        "downloads": theirs.max_concurrent_downloads if theirs.max_concurrent_downloads > 0 else ours.connections,
        "uploads": theirs.max_concurrent_uploaded_layers
        if theirs.max_concurrent_uploaded_layers > 0
        else ours.connections,
        "unpacks": theirs.max_concurrent_unpacks if theirs.max_concurrent_unpacks > 0 else ours.unpacks,
        "config_path": theirs.config_path,
        "unpack_config": tuple(
            Unpack(platform=each.platform, snapshotter=each.snapshotter) for each in theirs.unpack_config
        ),
    }
    own = _own_keys(file)
    taken = {key: found[key] for key, name in _CONTAINERD_KEYS.items() if name in said and key not in own}
    verifier = dataclasses.replace(verifier, **{key: getattr(ours.verifier, key) for key in own.get("verifier", {})})
    return dataclasses.replace(ours, **taken, verifier=verifier)


def check(file: settings.File) -> Iterator[tuple[str, str]]:
    """The problems that ``splitd config check`` finds although :func:`load` accepts the file; see
    :mod:`.registry.config_check`.
    """
    yield from (("warning", f"config file {file.path}: {words}") for words in _unused(file))
    from services.images.registry.config_check import problems

    yield from problems(file, load(file).config_path)


def _unused(file: settings.File) -> Iterator[str]:
    """The settings in tables of containerd's plugins that have no effect: keys that mean nothing here, and those that
    ours override.
    """
    own = _own_keys(file)
    for plugin, keys, table in (
        (TRANSFER, _CONTAINERD_KEYS, "images"),
        (
            verifier_config.PLUGIN,
            {each.name: each.name for each in dataclasses.fields(verifier_config.Config)},
            "images.verifier",
        ),
    ):
        over = own if table == "images" else own.get("verifier", {})
        ours_of = {name: key for key, name in keys.items()}
        for name, value in settings.plugin(file, plugin).items():
            # zeros and empty tables are in every file that `containerd config default` began
            if name not in ours_of and value:
                yield f'[plugins."{plugin}"] {name} is containerd\'s and means nothing here'
            elif name in ours_of and ours_of[name] in over:
                yield f'[plugins."{plugin}"] {name} has no effect: [{table}] {ours_of[name]} is set, and wins'
    for entry in settings.load_plugin(_Transfer, file, TRANSFER)[0].unpack_config if "unpack_config" not in own else ():
        for key in ("differ", "config_type", "layer_types", "optional"):
            if getattr(entry, key):
                yield f'[plugins."{TRANSFER}"] unpack_config: {key} is containerd\'s and means nothing here'


def _own_keys(file: settings.File) -> Mapping[str, Any]:
    """The keys of [images] that the file sets."""
    said: Mapping[str, Any] = file.tables.get("images", {})
    return said
