"""The promises of a snapshotter, as tests: the rules of conform/snapshots.py and conform/snapshots_mounted.py. They run
on the local snapshotters, on the served ones, through the gateway, and on containerd itself.

A subclass has a fixture ``snapshotter``; it need not be fresh, since each test uses new keys. The subclass says which
snapshotter it is (``name``), and with ``namespaced`` whether metadata's records are involved: metadata then words some
errors, and files are removed when the collector runs. Snapshots are really mounted, so root is needed.

A third party's snapshotter can pass this suite too. A subclass declares what is optional: ``rebases`` if a commit may
set the parent, ``worded = False`` if its errors have containerd's classes but not its words. Any mounts are accepted;
for overlayfs and native the suite checks them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from conform import snapshots, snapshots_mounted
from conform.rules import WORDS
from conform.snapshots import LATE, REBASE, SnapshotCase
from conform.snapshots_mounted import RENAMES
from conform.trees import chown, delete, directories, files, link, mkdir, mounted, rename, write
from services.snapshots.store import Snapshotter
from tests.suites import rules

__all__ = ["SnapshotterSuite", "chown", "delete", "directories", "files", "link", "mkdir", "mounted", "rename", "write"]


@rules.of(snapshots.RULES, snapshots_mounted.RULES)
class SnapshotterSuite:
    """Subclass it with a fixture ``snapshotter``."""

    name = "overlayfs"
    rebases = False
    """Whether it has the capability ``rebase``."""
    renames = True
    """Whether a directory of a lower layer can be renamed; overlayfs answers EXDEV, upon which programs copy it."""
    worded = True
    """Whether its errors have containerd's words."""
    mountable = True
    """Whether its mounts can be mounted: if it has no files, only the records are tested."""
    namespaced = False
    containerd = False
    """Whether this is containerd itself; it is not tested for promises where we do better."""
    index_first = False
    """containerd 1.6 has the option index=off before the directories, later versions behind them."""

    @pytest.fixture
    def case(self, request: pytest.FixtureRequest, snapshotter: Snapshotter, place: Path) -> SnapshotCase:
        if not self.mountable and hasattr(request.function, "mounts"):
            pytest.skip("it has no files")
        lacks = {
            *(() if self.worded else (WORDS,)),
            *(() if self.worded and not self.containerd else (LATE,)),
            *(() if self.rebases else (REBASE,)),
            *(() if self.renames else (RENAMES,)),
        }
        return SnapshotCase(
            snapshotter=snapshotter,
            place=place,
            name=self.name,
            strict=True,
            lacks=frozenset(lacks),
            namespaced=self.namespaced,
            containerd=self.containerd,
            index_first=self.index_first,
        )
