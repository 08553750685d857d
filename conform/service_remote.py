"""The service under test, at its address: what it is, and what was said to it.

Each call has a deadline of its own, since a service that hangs must not hang us. The last calls are remembered, so that
a rule that fails can show what was asked.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import message_factory, text_format
from google.protobuf.descriptor import FieldDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError

from api.containerd.services.content.v1 import content_stubs
from api.containerd.services.leases.v1 import leases_pb2, leases_stubs
from api.containerd.services.namespaces.v1 import namespaces_pb2, namespaces_stubs
from api.containerd.services.snapshots.v1 import snapshots_stubs
from api.splitd.localfiles.v1 import localfiles_stubs
from api.splitd.stamp.v1 import stamp_pb2, stamp_stubs
from conform.content_case import digest_of
from conform.rules import LONGEST, NoAnswer, described
from services.content.remote import RemoteFiles, RemoteStore
from services.kit import errors, rpc
from services.kit.addresses import Address
from services.kit.rpc import CarriedStream
from services.snapshots.remote import RemoteSnapshotter

CONTENT, SNAPSHOT = "content", "snapshot"
"""The types of services, as containerd's ``proxy_plugins`` name them."""

SERVICES: Mapping[str, ServiceDescriptor] = {CONTENT: content_stubs.CONTENT, SNAPSHOT: snapshots_stubs.SNAPSHOTS}

_MESSAGES: Mapping[str, tuple[Any, Any]] = {
    rpc.method_path(method): (
        message_factory.GetMessageClass(method.input_type),
        message_factory.GetMessageClass(method.output_type),
    )
    for service in (*SERVICES.values(), localfiles_stubs.LOCAL_FILES)
    for method in service.methods
}
"""The messages of each method: what it is asked with, and what it answers."""


class CannotRun(Exception):
    """The service cannot be tested at all: it is not there, or is another one."""


@dataclass(slots=True)
class Asked:
    """A call that was made: its path, the fields of its last request, and what came."""

    path: str
    request: str
    answer: str = "none yet"

    @property
    def method(self) -> str:
        """The service's full name, and the method's."""
        return self.path.removeprefix("/")


class _Channel(rpc.Channel):
    """A channel whose calls have only the deadline of the witness around them."""

    async def unary(
        self, path: str, request: Any, headers: rpc.Headers, timeout: float | None, *rest: Any, **options: Any
    ) -> Any:
        return await super().unary(path, request, headers, None, *rest, **{**options, "stall": None, "together": False})


