"""What the node asks of etcd, and what it is promised.

etcd holds *keys* with values, both bytes. Each write, of one key or of many, makes a new *revision*: a number that
grows by one for the whole cluster. Of each key etcd knows the revision that wrote it last (``mod``), the one that made
it (``create``), and how often it was written since then (``version``).

Whoever wants to know what lies below a prefix lists it, all pages at one revision, and watches it from the next one.
Nothing in between is lost. Old revisions are *compacted* sooner or later, by etcd or by an operator. Who stands at a
revision that is gone gets :class:`Compacted`, and lists again.

A *commit* is one transaction: compares, and writes that happen together if all compares are true. A write whose answer
is lost may have happened: :class:`Uncertain`. Who cannot bear that writes a key with a unique value beside, and reads
it back. No write is repeated here once it may have happened.

A *lease* is a time to live that several keys share. While it is kept alive they stay; when it ends etcd deletes them. A
lease says that somebody was there a moment ago. It is no lock, and no truth: released versions of etcd have revoked
leases that were alive (before 3.5.13), and renewed ones that were not (before 3.5.23 and 3.6.5).

Everything has a deadline. While no member of the cluster answers, calls fail at once with Unavailable, and etcd is
asked again after pauses that grow.
"""

from __future__ import annotations

import asyncio
import itertools
from bisect import bisect_left
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from services.kit import errors

LIMIT = 1 << 20
"""Bytes of one commit: keys and values together. etcd's own limit is 1.5 MiB with everything around them."""
OPERATIONS = 128
"""etcd's --max-txn-ops: the operations of a transaction, or its compares if they are more, and of a nested one what is
left of that. A commit of more operations is nested, and as atomic.
"""
COMPARES = OPERATIONS // 2
"""Compares of one commit, at most."""
MOST = COMPARES * COMPARES
"""Operations of one commit, at most: 64 transactions of 64 within one."""
LEASE_LEAST = 2.0
"""Seconds of the shortest lease. etcd makes shorter ones that long."""
PAGE = 1000
"""Keys of a page, at most."""
PAGE_BYTES = 4 << 20
"""Bytes of a page, about: it ends after the key that passes them."""


@dataclass(frozen=True, slots=True)
class KeyValue:
    """A key with its value, and the revisions that it has."""

    key: bytes
    value: bytes
    mod: int
    create: int
    version: int
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the keys below a prefix, in order. ``revision`` is that of all pages of the list."""

    revision: int
    pairs: tuple[KeyValue, ...]


@dataclass(frozen=True, slots=True)
class Mod:
    """A compare: the key was written last at ``revision``; 0: there is no such key."""

    key: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class Put:
    """Write a key. With a ``lease`` it is deleted when that ends."""

    key: bytes
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a key, or with ``end`` each key from ``key`` up to it, without it. What is not there is no error."""

    key: bytes
    end: bytes | None = None


Operation = Put | Delete


@dataclass(frozen=True, slots=True)
class Committed:
    """The writes happened, at ``revision``. A commit that changed nothing has the revision of the store."""

    revision: int


@dataclass(frozen=True, slots=True)
class Conflict:
    """A compare was false at ``revision``. Nothing was written."""

    revision: int


@dataclass(frozen=True, slots=True)
class Change:
    """A key with what it became at ``revision``; None: it was deleted."""

    key: bytes
    pair: KeyValue | None
    revision: int


@dataclass(frozen=True, slots=True)
class Changes:
    """Everything that happened below the prefix up to ``revision``, since the Changes before: one or more whole
    revisions, in order. Without changes it says only that one may go on from there.
    """

    revision: int
    changes: tuple[Change, ...]


class Compacted(errors.OutOfRange):
    """The revision is not there any more, or not yet, since the cluster was restored from a backup: list again."""


class Uncertain(errors.Unavailable):
    """The write may have happened, or may still happen: read back before it is repeated."""


class TooLarge(errors.ResourceExhausted):
    """More than one transaction can take. Nothing was written."""


class Lease(Protocol):
    """A lease that is kept alive while its block lasts."""

    id: int
    """For :class:`Put`."""
    lost: asyncio.Event
    """Set once the lease has ended, or may have: its keys are gone, or will be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberStatus:
    """What one endpoint says of itself."""

    endpoint: str
    reachable: bool
    error: str = ""
    """Why it cannot be used: that it does not answer, has no leader, or has raised an alarm; empty if it can."""
    version: str = ""
    """etcd's, such as ``3.5.16``."""
    leader: bool = False
    learner: bool = False
    size: int = 0
    """Bytes of its database file."""
    used: int = 0
    """Bytes of it in use, 0 if the release does not say. The rest a defragmentation frees."""
    revision: int = 0
    full: bool = False
    """Whether its database has reached its quota, so that the cluster takes no writes."""
    seconds: float = 0.0
    """How long its answer took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterStatus:
    """What is known of the cluster."""

    members: tuple[MemberStatus, ...]
    """One for each endpoint of the configuration, in its order."""
    available: bool
    """Whether a read of the cluster's state, by its quorum, succeeds now."""
    error: str = ""
    """Why not."""
    cluster: int = 0
    """The cluster's id, 0 if nobody says it. A cluster that was made anew, or restored from a backup, has another."""
    revision: int = 0


