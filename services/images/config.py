"""Settings of the images service: table [images]."""

from __future__ import annotations

from dataclasses import dataclass

from services.kit.settings import Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The images service."""

    hold: Seconds = 5.0
    """A call made while the metadata service is away waits this long for it, or until its deadline."""
