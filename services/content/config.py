"""Settings of the content service: table [content]."""

from __future__ import annotations

from dataclasses import dataclass

from services.kit.settings import Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The content service: blobs and ingests on disk."""

    threads: int = 32
    """Reads, writes and commits that may wait for the disk at the same time."""
    grace: Seconds = 5.0
    """Time for which calls may go on after the service was told to stop."""

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ValueError(f"threads: {self.threads} is less than 1")
