"""Mounts indices with their data, and finds out how this machine does it.

From Linux 6.12 on, if it is built so, the kernel mounts both from their files; before that, and where they lie on a
file system without what it needs (tmpfs, overlayfs), by loop devices. Nothing is read from its version: a small layer
is mounted and read at start.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

from services.kit import errors, mounting, tar
from services.kit.loop_devices import attached, attached_image
from services.snapshots.diff import mounts
from services.snapshots.diff.mounts import MountError
from services.snapshots.erofs.image import Node
from services.snapshots.erofs.place import DATA, INDEX, is_image, write_index

_TRIAL = ".erofs-trial-"
_SAID = b"a file of the trial"


class Way(NamedTuple):
    """How layers are mounted. ``direct``: the data are not cached a second time, as those of a file."""

    loop: bool
    direct: bool


def is_mounted(directory: str | Path) -> bool:
    """Whether an EROFS image is mounted there."""
    try:
        return mounting.type_of(directory) == mounting.EROFS
    except OSError:  # it is not there, or cannot be looked at
        return False


def mount(way: Way, layer: Path, target: Path) -> None:
    """Mount the layer in the directory ``layer``. MountError, OSError."""
    index, data, direct = str(layer / INDEX), str(layer / DATA), "directio" if way.direct else ""
    if is_image(str(layer)):
        if way.loop:
            with attached(index, read_only=True, direct=way.direct) as only:
                mounts.mount(only, str(target), "erofs", mounting.RDONLY, "")
        else:
            mounts.mount(index, str(target), "erofs", mounting.RDONLY, direct)
    elif way.loop:
        with attached_image(index, [f"device={data}"], direct=way.direct) as (image, options):
            mounts.mount(image, str(target), "erofs", mounting.RDONLY, *options)
    else:
        mounts.mount(index, str(target), "erofs", mounting.RDONLY, f"device={data}" + (f",{direct}" if direct else ""))
    # the call succeeds over an empty directory where a security module or a namespace hides what it did
    if not is_mounted(target):
        raise MountError(f"{target}: the kernel says that {layer} is mounted there, and it is not")


def unmount(target: str | Path) -> bool:
    """Unmount what is mounted there; False if somebody uses it."""
    try:
        mounting.unmount(target)
    except OSError:
        return False
    return True


def tried(directory: Path, *, force_loop: bool = False) -> Way | str:
    """How layers below ``directory``, which exists, can be mounted; a sentence if they cannot. It blocks."""
    if "," in str(directory):
        return f"{directory}: mount options cannot hold a path with a comma"
    why: dict[bool, str] = {}
    for way in (Way(False, True), Way(False, False), Way(True, True), Way(True, False)):
        if force_loop and not way.loop:
            continue
        try:
            _try(directory, way)
        except (MountError, OSError) as error:
            if isinstance(error, OSError) and errors.is_full(error):
                return errors.words_of_path(error)
            why[way.loop] = errors.words_of_path(error) if isinstance(error, OSError) else str(error)
        else:
            return way
    return "; ".join(f"{'by loop devices' if each else 'from files'}: {words}" for each, words in why.items())


def _try(directory: Path, way: Way) -> None:
    with tempfile.TemporaryDirectory(prefix=_TRIAL, dir=directory) as place:
        layer, target = Path(place, "layer"), Path(place, "mounted")
        for each in (layer, target):
            each.mkdir()
        (layer / DATA).write_bytes(bytes(tar.BLOCK) + _SAID)
        root, file = Node(0o40755), Node(0o100644)
        root.children = {b"file": file}
        root.links = 2
        file.size = len(_SAID)
        file.pieces = [(0, tar.BLOCK, file.size)]
        write_index(root, str(layer), tar.BLOCK + file.size)
        mount(way, layer, target)
        try:
            if (target / "file").read_bytes() != _SAID:
                raise MountError(f"{directory}: a file of a layer that is mounted there has other bytes")
        finally:
            mounts.unmount_all(str(target))
