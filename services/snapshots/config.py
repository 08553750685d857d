"""Settings of the snapshots service: table [snapshots], with a table for each snapshotter that has settings of its
own.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from services.kit.settings import Seconds
from services.snapshots.snapshotters import SNAPSHOTTERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """The snapshots service: filesystems made of layers, and their diffs."""

    sync_commit: bool = True
    """A commit waits until the snapshot's files are on the disk, so that a pulled image survives a power cut. false: a
    pull waits for no file, as in containerd; after a power cut files of layers may be empty, and nothing notices.
    """
    sync_remove: bool = False
    """A removal returns when the files are gone, not already when the snapshot is."""
    grace: Seconds = 5.0
    """Time for which calls may go on after the service was told to stop."""


Config: type[Common] = dataclasses.make_dataclass(
    "Config",
    [
        (each.NAME, each.Settings, dataclasses.field(default_factory=each.Settings))
        for each in SNAPSHOTTERS
        if dataclasses.fields(each.Settings)
    ],
    bases=(Common,),
    namespace={"__module__": __name__, "__doc__": Common.__doc__},
    frozen=True,
    slots=True,
    kw_only=True,
)
"""With a field for each snapshotter that has settings, by its name."""
