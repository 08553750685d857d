"""containerd.services.transfer.v1 of a process that loads what makes transfers for the first of them: some 70 modules,
which a node that only runs containers does not need. Their code is kept until then (services/kit/later.py).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from api.containerd.services.transfer.v1 import transfer_stubs
from services.kit import later

if TYPE_CHECKING:
    from services.images.transfer_server import TransferServicer

SHARED = (
    "api.containerd.services.diff.v1.diff_stubs",
    "api.containerd.services.introspection.v1.introspection_stubs",
    "api.containerd.types.transfer.imagestore_pb2",
    "api.containerd.types.transfer.importexport_pb2",
    "api.containerd.types.transfer.progress_pb2",
    "api.containerd.types.transfer.registry_pb2",
    "services.content.blobs_remote",
    "services.content.remote",
    "services.kit.files",
    "services.kit.holes",
    "services.kit.inflate",
    "services.kit.tar",
    "services.kit.thread_times",
    "services.snapshots.remote",
)
"""What transfers need and other processes too: here it is loaded already, or is now (deploy/inside/copies.py)."""
LATE = ("services/images", "services/oci", "services/snapshots/diff/listings.py", "services/snapshots/diff/media.py")
"""Where the modules are that they need besides."""


def kept() -> later.Code:
    """Keep the code. Called before the process serves."""
    for name in SHARED:
        importlib.import_module(name)
    return later.Code(*LATE)


def transfers(make: Callable[[], TransferServicer]) -> later.Servicer[TransferServicer]:
    """The servicer that ``make`` makes for the first transfer."""
    return later.Servicer(transfer_stubs.TRANSFER, make)
