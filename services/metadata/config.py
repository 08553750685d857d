"""Settings of the metadata service: table [metadata]."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from services.etcd.config import EtcdConfig
from services.kit import errors, settings
from services.kit.settings import Seconds
from services.metadata.gc import config as gc
from services.metadata.store import snapshots_backend

_BOLT = "io.containerd.metadata.v1.bolt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The metadata service: records of namespaces, containers, sandboxes, leases, images, content and snapshots, and
    their garbage collection.
    """

    content_sharing_policy: Literal["shared", "isolated"] = "shared"
    """"shared": content that another namespace has needs no bytes; "isolated": each namespace must bring the bytes
    itself. Also read from [plugins."io.containerd.metadata.v1.bolt"].
    """
    store: Literal["sqlite", "etcd"] = "sqlite"
    """Where the records are: "sqlite": in ROOT/metadata; "etcd": in the cluster of [metadata.etcd], so that they
    outlive this node's disk.
    """
    stale_reads: Seconds = 600.0
    """How long reads are answered while etcd is away. Writes wait for it once, for the timeout of [metadata.etcd], and
    then fail at once."""
    etcd: EtcdConfig = field(default_factory=EtcdConfig)
    """The cluster of store = "etcd"."""
    gc: gc.Config = field(default_factory=gc.Config)
    """The collector's own table, [metadata.gc]."""

    def __post_init__(self) -> None:
        if self.store == "etcd" and not self.etcd.endpoints:
            raise ValueError('store: "etcd" needs [metadata.etcd] endpoints = ["HOST:PORT", ...]')


def load(file: settings.File) -> Config:
    """The settings in ``file``: containerd's keys, overridden by ours."""
    plugins = file.tables.get("plugins", {})
    bolt: Any = plugins.get(_BOLT, {}) if isinstance(plugins, dict) else {}
    ours = settings.load(Config, file, "metadata")
    policy: Any = bolt.get("content_sharing_policy", "shared") if isinstance(bolt, dict) else "shared"
    if policy not in ("shared", "isolated"):
        raise errors.InvalidArgument(
            f"config file {file.path}: [plugins.\"{_BOLT}\"] content_sharing_policy: {policy!r} is none of 'shared', "
            "'isolated'"
        )
    if "content_sharing_policy" not in file.tables.get("metadata", {}):
        ours = replace(ours, content_sharing_policy=policy)
    return replace(ours, gc=gc.load(file))


def records_prefix(config: Config) -> str:
    """What the keys of the records begin with, in etcd."""
    return f"{config.etcd.prefix.rstrip('/')}/metadata"


def foreign(file: settings.File) -> frozenset[str]:
    """The backends that are third parties' services, by [proxy_plugins]. The gateway validates the entries."""
    plugins = file.tables.get("proxy_plugins", {})
    types = (
        {name: entry.get("type") for name, entry in plugins.items() if isinstance(entry, dict)}
        if isinstance(plugins, dict)
        else {}
    )
    return frozenset(
        snapshots_backend(name) if kind == "snapshot" else "content"
        for name, kind in types.items()
        if kind in ("snapshot", "content")
    )
