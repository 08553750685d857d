"""Keeps one copy of each layer, whatever snapshots have it, at any height and in any chain.

::

    layers/DIFFID/data, about      the same files as those of the snapshots' layers: hard links
    layers/DIFFID/INDEX            an index, named by its digest; other snapshots of the layer may begin with it
    layers/DIFFID/INDEX.own        an index that depends on the layers below in other ways than chaining.py's inodes

Layers that leave no directory unnamed have one index. The files are counted by their links: one that has no other name
is removed. A snapshot's files come here once they are durable and the snapshot is recorded, so what is here is whole
after any crash. Where a link is missing after one, the next start makes it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import threading
from collections.abc import Iterable
from pathlib import Path

from services.kit.faults import fault
from services.snapshots.erofs import place
from services.snapshots.erofs.place import ABOUT, CHAINED, DATA, INDEX, LOWEST, STAGED

_OWN = ".own"
_LINK = ".link"
"""The end of the name under which a link waits to take a file's place."""
_DIFF_ID = re.compile("sha256:([0-9a-f]{64})")


class Shelf:
    """The layers below ``directory``, which is made if it does not exist. Methods block; any thread may call them."""

    def __init__(self, directory: Path) -> None:
        self._at = str(directory)
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self._lock = threading.Lock()

    def put(self, layer: str) -> None:
        """Let a committed snapshot's layer be the one that is here, or put it here. Files that were unpacked once more
        go. OSError.
        """
        if all(os.stat(f"{layer}/{name}").st_nlink > 1 for name in (DATA, INDEX)):
            return
        known = place.about(layer, made=False)
        if known is None:
            return
        own = any(place.is_marked(layer, each) for each in (LOWEST, CHAINED))
        with open(f"{layer}/{INDEX}", "rb") as file:
            name = hashlib.file_digest(file, "sha256").hexdigest()
        with self._lock:
            here = self._directory(known.diff_id)
            os.makedirs(here, mode=0o700, exist_ok=True)
            _same(f"{here}/{DATA}", f"{layer}/{DATA}")
            _same(f"{here}/{ABOUT}", f"{layer}/{ABOUT}")
            fault("snapshots.between-links")
            if own and os.path.exists(f"{here}/{name}"):
                own = False
            elif not own and os.path.exists(f"{here}/{name}{_OWN}"):
                os.rename(f"{here}/{name}{_OWN}", f"{here}/{name}")
            _same(f"{here}/{name}{_OWN if own else ''}", f"{layer}/{INDEX}")

    def take(self, diff_id: str, layer: str, *, without: bool = False) -> bool:
        """Put the layer with this diff id into the directory of a new snapshot's; False if it is not here. The index
        may be one for other layers below. False also if others cannot begin with what index there is; or ``without`` an
        index, which is then to be made. OSError.
        """
        if _DIFF_ID.fullmatch(diff_id) is None:
            return False
        here = self._directory(diff_id)
        place.mark(layer, STAGED)  # first: after a crash the files are not taken for those of this snapshot alone
        with self._lock:
            try:
                name = next((each for each in os.listdir(here) if _is_index(each)), None)
                if name is None and not without:
                    place.emptied(layer)
                    return False
                for file, link in ((DATA, DATA), (ABOUT, ABOUT), *([(name, INDEX)] if name else [])):
                    os.link(f"{here}/{file}", f"{layer}/{link}")
            except OSError as error:
                place.emptied(layer)
                if error.errno in (errno.ENOENT, errno.EMLINK):
                    return False
                raise
        if not place.has_its_size(layer):  # it was cut off: it is unpacked again, and takes its place
            place.emptied(layer)
            return False
        return True

    def tidy(self, diff_ids: Iterable[str] | None = None) -> None:
        """Remove the files of these layers that no snapshot has; None: of all. OSError."""
        for diff_id in self._all() if diff_ids is None else diff_ids:
            with self._lock, contextlib.suppress(FileNotFoundError):
                here = self._directory(diff_id)
                left = 0
                with os.scandir(here) as entries:
                    for entry in entries:
                        # not entry.stat(): that is of the time when the directory was read
                        if os.lstat(entry.path).st_nlink == 1:
                            os.unlink(entry.path)
                        else:
                            left += 1
                if not left:
                    os.rmdir(here)

    def _all(self) -> list[str]:
        return [f"sha256:{name}" for name in os.listdir(self._at)]

    def _directory(self, diff_id: str) -> str:
        return f"{self._at}/{diff_id.partition(':')[2]}"


def _is_index(name: str) -> bool:
    return re.fullmatch("[0-9a-f]{64}", name) is not None


def _same(common: str, own: str) -> None:
    """Make two files with the same bytes one: the common one, if it exists and was not cut off."""
    try:
        os.link(own, common)
    except FileExistsError:
        if os.path.samefile(own, common):
            return
        if os.stat(common).st_size != os.stat(own).st_size:
            os.unlink(common)
            os.link(own, common)
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(own + _LINK)
        try:
            os.link(common, own + _LINK)
        except OSError as error:
            if error.errno == errno.EMLINK:  # as many snapshots have it as the file system can count
                return
            raise
        os.rename(own + _LINK, own)
