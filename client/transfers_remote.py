"""Transfers made by a node, for a client: the ends of ``services/images/transfer.py`` with their streams, which the
client opens, and the progress events that the node sends.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import any_pb2
from google.protobuf.message import Message

from api.containerd.services.streaming.v1 import streaming_pb2, streaming_stubs
from api.containerd.services.transfer.v1 import transfer_pb2, transfer_stubs
from api.containerd.types.transfer import importexport_pb2, progress_pb2, registry_pb2
from api.containerd.types.transfer.streaming_pb2 import Data, WindowUpdate
from services.images import transfer_convert as convert
from services.images.transfer import (
    AskCredentials,
    Credentials,
    ExportStream,
    ImageStore,
    ImportStream,
    Registry,
    Report,
    Sink,
    no_report,
)
from services.kit import any as kit_any
from services.kit import errors, loops
from services.kit.rpc import ONLY_WANTED, VERIFY, Channel, Stream
from services.oci.platforms_convert import platform_to_pb

_Messages = Stream[any_pb2.Any, any_pb2.Any]
"""The messages of Streaming. The bytes of each message say which type it is."""
End = ImageStore | Registry | ImportStream | ExportStream

STREAMING = streaming_stubs.STREAMING
TRANSFER = transfer_stubs.TRANSFER

_BLOCK = 1 << 16
"""Bytes in a message to the node."""
_WINDOW = 1 << 20
"""Bytes that the node may send ahead."""
_LAST_WORDS = 5.0
"""Seconds without a message for which a stream may stay open after its transfer."""

_ids = itertools.count()


class Transfers:
    """Transfers by the node behind ``channel``; ``headers`` name the namespace."""

    def __init__(self, channel: Channel, headers: Mapping[str, str | bytes]) -> None:
        self._headers = dict(headers)
        self._streaming = channel.client(STREAMING)
        self._transfer = channel.client(TRANSFER)

    async def transfer(self, source: End, destination: End, report: Report = no_report) -> None:
        """Make one transfer. It fails with the node's error, or with that of the object that provides an archive's
        bytes, takes them, or knows credentials. Cancelling this cancels the transfer in the node.
        """
        async with contextlib.AsyncExitStack() as held:
            open_ = _Open(self._streaming, self._headers, held)
            request = transfer_pb2.TransferRequest(
                source=kit_any.pack(await open_.end(source)), destination=kit_any.pack(await open_.end(destination))
            )
            progress, request.options.progress_stream = await open_.stream("progress")
            headers = self._headers
            if isinstance(destination, ImageStore):
                headers = {
                    **headers,
                    **({ONLY_WANTED: "1"} if destination.only_wanted else {}),
                    **({VERIFY: "1"} if destination.verify else {}),
                }
            await open_.run(
                self._transfer.Transfer(request, headers=headers, timeout=None), _Talk(_listen(progress, report))
            )


@dataclass(slots=True)
class _Talk:
    """The client's work on a stream during the transfer."""

    work: Any
    vital: bool = False
    """Whether the transfer is complete only when this stream ends. It is waited for while ``alive`` changes."""
    alive: list[int] = field(default_factory=lambda: [0])


