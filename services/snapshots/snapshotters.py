"""The snapshotters of the snapshots service. A new one takes a file beside this one, a line here, and a test of three
lines (tests/service/snapshots/test_snapshotters.py).
"""

from __future__ import annotations

from services.snapshots.btrfs import BtrfsSnapshotter
from services.snapshots.erofs.snapshotter import ErofsSnapshotter
from services.snapshots.local import LocalSnapshotter
from services.snapshots.native import NativeSnapshotter
from services.snapshots.overlay import OverlaySnapshotter

SNAPSHOTTERS: tuple[type[LocalSnapshotter], ...] = (
    OverlaySnapshotter,
    NativeSnapshotter,
    BtrfsSnapshotter,
    ErofsSnapshotter,
)
"""In the order in which clients list them."""
