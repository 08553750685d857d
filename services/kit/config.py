"""Settings of what every process has: table [grpc]. containerd's other keys of it mean nothing here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from services.kit import settings
from services.kit.wire.limits import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """How the node's processes speak gRPC, to clients and to each other."""

    transport: Literal["wire", "grpcio"] = "wire"
    """Our own HTTP/2, or Google's library; the environment's SPLITD_GRPC_TRANSPORT is stronger. Both speak the same protocol."""
    limits: Limits = field(default_factory=Limits)


def load(file: settings.File) -> Config:
    """Our keys of [grpc]."""
    table = file.tables.get("grpc", {})
    if not isinstance(table, dict):
        return settings.load(Config, file, "grpc")
    ours = {key: table.get(key) for key in ("transport", "limits") if table.get(key) is not None}
    return settings.load(Config, settings.File(file.path, {"grpc": ours}), "grpc")
