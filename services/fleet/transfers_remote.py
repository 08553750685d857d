"""Pulls that this node makes for the fleet, by its own service Transfer: with the node's own configuration and
credentials, for this machine's platform, unpacked.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping

from google.protobuf import any_pb2

from api.containerd.services.streaming.v1 import streaming_pb2, streaming_stubs
from api.containerd.services.transfer.v1 import transfer_pb2, transfer_stubs
from api.containerd.types.transfer import imagestore_pb2, progress_pb2, registry_pb2
from services.kit import any as kit_any
from services.kit import errors, loops
from services.kit.rpc import NAMESPACE, Channel, Stream
from services.oci import platforms
from services.oci.platforms_convert import platform_to_pb

_THERE = frozenset({"complete", "already exists", "extracting", "extracted"})
"""Events of blobs of which all bytes are there."""
_PARTS = 10_000
"""Blobs of an image that are counted."""
_PATIENCE = 30.0
"""Seconds for the gateway to be there, such as while it starts anew."""
_LAST_WORDS = 2.0
"""Seconds for the events that come after the end of a transfer."""

_Messages = Stream[any_pb2.Any, any_pb2.Any]


class _Tally:
    """What a transfer's events say of its bytes."""

    def __init__(self, report: Callable[[int, int], None]) -> None:
        self.digest = ""
        self._report = report
        self._parts: dict[str, tuple[int, int]] = {}
        """For each blob its bytes that are there, and all of them."""

    def take(self, event: progress_pb2.Progress) -> None:
        if event.event == "saved" and event.desc.digest:
            self.digest = event.desc.digest
        if not event.name or (event.name not in self._parts and len(self._parts) >= _PARTS):
            return
        done, total = self._parts.get(event.name, (0, 0))
        if event.event == "downloading":
            done, total = max(done, event.progress), max(total, event.total)
        elif event.event in _THERE:
            total = max(total, event.total, event.desc.size) if event.event != "extracting" else total
            done = total
        else:
            return
        self._parts[event.name] = done, total
        self._report(sum(each for each, _ in self._parts.values()), sum(each for _, each in self._parts.values()))


class Puller:
    """Pulls images through ``gateway``, as any client of the node."""

    def __init__(self, gateway: Channel) -> None:
        self._gateway = gateway
        self._transfer = gateway.client(transfer_stubs.TRANSFER)
        self._streaming = gateway.client(streaming_stubs.STREAMING)

    async def pull(self, namespace: str, image: str, report: Callable[[int, int], None]) -> str:
        """Pull an image, as ``wanted.Pull`` says. It fails as Transfer does."""
        await self._gateway.reached(_PATIENCE)
        headers: Mapping[str, str] = {NAMESPACE: namespace}
        platform = platform_to_pb(platforms.default())
        request = transfer_pb2.TransferRequest(
            source=kit_any.pack(registry_pb2.OCIRegistry(reference=image, resolver=registry_pb2.RegistryResolver())),
            destination=kit_any.pack(
                imagestore_pb2.ImageStore(
                    name=image, platforms=[platform], unpacks=[imagestore_pb2.UnpackConfiguration(platform=platform)]
                )
            ),
        )
        tally = _Tally(report)
        request.options.progress_stream = f"fleet-{os.getpid()}-{os.urandom(8).hex()}"
        async with self._streaming.Stream(headers=headers) as stream:
            await stream.send(kit_any.pack(streaming_pb2.StreamInit(id=request.options.progress_stream)))
            if await stream.receive() is None:
                raise errors.Unavailable("the node closed the stream of a pull's progress")
            listening = loops.task("the progress of a pull", _listen(stream, tally))
            try:
                await self._transfer.Transfer(request, headers=headers, timeout=None)
                await asyncio.wait((listening,), timeout=_LAST_WORDS)
            finally:
                listening.cancel()
                await asyncio.wait((listening,))
                if not listening.cancelled():
                    listening.exception()  # marked as seen: the transfer's own error counts
        return tally.digest


async def _listen(stream: _Messages, tally: _Tally) -> None:
    while (value := await stream.receive()) is not None:
        event = kit_any.unpack(value, progress_pb2.Progress)
        if event is not None:
            tally.take(event)
