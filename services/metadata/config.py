"""Settings of the metadata service: table [metadata]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The metadata service: records of namespaces, containers, leases, images, content and snapshots."""

    content_sharing_policy: Literal["shared", "isolated"] = "shared"
    """"shared": content that another namespace has needs no bytes; "isolated": who wants it must bring them. As in containerd's bolt plugin."""
