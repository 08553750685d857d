"""The snapshotter overlayfs: a snapshot holds its changes, and the kernel stacks the layers.

::

    snapshots/ID/fs      the snapshot's changes: an overlay's upper directory, or a lower directory of its descendants
    snapshots/ID/work    the kernel's work directory, beside the upper directory (not in a view)
    snapshots/ID/layer   what layer it is, if one was unpacked (``diff/note.py``)
    notes                an empty file: workers are to write that

A snapshot without a parent, or a view of a single layer, is mounted as a bind: an overlay needs a layer below.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.kit import errors
from services.oci.mounts import Mount
from services.snapshots import disk, kernel, rules
from services.snapshots.diff import note
from services.snapshots.diff.inherit import alike
from services.snapshots.directories import DirectorySnapshotter
from services.snapshots.sharing import is_layer
from services.snapshots.store import (
    GID_MAPPING,
    ONLY_REMAP_IDS,
    REBASE,
    REMAP_IDS,
    UID_MAPPING,
    UPPERDIR,
    Info,
    Kind,
    Usage,
)
from services.snapshots.tree import Layer, Row, Rows

log = logging.getLogger(__name__)

_NO_ID = 2**32 - 1
_AGAIN = 10.0
"""Seconds after which overlayfs is tried again on a kernel that could not mount it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlayfs:
    """The snapshotter overlayfs; the keys are containerd's."""

    mount_options: tuple[str, ...] = ()
    """Options added to each overlay, not to binds. ``index`` and ``userxattr`` are added if the kernel needs them and
    they are not set here.
    """
    upperdir_label: bool = False
    """Show each snapshot's directory in its label containerd.io/snapshot/overlay.upperdir."""


class OverlaySnapshotter(DirectorySnapshotter):
    """A ``Snapshotter`` of overlays below ``root``."""

    NAME = "overlayfs"
    LASTING = True
    SHARES = True
    Settings = Overlayfs

    def __init__(
        self,
        root: Path,
        settings: Overlayfs | None = None,
        *,
        sync_commit: bool = True,
        sync_remove: bool = False,
        ask_again: float = _AGAIN,
    ) -> None:
        """``ask_again``: seconds after which a kernel that could not mount an overlay is asked again."""
        super().__init__(root, settings, sync_commit=sync_commit, sync_remove=sync_remove)
        self._configured: tuple[str, ...] = self.settings.mount_options
        self._options = self._configured
        self._remaps = kernel.supports_idmapped_overlay()
        self._marks = not kernel.in_user_namespace()
        self._trouble = ""
        self._checked = 0.0
        self._ask_again = ask_again
        self._asking = asyncio.Lock()
        if self.SHARES:
            note.want(root)

    async def start(self) -> None:
        self._failed(await kernel.overlay_trouble(self.root))
        self._options = await mount_options(self.root, self._configured)  # after the trial, which loads the module

    def _failed(self, trouble: str) -> None:
        """Note why it does not work here; "" if it does."""
        self._trouble = trouble
        self._checked = time.monotonic()
        if trouble:
            log.error("snapshotter %s does not work: %s", self.NAME, trouble)

    async def trouble(self) -> str:
        if self._trouble:
            async with self._asking:
                if self._trouble and time.monotonic() > self._checked + self._ask_again:
                    await self.start()
        return self._trouble

    def capabilities(self) -> Sequence[str]:
        """The capabilities of containerd's overlayfs: layers may be unpacked side by side if mknod can make whiteouts,
        and ids are mapped by mounts only.

        Not if overlays are mounted with userxattr: a client that unpacks a layer without its parent would not see this
        option, and would mark opaque directories for other overlays.
        """
        rebases = self._marks and "userxattr" not in self._options
        return (*((REMAP_IDS,) if self._remaps else ()), ONLY_REMAP_IDS, *((REBASE,) if rebases else ()))

    def make(self, name: str, kind: Kind, ancestors: Sequence[int], labels: Mapping[str, str]) -> bool:
        directory = self.at(name)
        upper = f"{directory}/fs"
        os.mkdir(directory, 0o700)
        disk.make_directory(upper, 0o755)
        if kind is Kind.ACTIVE:
            disk.make_directory(f"{directory}/work", 0o711)
        owner = mapped_root(labels)
        if owner is None and ancestors:
            status = os.stat(self.changes(ancestors[0]))
            owner = status.st_uid, status.st_gid
        if owner is not None:
            os.lchown(upper, *owner)
        return True

    def changes(self, number: int) -> str:
        return f"{self.path(number)}/fs"

    def record_commit(
        self, rows: Rows, active: Row, name: str, labels: Mapping[str, str], usage: Usage, parent: str
    ) -> None:
        super().record_commit(rows, active, name, labels, usage, parent)
        try:
            found = note.read(self.path(active.id)) if self.SHARES else None
        except OSError as error:
            log.warning("layer %s cannot be shared: %s", name, errors.words_of_path(error))
            return
        if found is not None and is_layer(name, rules.existing(rows, name).info.parent, found.diff_id):
            rows.add_layer(Layer(active.id, found.diff_id, active.id))

    def same(self, thing: int, below: Sequence[int], others: Sequence[int]) -> bool:
        """Whiteouts are files and attributes of an upper directory, whatever is below. Directories that the layer does
        not name have their attributes from below; and the root directory has the owner of that below.
        """
        found = note.read(self.path(thing))
        overlay = "user.overlay." if "userxattr" in self._options else "trusted.overlay."
        if found is None or (found.hides and found.overlay != overlay):
            return False
        own, under = os.stat(self.changes(thing)), os.stat(self.changes(others[0]))
        return (own.st_uid, own.st_gid, own.st_mode) == (under.st_uid, under.st_gid, under.st_mode) and alike(
            found.unnamed, [*map(self.changes, below)], [*map(self.changes, others)]
        )

    def mounts_of(self, row: Row, ancestors: Sequence[int]) -> list[Mount]:
        """With options in containerd 2's order; 1.6 has index=off first."""
        info = row.info
        mapping = [
            f"{option}={info.labels[label]}"
            for option, label in (("uidmap", UID_MAPPING), ("gidmap", GID_MAPPING))
            if self._remaps and label in info.labels
        ]
        active = info.kind is Kind.ACTIVE
        if not ancestors:
            return [Mount("bind", self.changes(row.id), (*mapping, "rw" if active else "ro", "rbind"))]
        if not active and len(ancestors) == 1:
            return [Mount("bind", self.changes(ancestors[0]), (*mapping, "ro", "rbind"))]
        writable = [f"workdir={self.path(row.id)}/work", f"upperdir={self.changes(row.id)}"] if active else []
        lower = "lowerdir=" + ":".join(map(self.changes, ancestors))
        return [Mount("overlay", "overlay", (*mapping, *writable, lower, *self._options))]

    def error_words(self, doing: str, key: str) -> str:
        return "failed to get active mount" if doing == "mount" else f"failed to {doing} snapshot {key}"

    def visible(self, row: Row) -> Info:
        if not self.settings.upperdir_label:
            return row.info
        info = row.info
        thing = self._tree.view(lambda rows: rows.thing(row.id))
        return Info(
            info.name,
            info.kind,
            info.created_at,
            info.updated_at,
            info.parent,
            {**info.labels, UPPERDIR: self.changes(thing)},
        )


