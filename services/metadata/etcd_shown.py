"""What of etcd the mirror shows: everything that happened up to a revision, and this node's own transactions beyond it.

Own transactions are in the mirror at once, before the watch tells of them, and what others have written in between
comes later. So each change that the watch tells is applied, unless this node has written the same key since.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

from services.etcd.store import KeyValue


@dataclass(frozen=True, slots=True)
class Last:
    """The last transaction that wrote the records: the revision and the value of the key ``last``; 0: there is none."""

    mod: int = 0
    id: bytes = b""

    @classmethod
    def of(cls, pair: KeyValue | None) -> Last:
        return cls() if pair is None else cls(pair.mod, pair.value)


NONE = Last()


class Shown:
    """How far the mirror is. Its file may know of less after a crash; what is then told again is applied again."""

    def __init__(self, revision: int, last: Last) -> None:
        self.revision = revision
        """All that happened up to it is there; 0: nothing is known, all records have to be listed."""
        self.last = last
        self._own: dict[bytes, int] = {}
        """The keys of own transactions beyond ``revision``, and the revision of the newest of these."""
        self._order: deque[tuple[int, Collection[bytes]]] = deque()

    @property
    def newest(self) -> int:
        """The newest revision of which something is there."""
        return max(self.revision, self.last.mod)

    @property
    def ahead(self) -> int:
        """The number of own transactions that the watch has not told of."""
        return len(self._order)

    def has(self, key: bytes, revision: int) -> bool:
        """Whether the record is there as of ``revision``, or of a later one."""
        return revision <= self.revision or self._own.get(key, 0) >= revision

    def committed(self, last: Last, keys: Collection[bytes]) -> None:
        """An own transaction, which wrote these keys of records, is there."""
        self.last = last
        self._order.append((last.mod, keys))
        self._own.update(dict.fromkeys(keys, last.mod))

    def reached(self, revision: int, last: Last) -> None:
        """All that happened up to ``revision`` is there; ``last`` is what the watch told of it, if anything."""
        self.revision = revision
        if last.mod > self.last.mod:
            self.last = last
        while self._order and self._order[0][0] <= revision:
            at, keys = self._order.popleft()
            for key in keys:
                if self._own.get(key) == at:
                    del self._own[key]

    def listed(self, revision: int, last: Last) -> None:
        """Exactly what there was at ``revision`` is there."""
        self.revision, self.last = revision, last
        self._own.clear()
        self._order.clear()