class _Open:
    """The streams of one transfer."""

    def __init__(self, streaming: Any, headers: Mapping[str, str | bytes], held: contextlib.AsyncExitStack) -> None:
        self._streaming = streaming
        self._headers = headers
        self._held = held
        self._talks: list[_Talk] = []

    async def stream(self, purpose: str) -> tuple[_Messages, str]:
        """Open a stream; the result includes its id."""
        name = f"{purpose}-{os.getpid()}-{os.urandom(4).hex()}-{next(_ids)}"
        stream = await self._held.enter_async_context(self._streaming.Stream(headers=self._headers))
        await stream.send(kit_any.pack(streaming_pb2.StreamInit(id=name)))
        if await stream.receive() is None:
            raise errors.Unavailable(f"stream {name}: the node closed it")
        return stream, name

    async def end(self, end: End) -> Message:
        """An end of the transfer as a message for the node."""
        match end:
            case ImageStore():
                return convert.store_to_pb(end)
            case Registry():
                resolver = registry_pb2.RegistryResolver(
                    headers=end.headers, host_dir=end.host_dir, default_scheme=end.default_scheme
                )
                if end.credentials is not None:
                    stream, resolver.auth_stream = await self.stream("auth")
                    self._talks.append(_Talk(_answer(stream, end.credentials)))
                return registry_pb2.OCIRegistry(reference=end.reference, resolver=resolver)
            case ImportStream():
                stream, name = await self.stream("import")
                self._talks.append(_Talk(_send(stream, end.source)))
                return importexport_pb2.ImageImportStream(
                    stream=name, media_type=end.media_type, force_compress=end.force_compress
                )
            case ExportStream():
                stream, name = await self.stream("export")
                alive = [0]
                self._talks.append(_Talk(_receive(stream, end.sink, alive), vital=True, alive=alive))
                return importexport_pb2.ImageExportStream(
                    stream=name,
                    media_type=end.media_type,
                    platforms=map(platform_to_pb, end.platforms),
                    all_platforms=end.all_platforms,
                    skip_compatibility_manifest=end.skip_docker_manifest,
                    skip_non_distributable=end.skip_non_distributable,
                )

    async def run(self, transfer: Any, *more: _Talk) -> None:
        """Run the call, and the work on its streams.

        If the node closes a stream with an error, it reports the same, better worded, as the transfer's own failure. So
        the error of a stream counts only if the transfer succeeds.
        """
        call = loops.task("a transfer", transfer)
        talking = {loops.task("a stream of a transfer", talk.work): talk for talk in (*self._talks, *more)}
        try:
            waiting: set[asyncio.Future[Any]] = {call, *talking}
            while not call.done():
                over, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in over - {call}:
                    with contextlib.suppress(errors.NodeError):
                        task.result()
            call.result()
            for task, talk in talking.items():
                await _ended(task, talk)
        finally:
            for task in (call, *talking):
                task.cancel()
            await asyncio.wait((call, *talking))
            for task in (call, *talking):
                if not task.cancelled():
                    task.exception()  # marked as seen: the first exception was the reason


async def _ended(task: asyncio.Future[Any], talk: _Talk) -> None:
    """Wait until the work on a stream ends by itself, since messages may still arrive after the transfer's answer. The
    wait ends when none has arrived for ``_LAST_WORDS`` seconds; for a vital stream that is an error.
    """
    while not task.done():
        before = talk.alive[0]
        await asyncio.wait((task,), timeout=_LAST_WORDS)
        if not task.done() and talk.alive[0] == before:
            if talk.vital:
                raise errors.DeadlineExceeded("the end of the archive does not arrive")
            return
    if talk.vital:
        task.result()


async def _listen(stream: _Messages, report: Report) -> None:
    while (value := await stream.receive()) is not None:
        event = kit_any.unpack(value, progress_pb2.Progress)
        if event is not None:
            report(convert.progress_from_pb(event))


async def _answer(stream: _Messages, credentials: AskCredentials) -> None:
    while (value := await stream.receive()) is not None:
        question = kit_any.unpack(value, registry_pb2.AuthRequest)
        known = (
            await credentials(question.host, list(question.wwwauthenticate)) if question is not None else Credentials()
        )
        await stream.send(kit_any.pack(convert.credentials_to_pb(known)))


async def _send(stream: _Messages, source: AsyncIterator[bytes]) -> None:
    allowed = 0
    async for data in source:
        view = memoryview(data)
        while view:
            while not allowed:
                value = await stream.receive()
                if value is None:
                    return
                update = kit_any.unpack(value, WindowUpdate)
                allowed += update.update if update is not None else 0
            piece = view[: min(allowed, _BLOCK)]
            await stream.send(kit_any.pack(Data(data=bytes(piece))))
            allowed -= len(piece)
            view = view[len(piece) :]
    await stream.done_sending()


async def _receive(stream: _Messages, sink: Sink, alive: list[int]) -> None:
    window = 0
    while True:
        if window <= _WINDOW // 2:
            with contextlib.suppress(errors.NodeError):  # if the stream has ended, receive tells how
                await stream.send(kit_any.pack(WindowUpdate(update=_WINDOW - window)))
                window = _WINDOW
        value = await stream.receive()
        if value is None:
            return
        data = kit_any.unpack(value, Data)
        if data is not None:
            await sink.write(data.data)
            window -= len(data.data)
            alive[0] += 1
