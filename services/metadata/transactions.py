"""The store below the records: transactions over ordered keys. It is apart so that nothing above it knows where the
keys are kept.

A key is a tuple of strings, a value is bytes; keys are ordered part by part, by their UTF-8 bytes. ``schema`` says
which keys there are.

*Work* is a plain function of a :class:`Reader` or :class:`Transaction`. It sees one consistent state of all keys, and
what it writes happens completely or, if it raises, not at all. It may be run more than once before it counts (a store
that many nodes share compares the keys that were read, and starts again if somebody changed one), and in any thread: so
it has no effect but through its argument and its result, and waits for nothing.

Lives: :mod:`services.metadata.sqlite` (embedded, durable) and :mod:`services.metadata.memory` (the fake).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableSequence, Sequence
from contextlib import AbstractContextManager
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
        """The keys that begin with the parts of ``prefix`` and their values, in order; from the first one behind
        ``after``; ``limit`` of them at most.

        What the same transaction writes while it iterates may be seen or not.
        """
        ...


class Snapshot(Reader, Protocol):
    """A state that stays as it is until it is closed, whatever is written meanwhile; its scans read as they are
    iterated.
    """

    def close(self) -> None:
        """Let the store forget the state."""
        ...


class Transaction(Reader, Protocol):
    """A state that can be changed; it sees its own changes."""

    def put(self, key: Key, value: bytes) -> None:
        """Set the value of a key."""
        ...

    def put_many(self, rows: Sequence[tuple[Key, bytes]]) -> None:
        """Set the values of many keys, at a fraction of the cost. Those who watch are not told of them."""
        ...

    def delete(self, key: Key) -> None:
        """Remove a key, if it is there."""
        ...

    def delete_many(self, keys: Sequence[Key]) -> None:
        """Remove those of many keys that are there, as cheaply."""
        ...

    def delete_all(self, prefix: Key, *, limit: int | None = None) -> None:
        """Remove all keys that begin with the parts of ``prefix``; the first ``limit`` of them."""
        ...


class Transactions(Protocol):
    """The store."""

    def view(self, work: Callable[[Reader], T]) -> T:
        """Run ``work`` on the committed state, here and now; for a few keys, up to a few hundred. Only lives that
        need no waiting to read have this.
        """
        ...

    async def read(self, work: Callable[[Reader], T]) -> T:
        """Run ``work`` on the committed state without holding anybody up, however much it reads."""
        ...

    def snapshot(self) -> Snapshot:
        """The committed state as it is now, to be read here bit by bit, and closed soon: a store keeps what it
        would else forget. Only lives that have ``view`` have this.
        """
        ...

    def watch(self) -> AbstractContextManager[MutableSequence[Key]]:
        """The keys that are set while the block lasts, in the order in which works set them, those first whose commit
        was under way when it began; who watches may remove some. So work that knows an older state, read in the block,
        knows what is there besides.
        """
        ...

    async def write(self, work: Callable[[Transaction], T], *, lasting: bool = True) -> T:
        """Run ``work``, as if no other work ran at the same time, and return its result when what it wrote is durable.

        Not ``lasting``: it need not survive a power cut, only the death of this process, until something later is
        durable, which it then is too. For what would be found out again after a power cut; a store may be more careful.

        What ``work`` raises is raised here, and nothing is written. A store that cannot write is Unavailable, with its
        reason; on a full disk, ResourceExhausted.
        """
        ...

    async def close(self) -> None:
        """Wait for what is being written, and let go of the store."""
        ...


# Parts end with a NUL, a NUL in a part becomes NUL 0xff; 0xff begins no part, as it is not in UTF-8. So bytes sort as
# the tuples do.


def encode(key: Key) -> bytes:
    """A key as bytes which sort in the order of keys."""
    whole = "\0".join(key)
    if whole.count("\0") == len(key) - 1:  # as in nearly all, no part has one of its own
        return whole.encode() + b"\0"
    return b"".join([part.encode().replace(b"\0", b"\0\xff") + b"\0" for part in key])


def decode(data: bytes) -> Key:
    """The key that was encoded as ``data``; DataLoss if none was."""
    try:
        if b"\0\xff" not in data:
            return tuple(data.decode().split("\0")[:-1])
        parts = data.replace(b"\0\xff", b"\xff").split(b"\0")[:-1]
        return tuple(part.replace(b"\xff", b"\0").decode() for part in parts)
    except UnicodeDecodeError as error:
        raise errors.DataLoss(
            f"metadata store: the key {data[:100]!r} is damaged ({error.reason}): {damage.WHAT_TO_DO}"
        ) from None


def span(prefix: Key, after: Key | None) -> tuple[bytes, bytes]:
    """The first encoded key of a scan, and the first one beyond it."""
    low = encode(prefix)
    # Each further part of a key sorts between the prefix and prefix 0xff.
    return (low if after is None else max(low, encode(after) + b"\0")), low + b"\xff"
