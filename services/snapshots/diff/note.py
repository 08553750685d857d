"""The note beside a directory into which a layer was unpacked: which layer it is, and what it depends on.

    ROOT/snapshots/overlayfs/notes               this snapshotter wants notes (an empty file)
    ROOT/snapshots/overlayfs/snapshots/ID/fs     the directory
    ROOT/snapshots/overlayfs/snapshots/ID/layer  its note

A worker writes it when it has unpacked a whole layer into a directory that was empty. So its diff id is the digest of
what the files were made of. The files would be the same on other layers below, but for *unnamed* directories
(``inherit.py``), and but for whiteouts: without layers below there are none.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import namedtuple

from services.snapshots.diff.inherit import Unnamed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

WANTED, NAME = "notes", "layer"
_FORMAT = b"2"
_MOST = 4096
"""Unnamed directories; a layer that has more gets no note, as looking all of them up would take too long."""
_LARGEST = 1 << 20
"""Bytes of a note; a layer whose note would be longer gets none."""
_DIGEST = 64
"""Bytes at its end: the digest of those before. Where files are not synced, a power cut may leave a part of it."""


class Note(namedtuple("Note", ("diff_id overlay hides unnamed"))):  # noqa: PYI024 typing's would bring re into each worker
    """A layer, as it was unpacked."""

    __slots__ = ()
    diff_id: str
    overlay: str
    """The prefix of overlayfs's attributes, as of :class:`~.extract.Extractor`; "" if whiteouts were carried out."""
    hides: bool
    """It has whiteouts or opaque markers."""
    unnamed: Sequence[Unnamed]


def place_of(upper: str) -> int | None:
    """An open directory for the note of a layer that is to be unpacked into ``upper``. None if none is wanted there, or
    there are files already. Whatever note there was is removed.
    """
    snapshot, name = os.path.split(upper)
    if name != "fs" or not os.path.exists(f"{os.path.dirname(os.path.dirname(snapshot))}/{WANTED}"):
        return None
    fd = os.open(snapshot, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(NAME, dir_fd=fd)
    if os.listdir(upper):
        os.close(fd)
        return None
    return fd


def want(root: Path) -> None:
    """Let workers write notes beside the directories below ``root``."""
    with contextlib.suppress(OSError):  # on a full disk: without notes nothing is shared, and everything else works
        (root / WANTED).touch()


def write(place: int, note: Note) -> None:
    """Write a note to an open directory. If that fails, there is none that can be read, so the layer is not shared."""
    if len(note.unnamed) > _MOST:
        return
    parts = (
        _FORMAT,
        note.diff_id.encode(),
        note.overlay.encode(),
        b"%d" % note.hides,
        b"%d" % len(note.unnamed),
        *(each.encoded() for each in note.unnamed),
    )
    data = b"\0".join(parts)
    if len(data) + _DIGEST > _LARGEST:
        return
    data += hashlib.sha256(data).hexdigest().encode()
    with contextlib.suppress(OSError):  # on a full disk
        fd = os.open(NAME, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=place)
        try:
            while data:
                data = data[os.write(fd, data) :]
        finally:
            os.close(fd)


def read(snapshot: str) -> Note | None:
    """The note of a snapshot, by its directory. None if it has none, or not a whole one. OSError."""
    try:
        with open(f"{snapshot}/{NAME}", "rb") as file:
            data = file.read(_LARGEST + 1)
    except FileNotFoundError:
        return None
    text, digest = data[:-_DIGEST], data[-_DIGEST:]
    if hashlib.sha256(text).hexdigest().encode() != digest:
        return None
    try:
        form, diff_id, overlay, hides, count, *paths = text.split(b"\0")
        unnamed = [Unnamed.parse(each) for each in paths]
        if form != _FORMAT or len(unnamed) != int(count):
            return None
        return Note(diff_id.decode(), overlay.decode(), bool(int(hides)), unnamed)
    except ValueError:
        return None
