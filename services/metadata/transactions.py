"""The store below the records: transactions over ordered keys. It is a module of its own so that nothing above it knows
how the keys are stored.

A key is a tuple of strings, a value is bytes. Keys are ordered part by part, by their UTF-8 bytes. ``schema`` lists the
keys.

*Work* is a plain function of a :class:`Reader` or a :class:`Transaction`. It sees one consistent state of all keys. Its
writes take effect completely or, if it raises, not at all. It may run more than once before it counts, and in any
thread: a store that many nodes share compares the keys that were read, and runs the work again if another node changed
one. So work must have no effect except through its argument and its result, and must not wait for anything.

Implementations: :mod:`services.metadata.sqlite` (embedded, durable) and :mod:`services.metadata.memory` (the fake).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableSequence, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from services.kit import damage, errors

Key = tuple[str, ...]
T = TypeVar("T")


class Reader(Protocol):
    """One consistent state of the store."""

    def get(self, key: Key) -> bytes | None:
        """The value of a key, or None."""
        ...

    def scan(self, prefix: Key, *, after: Key | None = None, limit: int | None = None) -> Iterator[tuple[Key, bytes]]:
        """The keys that begin with the parts of ``prefix``, and their values, in order: those behind ``after``, and at
        most ``limit`` of them.

        Writes of the same transaction during the iteration may be seen or not.
        """
        ...

    def scan_encoded(self, prefix: Key) -> Iterator[Sequence[tuple[bytes, bytes]]]:
        """The same with encoded keys, some rows at a time, for callers that read very many. For the last part of a key
        see :func:`last_part`.
        """
        ...


class Snapshot(Reader, Protocol):
    """A state that stays as it is until it is closed, whatever is written meanwhile. Its scans read while they are
    iterated.
    """

    def close(self) -> None:
        """Release the state."""
        ...


class Transaction(Reader, Protocol):
    """A state that can be changed, and that shows its own changes."""

    def put(self, key: Key, value: bytes) -> None:
        """Set the value of a key."""
        ...

    def put_many(self, rows: Sequence[tuple[Key, bytes]]) -> None:
        """Set the values of many keys, at a fraction of the cost of single puts. Watches do not see them."""
        ...

    def delete(self, key: Key) -> None:
        """Remove a key, if it exists."""
        ...

    def delete_many(self, keys: Sequence[Key]) -> None:
        """Remove those of the keys that exist, as cheaply."""
        ...

    def delete_all(self, prefix: Key, *, limit: int | None = None) -> None:
        """Remove all keys that begin with the parts of ``prefix``, or the first ``limit`` of them."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a store stands. All but ``store`` is for one that is elsewhere, and of which this process has a mirror."""

    store: str = "sqlite"
    """Or "etcd"."""
    revision: int = 0
    """The store's, which the mirror shows."""
    away: float | None = None
    """Seconds since the mirror was last in step with the store; None while it is."""
    reads: float = 0.0
    """Seconds for which reads go on while it is not."""
    why: str = ""
    """Why it is not."""


class Transactions(Protocol):
    """The store."""

    def view(self, work: Callable[[Reader], T]) -> T:
        """Run ``work`` on the committed state, here and now: for a few keys, up to a few hundred. Only implementations
        that read without waiting have this.
        """
        ...

    async def read(self, work: Callable[[Reader], T]) -> T:
        """Run ``work`` on the committed state, however much it reads, while other calls go on."""
        ...

    def snapshot(self) -> Snapshot:
        """The current committed state, for reading in pieces. Close it soon: meanwhile the store keeps data that it
        would otherwise discard. Only implementations with ``view`` have this.
        """
        ...

    def watch(self) -> AbstractContextManager[MutableSequence[Key]]:
        """The keys that are set during the block, in the order in which works set them, preceded by those of a commit
        that was under way when the block began. So a reader of an older state, taken in the block, learns which keys
        were added since. It may remove entries.
        """
        ...

    async def write(self, work: Callable[[Transaction], T], *, lasting: bool = True) -> T:
        """Run ``work`` as if no other work ran at the same time. Returns its result once its writes are durable.

        If not ``lasting``, the writes need only survive the death of this process; they survive a power cut once a
        later write is durable. This is for facts that would be found again after a power cut. A store may do more than
        it must.

        An exception of ``work`` is raised here, and nothing is written. Unavailable, with the reason, if the store
        cannot write; ResourceExhausted on a full disk.
        """
        ...

    async def write_all(
        self, works: Sequence[Callable[[Transaction], T]], *, lasting: bool = True
    ) -> list[T | Exception]:
        """As :meth:`write` of each, in this order, for less than these would cost. Returns results and exceptions."""
        ...

    @property
    def standing(self) -> Standing:
        """Whether a store that is elsewhere can be reached: while it is away nothing is written."""
        ...

    async def writable(self) -> None:
        """Wait while it is away. A write that the caller begins at once comes before all others."""
        ...

    async def settle(self) -> None:
        """Return once everything that was written is durable, also what need not be lasting. Errors are those of
        :meth:`write`.
        """
        ...

    async def close(self) -> None:
        """Wait for writes under way, and close the store."""
        ...


# Each part ends with a NUL. A NUL within a part becomes NUL 0xff; no part begins with 0xff, which does not occur in
# UTF-8. So the bytes sort as the tuples do.


def encode(key: Key) -> bytes:
    """A key as bytes, which sort as the keys do."""
    whole = "\0".join(key)
    if whole.count("\0") == len(key) - 1:  # as nearly always, no part has a NUL of its own
        return whole.encode() + b"\0"
    return b"".join([part.encode().replace(b"\0", b"\0\xff") + b"\0" for part in key])


def decode(data: bytes) -> Key:
    """The key that ``data`` encodes; DataLoss if it encodes none."""
    try:
        if b"\0\xff" not in data:
            return tuple(data.decode().split("\0")[:-1])
        parts = data.replace(b"\0\xff", b"\xff").split(b"\0")[:-1]
        return tuple(part.replace(b"\xff", b"\0").decode() for part in parts)
    except UnicodeDecodeError as error:
        raise errors.DataLoss(
            f"metadata store: the key {data[:100]!r} is damaged ({error.reason}): {damage.WHAT_TO_DO}"
        ) from None


def last_part(key: bytes, prefix: bytes) -> str:
    """The part of an encoded key behind ``prefix``, the other parts. This takes a third of the time of
    :func:`decode`.
    """
    try:
        return key[len(prefix) : -1].decode()
    except UnicodeDecodeError:  # it has a NUL, or is damaged
        return decode(key)[-1]


def span(prefix: Key, after: Key | None) -> tuple[bytes, bytes]:
    """The first encoded key of a scan, and the first one beyond it."""
    low = encode(prefix)
    # Each further part of a key sorts between the prefix and prefix 0xff.
    return (low if after is None else max(low, encode(after) + b"\0")), low + b"\xff"
