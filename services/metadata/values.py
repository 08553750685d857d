"""The cache of a store's values: what its open transaction sees or, without one, what is committed. The store keeps it
so: it tells it of each write, and clears it when a transaction, or a work that has written, comes to nothing.
"""

from __future__ import annotations

from services.metadata.transactions import Key

_LARGEST = 32 << 10
"""Bytes of a key and its value that are cached at most: clients choose how large they are."""
_MOST = 512
"""Values that are cached: running a container reads the same few records over and over, and a pull reads most of those
that it has just written.
"""


class Values(dict[Key, bytes | None]):
    """By key; None for one that does not exist."""

    def remember(self, key: Key, value: bytes | None) -> None:
        """Cache what was read. The oldest makes room."""
        if len(value or b"") + sum(map(len, key)) > _LARGEST:
            self.pop(key, None)
            return
        if len(self) >= _MOST and key not in self:
            del self[next(iter(self))]
        self[key] = value

    def wrote(self, key: Key, value: bytes) -> None:
        """A key was written. Without a value it belongs to a table of keys, which nobody gets."""
        if value:
            self.remember(key, value)
        else:
            self.pop(key, None)

    def forget(self, key: Key) -> None:
        """A key was removed."""
        self.pop(key, None)