async def mount_options(root: Path, configured: Sequence[str] = ()) -> tuple[str, ...]:
    """The options of each overlay below ``root`` that follow its directories: the configured ones, and those that this
    kernel needs.

    The kernel takes the last of several, so configured options are not repeated.
    """
    options = list(configured)
    names = {option.split("=", 1)[0] for option in options}
    if "userxattr" not in names and await kernel.needs_userxattr(root):
        options.append("userxattr")
    if "index" not in names and kernel.supports_index():
        options.append("index=off")
    return tuple(options)


def mapped_root(labels: Mapping[str, str]) -> tuple[int, int] | None:
    """The owner of root in the user namespace that a snapshot's labels describe, as (uid, gid) of this machine; None
    without such labels.
    """
    if UID_MAPPING not in labels and GID_MAPPING not in labels:
        return None
    return _mapped_zero(labels.get(UID_MAPPING, "")), _mapped_zero(labels.get(GID_MAPPING, ""))


def _mapped_zero(mapping: str) -> int:
    if not mapping:
        return 0
    for part in mapping.split(","):
        numbers = re.fullmatch(r"([+-]?\d+):([+-]?\d+):([+-]?\d+)", part)
        if numbers is None:
            raise errors.Unknown(
                f"failed to unmarshal snapshot ID mapped labels: input value {part} unparsable: input does not match "
                "format"
            )
        inside, outside, size = map(int, numbers.groups())
        if not all(0 <= number < _NO_ID for number in (inside, outside, size)):
            raise errors.Unknown(f'failed to unmarshal snapshot ID mapped labels: invalid mapping "{part}"')
        if inside == 0 and size:
            return outside
    raise errors.Unknown("failed to find root pair: container ID 0 cannot be mapped to a host ID")
