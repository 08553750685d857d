"""The ways in which metadata's suites reach an implementation: clients for each service, called alike with or without a
socket in between.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message

from services.kit import errors
from services.kit.rpc import LEASE, NAMESPACE, Call, Channel, Pieces, Servicer, method_path
from services.kit.slices import Lane
from services.kit.transport import Together
from services.metadata.database import Database
from services.metadata.server import Metadata
from services.metadata.store import Event, Kind
from services.metadata.transactions import Transactions

Clients = Callable[[ServiceDescriptor], Any]
"""Makes a client for a service."""

_numbers = itertools.count()


def new_namespace() -> str:
    """A namespace that no other test uses."""
    return f"suite-{next(_numbers)}"


def headers(namespace: str, lease: str = "") -> dict[str, str]:
    """The headers of a client of ``namespace``."""
    return {NAMESPACE: namespace} | ({LEASE: lease} if lease else {})


class LocalClient:
    """The methods of a servicer, called like those of an ``rpc.Client``. Messages are copied through bytes, as on a
    wire. ``together``: each call that several may be answered with is, between two others that cannot succeed.
    """

    def __init__(self, servicer: Servicer, *, together: bool = False) -> None:
        self._servicer = servicer
        self._together: Mapping[str, Together] = getattr(servicer, "together", {}) if together else {}

    def __getattr__(self, name: str) -> Any:
        method = self._servicer.SERVICE.methods_by_name[name]
        handler = getattr(self._servicer, name)

        def copied(message: Message) -> Message:
            return type(message).FromString(message.SerializeToString())

        def received(answer: Message | Pieces) -> Message:
            return (
                message_factory.GetMessageClass(method.output_type).FromString(b"".join(answer))
                if isinstance(answer, Pieces)
                else copied(answer)
            )

        async def unary(request: Message, *, headers: Any = {}, timeout: float | None = None) -> Message:
            call = Call(method_path(method), headers)
            if name in self._together:
                before, answer, after = await self._together[name](
                    [type(request)(), copied(request), type(request)()], call
                )
                for other in (before, after):
                    assert other is None or isinstance(other, errors.NodeError), other
                if isinstance(answer, errors.NodeError):
                    raise answer
                if answer is not None:
                    return received(answer)
            return received(await handler(copied(request), call))

        async def stream(request: Message, *, headers: Any = {}, timeout: float | None = None) -> Any:
            async for answer in handler(copied(request), Call(method_path(method), headers)):
                yield received(answer)

        return stream if method.server_streaming else unary


class RawStandIn:
    """The raw things that the raw services have, as far as intents ask. ``away``: they do not answer."""

    def __init__(self) -> None:
        self.blobs: dict[str, int] = {}
        self.ingests: set[str] = set()
        self.snapshots: dict[str, Kind] = {}
        self.away = False

    def _there(self) -> None:
        if self.away:
            raise errors.Unavailable("the stand-in is away")

    async def blob_size(self, backend: str, digest: str) -> int:
        self._there()
        if digest not in self.blobs:
            raise errors.NotFound(f"content {digest}")
        return self.blobs[digest]

    async def ingest_offset(self, backend: str, raw_ref: str) -> int:
        self._there()
        if raw_ref not in self.ingests:
            raise errors.NotFound(f"ingest {raw_ref}")
        return 0

    async def snapshot_kind(self, backend: str, raw_key: str) -> Kind:
        self._there()
        if raw_key not in self.snapshots:
            raise errors.NotFound(f"snapshot {raw_key}")
        return self.snapshots[raw_key]


class LocalMetadata:
    """All services over a store, in this process, and the events that they published."""

    def __init__(
        self,
        transactions: Transactions,
        *,
        shared: bool = True,
        patience: float = 20.0,
        lane: Lane | None = None,
        together: bool = False,
        **limits: Any,
    ) -> None:
        self._together = together
        self.events: list[Event] = []
        self.raw = RawStandIn()
        self.database = Database(transactions, patience=patience, lane=lane)
        self.metadata = Metadata(self.database, self.events.append, self.raw, shared=shared, **limits)
        self._servicers = {s.SERVICE.full_name: s for s in self.metadata.servicers}

    def client(self, service: ServiceDescriptor) -> LocalClient:
        return LocalClient(self._servicers[service.full_name], together=self._together)

    async def close(self) -> None:
        await self.metadata.intents.close()
        await self.database.transactions.close()


def over(channel: Channel) -> Clients:
    """Clients over a socket."""
    return channel.client


def names(values: Iterable[Any], field: str = "id") -> list[str]:
    """One field of each item."""
    return [getattr(value, field) for value in values]
