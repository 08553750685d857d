"""What the directories of complete layers contain: for those who look up one path after the other in the same layers.

Of 60 layers that each use a directory of their own, the topmost is looked up in 59, the one below it in 58. Each lookup
that finds nothing takes three system calls, in the service's loop; so does to list a directory once.
"""

from __future__ import annotations

import os

_NAMES, _ALL = 256, 20_000
"""Names in a directory that are remembered at most, and in all directories together: layers may have millions."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Listings:
    """The names in directories of layers that do not change any more. Used by one thread at a time."""

    def __init__(self, names: int = _NAMES, most: int = _ALL) -> None:
        """``names``: those of one directory, and ``most`` of all that are remembered."""
        self._names = names
        self._left = most
        self._known: dict[tuple[str, str], dict[str, bool] | None] = {}
        """By layer and directory: each name, and whether it is a directory. None if they are not remembered."""

    def lacks(self, layer: str, path: bytes) -> bool:
        """Whether the layer in the directory ``layer`` has nothing at ``path``, for certain. False also where that has
        to be looked up: below a directory of many names, or where something on the way is no directory. OSError if the
        layer itself cannot be read.
        """
        at = ""
        for name in os.fsdecode(path).split("/")[1:]:
            names = self._of(layer, at)
            if names is None:
                return False
            inner = names.get(name)
            if not inner:
                return inner is None
            at = f"{at}/{name}"
        return False

    def _of(self, layer: str, at: str) -> dict[str, bool] | None:
        key = layer, at
        if key not in self._known:
            if self._left <= 0:
                return None
            self._known[key] = found = self._read(layer + at, whole=not at)
            self._left -= 1 + len(found or ())
        return self._known[key]

    def _read(self, directory: str, *, whole: bool) -> dict[str, bool] | None:
        found: dict[str, bool] = {}
        try:
            fd = os.open(directory, _DIRECTORY)
        except OSError:
            if whole:
                raise
            return None  # it is another thing by now: whoever looks it up says what is wrong
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    if len(found) == self._names:
                        return None
                    found[entry.name] = entry.is_dir(follow_symlinks=False)
        finally:
            os.close(fd)
        return found
