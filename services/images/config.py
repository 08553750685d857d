"""Settings of the images service: table [images]."""

from __future__ import annotations

from dataclasses import dataclass

from services.images import budget
from services.kit.settings import Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The images service."""

    hold: Seconds = 5.0
    """A call made while the metadata service is away waits this long for it, or until its deadline."""

    connections: int = budget.CONNECTIONS
    """Connections to registries that all pulls and pushes together have at once."""

    downloads: int = budget.LAYERS
    """Layers that all pulls together fetch at once."""

    uploads: int = budget.UPLOADS
    """Layers that all pushes together send at once."""

    streams: int = budget.STREAMS
    """Parts of one large layer that come at once, where the registry gives parts; 1: every layer comes on one connection."""

    unpacks: int = budget.WORKERS
    """Layers that are unpacked at once."""

    def __post_init__(self) -> None:
        for key in ("connections", "downloads", "uploads", "streams", "unpacks"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}: {getattr(self, key)} is less than one")
