"""A service that copies are made to, over a channel."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from api.containerd.services.content.v1 import content_pb2
from services.kit import errors
from services.kit.rpc import HOPS, MOST_HOPS, Channel
from services.shadows.methods_convert import METHODS, READ, WRITE
from services.shadows.store import Service

SECONDS = 30.0
"""The limit of a call that copies one."""
LARGEST = 64 << 20
"""Bytes of one call's answers."""
_HEADERS = {HOPS: str(MOST_HOPS)}
_PIECE = 1 << 20
"""Bytes of a message when a blob is copied."""


class RemoteService:
    """``channel`` leads to a raw service. Its calls are nobody's: they carry no namespace and no lease. No gateway lets
    them through: a candidate that forwards its calls to one would have each copy copied again.
    """

    def __init__(self, channel: Channel, *, seconds: float = SECONDS) -> None:
        self._channel = channel
        self._seconds = seconds

    async def call(self, path: str, requests: Sequence[bytes]) -> Sequence[bytes]:
        descriptor = METHODS[path].descriptor
        await self._channel.reached(self._seconds)
        if not descriptor.client_streaming and not descriptor.server_streaming:
            return [await self._channel.unary(path, requests[0], _HEADERS, self._seconds)]
        answers: list[bytes] = []
        size = 0
        async with self._channel.stream(path, _HEADERS, self._seconds) as stream:
            for request in requests:
                await stream.send(request)
                # a Write answers each message, and a client waits for that before it sends the next
                if descriptor.client_streaming and (answer := await stream.receive()) is not None:
                    answers.append(answer)
            await stream.done_sending()
            while (answer := await stream.receive()) is not None:
                answers.append(answer)
                size += len(answer)
                if size > LARGEST:
                    raise errors.ResourceExhausted(f"{path}: an answer of more than {LARGEST} bytes")
        return answers

    async def copied(self, digest: str, size: int, ref: str, source: Service) -> Sequence[bytes]:
        await self._channel.reached(self._seconds)
        answers: list[bytes] = []
        offset = 0
        async with self._channel.stream(WRITE.path, _HEADERS, None) as stream:

            async def send(**fields: object) -> None:
                request = content_pb2.WriteContentRequest(ref=ref, total=size, expected=digest, offset=offset, **fields)  # type: ignore[arg-type]
                await stream.send(request.SerializeToString())
                if (answer := await stream.receive()) is None:
                    raise errors.Unknown(f"the write of {digest} ended without an answer")
                answers[:] = [answer]

            async for piece in _read(source, digest, size):
                await send(action=content_pb2.WRITE, data=piece)
                offset += len(piece)
            await send(action=content_pb2.COMMIT)
            await stream.done_sending()
        return answers


async def _read(source: Service, digest: str, size: int) -> AsyncIterator[bytes]:
    for offset in range(0, size, _PIECE):
        request = content_pb2.ReadContentRequest(digest=digest, offset=offset, size=min(_PIECE, size - offset))
        for answer in await source.call(READ, [request.SerializeToString()]):
            yield content_pb2.ReadContentResponse.FromString(answer).data
