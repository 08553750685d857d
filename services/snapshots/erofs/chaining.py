"""Makes a layer that was unpacked alone one of a chain: its index gets what depends on the layers below.

That is, first, the attributes of directories that the layer uses but does not name. As long as the layers below have no
extended attributes for them, only the inodes of these directories change: they are written anew in their places. Else
files may have inherited an access control list, and the index is made again from the layer's tar (``diff/reindex.py``).
Second, whiteouts: nothing is left of them in the lowest layer.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping, Sequence

from services.kit import errors
from services.snapshots.diff.inherit import lookups
from services.snapshots.diff.paths import Steps, TooManyLinksError
from services.snapshots.erofs import place
from services.snapshots.erofs.below import Attributes, Below, Index, of_layers, opened, patched
from services.snapshots.erofs.image import INODE
from services.snapshots.erofs.place import CHAINED, INDEX, LOWEST, STAGED, About

_COPY = 1 << 30
LOOKUPS = 100_000
"""Components of paths that are looked up in this process, and as many to follow links: some seconds. Another process
makes an index that needs more.
"""


def chained(layer: str, lowers: Sequence[str], *, fixed: bool, most: int = LOOKUPS) -> bool:
    """Make the index of the layer in the directory ``layer`` right on top of the layers ``lowers``, topmost first, each
    an index or a mount. False if it must be made again for that. ``fixed``: it was unpacked on these layers. ``most``:
    components of paths that are looked up.

    Unknown names a directory that is none in one of these layers. OSError. It blocks.
    """
    known = place.about(layer)
    if known is None:
        return True
    if not os.path.exists(f"{layer}/{INDEX}"):
        return False
    if place.is_marked(layer, CHAINED):
        return fixed
    if known.whiteouts and place.is_marked(layer, LOWEST) is bool(lowers):
        return False
    if not known.made:
        return True
    if not known.patchable:
        return not lowers and not place.is_marked(layer, STAGED)
    if lookups([each.unnamed for each in known.made], len(lowers)) > most:
        return False
    steps = Steps(most, more=0)
    with contextlib.ExitStack() as held:
        below = of_layers([held.enter_context(contextlib.closing(opened(each, steps))) for each in lowers])
        own = held.enter_context(contextlib.closing(Index(f"{layer}/{INDEX}")))
        found = _answers(known, below)
        if found is None:
            return False
        changes = []
        with open(f"{layer}/{INDEX}", "rb") as file:
            for path, attributes in found.items():
                number = own.directory(path)
                assert number is not None, path
                file.seek(at := own.offset(number))
                old = file.read(INODE.size)
                new = patched(old, attributes.mode, attributes.uid, attributes.gid, attributes.modified)
                if new != old:
                    changes.append((at, new))
    if changes:
        _write(f"{layer}/{INDEX}", changes)
    return True


def _answers(known: About, below: Below) -> Mapping[bytes, Attributes] | None:
    """What the inodes of directories that the layer does not name get, by path. None if that is not all, or takes
    long.
    """
    found: dict[bytes, Attributes] = {}
    handed: dict[bytes, int] = {}
    """The group that a directory hands down."""
    for (path, inside, named), group in known.made:
        try:
            given = below(path)
        except TooManyLinksError:
            return None
        except OSError as error:
            where = path.lstrip(b"/").decode("utf-8", "backslashreplace")
            raise errors.Unknown(f'directory "{where}": {errors.words(error)}') from None
        handed.pop(path, None)
        if given is None:
            outer = handed.get(path[: path.rfind(b"/")]) if inside else None
            given = Attributes(stat.S_IFDIR | 0o755, 0, group if outer is None else outer, 0, {})
        elif given.xattrs:
            return None
        elif given.mode & stat.S_ISGID:
            handed[path] = given.gid
        if not named:
            found[path] = given
    return found


def _write(index: str, changes: Sequence[tuple[int, bytes]]) -> None:
    """Change an index in place, or a copy that takes its place if other snapshots use the same file."""
    if os.stat(index).st_nlink == 1:
        with open(index, "r+b") as file:
            _apply(file.fileno(), changes)
        return
    with open(index, "rb") as old, place.replacing(index) as new:
        size, at = os.fstat(old.fileno()).st_size, 0
        while at < size:
            done = os.copy_file_range(old.fileno(), new.fileno(), min(_COPY, size - at), at, at)
            if not done:
                raise OSError(f"{index} was cut")
            at += done
        _apply(new.fileno(), changes)


def _apply(fd: int, changes: Sequence[tuple[int, bytes]]) -> None:
    for at, data in changes:
        os.pwrite(fd, data, at)