class Witness:
    """Stands around the calls of a channel: bounds each, and remembers the last."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.asked: collections.deque[Asked] = collections.deque(maxlen=5)
        self.unanswered = 0
        """Calls without an answer: the service hung, or the connection was lost."""

    def forget(self) -> None:
        """Begin anew, for the next rule."""
        self.asked.clear()
        self.unanswered = 0

    def ask(self, path: str, request: bytes) -> Asked:
        """Note a request."""
        asked = Asked(path, _fields(path, 0, request))
        self.asked.append(asked)
        return asked

    async def bounded(self, asked: Asked, go: Callable[[], Awaitable[Any]]) -> Any:
        """What ``go`` answers, within the deadline."""
        try:
            async with asyncio.timeout(self.seconds) as limit:
                answer = await go()
        except TimeoutError as error:
            if not limit.expired():
                raise
            self.unanswered += 1
            asked.answer = f"no answer within {self.seconds:g} s"
            raise NoAnswer.verbatim(f"{asked.method}: {asked.answer}") from error
        except errors.NodeError as error:
            self.unanswered += isinstance(error, errors.Disconnected)
            asked.answer = described(error)
            raise
        asked.answer = f"OK {{{_fields(asked.path, 1, answer)}}}" if answer else "OK"
        return answer

    def unread(self, path: str) -> bool:
        return False

    async def unary(self, path: str, request: bytes, headers: rpc.Headers, go: Callable[[], Awaitable[bytes]]) -> bytes:
        answer: bytes = await self.bounded(self.ask(path, request), go)
        return answer

    def stream(self, path: str, headers: rpc.Headers, carried: CarriedStream) -> CarriedStream:
        return _WitnessedStream(self, path, carried)


class _WitnessedStream:
    """A stream whose every message has the deadline. One that hung once is not waited for again."""

    def __init__(self, witness: Witness, path: str, inner: CarriedStream) -> None:
        self._witness, self._path, self._inner = witness, path, inner
        self._asked = Asked(path, "")
        self._hung: NoAnswer | None = None

    async def _bounded(self, go: Callable[[], Awaitable[Any]]) -> Any:
        if self._hung is not None:
            raise self._hung
        try:
            return await self._witness.bounded(self._asked, go)
        except NoAnswer as error:
            self._hung = error
            raise

    async def send(self, message: bytes) -> None:
        self._asked = self._witness.ask(self._path, message)
        await self._bounded(lambda: self._inner.send(message))

    async def done_sending(self) -> None:
        await self._bounded(self._inner.done_sending)

    async def receive(self) -> bytes | None:
        answer: bytes | None = await self._bounded(self._inner.receive)
        return answer

    async def leading(self) -> rpc.Headers:
        return await self._inner.leading()

    def trailing(self) -> rpc.Headers:
        return self._inner.trailing()

    def cancel(self) -> None:
        self._inner.cancel()


def _fields(path: str, which: int, data: bytes) -> str:
    """The fields of a message of a method (0: a request, 1: an answer) as one bounded line; bytes by their number."""
    if path not in _MESSAGES:
        return f"{len(data)} bytes"
    try:
        message = _MESSAGES[path][which].FromString(data)
    except DecodeError:
        return f"{len(data)} bytes that are no message"
    for each, value in message.ListFields():
        if each.type == FieldDescriptor.TYPE_BYTES and len(value) > 40:
            setattr(message, each.name, f"<{len(value)} bytes>".encode())
    text = text_format.MessageToString(message, as_one_line=True)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


@dataclass
class Service:
    """A service that can be tested."""

    channel: rpc.Channel
    witness: Witness
    kind: str
    namespaced: bool
    """It is a daemon that keeps namespaces, and not a raw service."""
    here: bool
    """It is on this machine."""
    headers: Mapping[str, str | bytes]
    snapshotter: str = ""
    owner: str = ""
    """The metadata store whose collector removes what its records do not name, if one has stamped this store."""
    left: list[str] = field(default_factory=list)
    """What could not be removed at the end."""

    @property
    def store(self) -> RemoteStore:
        return RemoteStore(self.channel, self.headers)

    @property
    def files(self) -> RemoteFiles:
        return RemoteFiles(self.channel, self.headers)

    @property
    def snapshots(self) -> RemoteSnapshotter:
        return RemoteSnapshotter(self.channel, snapshotter=self.snapshotter, headers=self.headers)

    async def answers(self) -> bool:
        """Whether it answers a question at all."""
        try:
            await self.channel.reached(self.witness.seconds)
            await _ask(self)
        except (NoAnswer, errors.Disconnected):
            return False
        except errors.NodeError:
            return True
        return True


async def _ask(service: Service) -> None:
    """Ask about a thing that is not there."""
    if service.kind == CONTENT:
        await service.store.info(digest_of(os.urandom(32)))
    else:
        await service.snapshots.stat(f"splitd-conform-{os.urandom(8).hex()}")


def _is_here(where: Address) -> bool:
    return bool(where.path) or where.host in ("localhost", "::1") or where.host.startswith("127.")


@contextlib.asynccontextmanager
async def opened(
    where: Address, kind: str, *, name: str, namespace: str = "", snapshotter: str = "", seconds: float
) -> AsyncIterator[Service]:
    """The service at an address. :class:`CannotRun` says why it cannot be tested.

    A daemon gets a lease called ``name`` in ``namespace``, or in a namespace of this name too if none is given; at the
    end it is gone, and so is a namespace of ours.
    """
    witness = Witness(seconds)
    async with _Channel(where, str(where), pings="never") as channel:
        channel.around = witness
        try:
            await channel.reached(seconds)
        except errors.Disconnected as error:
            raise CannotRun(str(error)) from error
        headers: dict[str, str | bytes] = {rpc.NAMESPACE: namespace or name}
        try:
            namespaced = await _leased(channel, headers, name)
        except (NoAnswer, errors.InvalidArgument) as error:  # the latter says what is wrong with the namespace
            raise CannotRun(str(error)) from error
        if namespaced:
            headers[rpc.LEASE] = name
        called = snapshotter or ("overlayfs" if namespaced else "proxied")
        service = Service(channel, witness, kind, namespaced, _is_here(where), headers, called)
        try:
            try:
                await _check(service, str(where))
                service.owner = await _owner(channel)
            except NoAnswer as error:
                raise CannotRun(str(error)) from error
            yield service
        finally:
            if namespaced:
                await _released(service, name, own=not namespace)


async def _leased(channel: rpc.Channel, headers: Mapping[str, str | bytes], name: str) -> bool:
    """Make a lease, which keeps the collector of a daemon away. Only a daemon has leases."""
    try:
        await channel.client(leases_stubs.LEASES).Create(leases_pb2.CreateRequest(id=name), headers=headers)
    except errors.Unimplemented:
        return False
    return True


async def _check(service: Service, address: str) -> None:
    """Ask about a thing that is not there, as a client of this type would."""
    try:
        await _ask(service)
    except errors.NotFound:
        return
    except errors.Unimplemented as error:
        other = Service(
            service.channel,
            service.witness,
            SNAPSHOT if service.kind == CONTENT else CONTENT,
            service.namespaced,
            service.here,
            service.headers,
            service.snapshotter,
        )
        hint = ""
        with contextlib.suppress(errors.Unimplemented):
            try:
                await _ask(other)
            except errors.NotFound:
                hint = f"; it serves the other type: --type {other.kind}"
        wanted = SERVICES[service.kind].full_name
        raise CannotRun(f"{address} does not serve {wanted}{hint}") from error
    except errors.InvalidArgument as error:
        if service.kind == SNAPSHOT and service.namespaced:
            raise CannotRun(f"{address}: {error} (name one of its snapshotters: --snapshotter NAME)") from error
    except errors.NodeError:
        pass  # another answer than NOT_FOUND is for a rule to find
    return


async def _owner(channel: rpc.Channel) -> str:
    """The owner of a store that has splitd's Stamp."""
    try:
        return str((await channel.client(stamp_stubs.STAMP).Get(stamp_pb2.GetRequest())).store_id)
    except errors.NodeError:
        return ""


async def _released(service: Service, name: str, *, own: bool) -> None:
    """Delete the lease, and the namespace that came with the first write, if it is our ``own``."""
    try:
        request = leases_pb2.DeleteRequest(id=name, sync=True)
        await service.channel.client(leases_stubs.LEASES).Delete(
            request, headers={rpc.NAMESPACE: service.headers[rpc.NAMESPACE]}
        )
    except errors.NotFound:
        pass
    except errors.NodeError as error:
        service.left.append(f"lease {name}: {error}")
    if not own:
        return
    try:
        await service.channel.client(namespaces_stubs.NAMESPACES).Delete(
            namespaces_pb2.DeleteNamespaceRequest(name=name)
        )
    except errors.NotFound:
        pass
    except errors.NodeError as error:
        service.left.append(f"namespace {name}: {error}")