class Etcd(Protocol):
    """A cluster. Arguments that make no sense are InvalidArgument: an empty key, a count of 0."""

    async def get(self, key: bytes, *, seconds: float = 0.0) -> KeyValue | None:
        """What a key has now, by the cluster's quorum; None: there is no such key. It may take ``seconds``; 0: as long
        as is configured.
        """
        ...

    def pages(self, prefix: bytes, *, revision: int = 0, after: bytes = b"", count: int = PAGE) -> AsyncIterator[Page]:
        """All keys that begin with ``prefix`` and come after ``after``, in order, at one revision: ``revision``, or 0
        for that of the first page. A page has at most ``count`` keys, and about ``PAGE_BYTES``. There is always one
        page, if need be without keys. Compacted if the revision is gone.
        """
        ...

    async def commit(
        self, operations: Sequence[Operation], compares: Sequence[Mod] = (), *, seconds: float = 0.0
    ) -> Committed | Conflict:
        """One transaction, within ``seconds`` as in :meth:`get`. TooLarge above ``LIMIT`` bytes or ``MOST`` operations;
        Uncertain if it may have happened; any other error: it did not happen. A key may be written once only
        (InvalidArgument). At most ``COMPARES`` compares. NotFound if a lease has ended.
        """
        ...

    def watch(self, prefix: bytes, *, after: int) -> AbstractAsyncContextManager[AsyncIterator[Changes]]:
        """The changes of all keys that begin with ``prefix`` in revisions after ``after``. It never ends by itself:
        Compacted, or Unavailable once its member is lost or has no leader. The caller begins again with the revision
        where it stands, after a pause.
        """
        ...

    def lease(self, ttl: float) -> AbstractAsyncContextManager[Lease]:
        """A lease of ``ttl`` seconds, in whole ones and at least ``LEASE_LEAST``. It is revoked at the end of the
        block, with its keys.
        """
        ...

    async def status(self) -> ClusterStatus:
        """What each endpoint says. It raises nothing, and takes at most the time that one call may take."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


def end_of(prefix: bytes) -> bytes:
    """The first key after all those that begin with ``prefix``, as etcd writes ranges. A single zero byte: there is
    none.
    """
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes((kept[-1] + 1,)) if kept else b"\0"


def size_of(operations: Sequence[Operation]) -> int:
    """The bytes of a commit that count against ``LIMIT``."""
    return sum(len(each.key) + len(each.value if isinstance(each, Put) else each.end or b"") for each in operations)


def check(operations: Sequence[Operation], compares: Sequence[Mod]) -> None:
    """Refuse a commit that etcd would refuse: TooLarge or InvalidArgument. All lives of :class:`Etcd` use it."""
    if not operations:
        raise errors.InvalidArgument("a commit without operations")
    if (size := size_of(operations)) > LIMIT:
        raise TooLarge(f"a transaction of {size} bytes, of at most {LIMIT}")
    if len(operations) > MOST:
        raise TooLarge(f"a transaction of {len(operations)} operations, of at most {MOST}")
    if len(compares) > COMPARES:
        raise TooLarge(f"a transaction of {len(compares)} compares, of at most {COMPARES}")
    if not all(each.key for each in (*operations, *compares)):
        raise errors.InvalidArgument("an empty key")
    puts = sorted(each.key for each in operations if isinstance(each, Put))
    twice = next((key for key, following in itertools.pairwise(puts) if key == following), None)
    if twice is not None:
        raise errors.InvalidArgument(f"key {twice!r} is put twice in one transaction")
    _check_deletes(puts, [each for each in operations if isinstance(each, Delete)])


def _check_deletes(puts: Sequence[bytes], deletes: Sequence[Delete]) -> None:
    for each in deletes:
        at = bisect_left(puts, each.key)
        if at < len(puts) and (puts[at] == each.key if each.end is None else each.end == b"\0" or puts[at] < each.end):
            raise errors.InvalidArgument(f"key {puts[at]!r} is put and deleted in one transaction")
