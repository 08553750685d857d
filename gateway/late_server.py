"""What taps, faults and shadows need is loaded for the first of them, and most nodes never have one. Its code is kept
until then (services/kit/later.py).
"""

from __future__ import annotations

import importlib
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from api.splitd.shadows.v1 import shadows_stubs
from api.splitd.taps.v1 import taps_stubs
from gateway.routes import Routes
from services.kit import later

if TYPE_CHECKING:
    from gateway.shadows_server import ShadowsServicer
    from gateway.taps_server import TapsServicer

SHARED = (
    "api.containerd.services.containers.v1.containers_stubs",
    "api.containerd.services.diff.v1.diff_stubs",
    "api.containerd.services.namespaces.v1.namespaces_stubs",
    "api.containerd.services.streaming.v1.streaming_stubs",
    "api.containerd.services.transfer.v1.transfer_stubs",
    "api.containerd.types.transfer.imagestore_pb2",
    "api.containerd.types.transfer.importexport_pb2",
    "api.containerd.types.transfer.progress_pb2",
    "api.containerd.types.transfer.registry_pb2",
    "api.splitd.removals.v1.removals_stubs",
    "api.splitd.stamp.v1.stamp_stubs",
)
"""What they need and other processes too: here it is loaded already, or is now (deploy/inside/copies.py)."""
LATE = (
    *(f"gateway/{name}.py" for name in ("taps_server", "taps", "faults", "choices", "shown_messages")),
    *(f"gateway/{name}.py" for name in ("shadows_server", "shadows")),
    *(f"services/shadows/{name}.py" for name in ("__init__", "convert", "methods_convert", "store")),
)
"""Where the modules are that they need besides."""


def kept() -> later.Code:
    """Keep the code. Called before the process serves."""
    for name in SHARED:
        importlib.import_module(name)
    return later.Code(*LATE)


def taps(routes: Routes, stack: AsyncExitStack) -> later.Servicer[TapsServicer]:
    """The servicer of taps and faults, which end with ``stack``."""

    def make() -> TapsServicer:
        from gateway.taps_server import TapsServicer

        made = TapsServicer(routes)
        stack.callback(made.faults.close)
        return made

    return later.Servicer(taps_stubs.TAPS, make)


def shadows(routes: Routes, root: Path, state: Path, stack: AsyncExitStack) -> later.Servicer[ShadowsServicer]:
    """The servicer of shadows, which end with ``stack``."""

    def make() -> ShadowsServicer:
        from gateway.shadows_server import ShadowsServicer

        made = ShadowsServicer(routes, root, state)
        stack.push_async_callback(made.close)
        return made

    return later.Servicer(shadows_stubs.SHADOWS, make)
