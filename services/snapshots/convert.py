"""Conversion between snapshots' values and protobuf messages."""

from __future__ import annotations

from typing import cast

from api.containerd.services.snapshots.v1 import snapshots_pb2 as pb
from api.splitd.snapshotters.v1 import snapshotters_pb2
from services.kit.timestamps import time_from_pb, time_to_pb
from services.snapshots.store import About, Info, Kind, Usage


def info_to_pb(info: Info) -> pb.Info:
    return pb.Info(
        name=info.name,
        parent=info.parent,
        kind=cast("pb.Kind", int(info.kind)),
        labels=info.labels,
        created_at=time_to_pb(info.created_at),
        updated_at=time_to_pb(info.updated_at),
    )


def info_from_pb(message: pb.Info) -> Info:
    kind = Kind(message.kind) if message.kind in (1, 2) else Kind.COMMITTED  # as containerd reads it
    return Info(
        message.name,
        kind,
        time_from_pb(message.created_at),
        time_from_pb(message.updated_at),
        message.parent,
        dict(message.labels),
    )


def usage_to_pb(usage: Usage) -> pb.UsageResponse:
    return pb.UsageResponse(size=usage.size, inodes=usage.inodes)


def usage_from_pb(message: pb.UsageResponse) -> Usage:
    return Usage(message.size, message.inodes)


def about_to_pb(about: About) -> snapshotters_pb2.Snapshotter:
    return snapshotters_pb2.Snapshotter(
        name=about.name,
        platforms=about.platforms,
        exports=about.exports,
        capabilities=about.capabilities,
        trouble=about.trouble,
        broken=about.broken,
    )


def about_from_pb(message: snapshotters_pb2.Snapshotter) -> About:
    return About(
        message.name,
        tuple(message.platforms),
        dict(message.exports),
        tuple(message.capabilities),
        message.trouble,
        message.broken,
    )
