"""Answers of metadata that the gateway gives again, for as long as metadata would give the same.

Clients ask the same again and again: which images are there, what is the record of this container. Of the methods in
:data:`TABLES` the answer depends only on what one table has of the caller's namespace, and metadata says which edition
of that it has (:mod:`services.kit.editions`). So the gateway asks for the same thing once in each edition. The images
service, by which calls of images go, answers what metadata answers to it.

Only what metadata of this node answers is remembered, and given while it is there. A call with something around it (a
tap, a fault, a shadow) goes all the way, and its answer is not remembered either. In a trace, a call that was answered
from memory has ``splitd.remembered``. Records in etcd have no editions, since other nodes change them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from gateway.hop import Hop
from services.kit import memory, rpc
from services.kit.editions import Edition

TABLES: Mapping[str, str] = {
    "/containerd.services.containers.v1.Containers/Get": "container",
    "/containerd.services.containers.v1.Containers/List": "container",
    "/containerd.services.content.v1.Content/Info": "blob",
    "/containerd.services.images.v1.Images/Get": "image",
    "/containerd.services.images.v1.Images/List": "image",
    "/containerd.services.namespaces.v1.Namespaces/Get": "namespace",
    "/containerd.services.namespaces.v1.Namespaces/List": "namespace",
    "/splitd.records.v1.Records/ResolveBlob": "blob",
}
"""The table of metadata that the answers of a method depend on."""

_WHOLE = frozenset({"namespace"})
"""The tables whose answers depend on all of it: its records are not in a namespace."""

LIMIT = 2 << 20
"""Bytes of the answers about one table, with their requests."""
LARGEST = 512 << 10
"""Bytes of an answer."""
_REQUEST = 4 << 10
"""Bytes of a request: filters may be long."""
_COST = 400
"""Bytes of an answer besides its own."""

Asked = tuple[rpc.Upstream, str, str, bytes]


class Remembered:
    """The answers about one table that were given last, each with the edition to which it belongs."""

    def __init__(
        self, edition: Edition, owner: Hop, *, whole: bool = False, limit: int = LIMIT, largest: int = LARGEST
    ) -> None:
        """``owner`` is the way to metadata. ``whole``: the answers depend on all of the table."""
        self._edition = edition
        self._owner = owner
        self._limit = limit
        self._largest = largest
        self._whole = whole
        self._answers: OrderedDict[Asked, tuple[bytes, bytes]] = OrderedDict()
        self._size = 0
        owner.changed.append(edition.look)
        edition.look()
        memory.when_idle(self._forget)

    def find(self, upstream: rpc.Upstream, path: str, namespace: str, request: bytes) -> bytes | None:
        """The answer that ``upstream`` would give (``kit.relays.Remembered``)."""
        if len(request) > _REQUEST:
            return None
        asked = upstream, path, namespace, request
        found = self._answers.get(asked)
        if found is None:
            return None
        edition, answer = found
        now = self._now(namespace)
        if now != edition:
            if now:  # an edition does not come back
                self._drop(asked)
            return None
        self._answers.move_to_end(asked)
        return answer

    def asked(
        self, upstream: rpc.Upstream, path: str, namespace: str, request: bytes
    ) -> Callable[[bytes], None] | None:
        """The upstream is asked (``kit.relays.Remembered``)."""
        edition = self._now(namespace)
        if not edition or len(request) > _REQUEST or not upstream.channel.ours:
            return None
        return partial(self._answered, edition, (upstream, path, namespace, request))

    def _now(self, namespace: str) -> bytes:
        return self._edition.now(None if self._whole else namespace) if self._owner.home.is_ready() else b""

    def _answered(self, edition: bytes, asked: Asked, answer: bytes) -> None:
        if self._now(asked[2]) != edition or len(answer) > self._largest:
            return
        if asked in self._answers:
            self._drop(asked)
        self._answers[asked] = edition, answer
        self._size += _size(asked, answer)
        while self._size > self._limit:
            self._drop(next(iter(self._answers)))

    def _drop(self, asked: Asked) -> None:
        self._size -= _size(asked, self._answers.pop(asked)[1])

    def _forget(self) -> None:
        self._answers.clear()
        self._size = 0


def _size(asked: Asked, answer: bytes) -> int:
    return len(asked[3]) + len(answer) + _COST


def remembered(state: Path, owner: Hop) -> Mapping[str, Remembered]:
    """What is remembered of each method. ``owner`` is the way to metadata."""
    of_table = {
        table: Remembered(Edition(state, table), owner, whole=table in _WHOLE) for table in set(TABLES.values())
    }
    return {method: of_table[table] for method, table in TABLES.items()}
