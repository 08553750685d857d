"""The image records in the metadata service, which may be away for a moment."""

from __future__ import annotations

import time
from typing import Any

from api.containerd.services.images.v1 import images_pb2 as images_pb
from api.splitd.records.v1 import records_pb2, records_stubs
from services.kit import errors
from services.kit.hops import Hop
from services.kit.rpc import UNARY_STALL, Call, Channel, method_path

_RECORDS = records_stubs.RECORDS
_LIST = method_path(_RECORDS.methods_by_name["ListImages"])


class ImageRecords:
    """The image records of metadata's Records service, accessed as the caller of ``call``.

    Messages are those of containerd's Images service, and are passed on unchanged. A call first waits for metadata if
    that is away, for at most ``hold`` seconds in total, however often the call is made. Each time, ``hop`` says where
    the call goes, by the name of the image if it has one.
    """

    def __init__(self, hop: Hop[Channel], *, hold: float) -> None:
        self._hop = hop
        self._hold = hold

    async def read(self, method: str, request: Any, call: Call, name: str) -> Any:
        """Make a call that changes nothing; once more if metadata went away meanwhile."""
        patience = time.monotonic() + self._hold
        try:
            return await self._call(method, request, call, name, patience)
        except errors.Unavailable:
            return await self._call(method, request, call, name, patience)

    async def list(self, request: images_pb.ListImagesRequest, call: Call) -> bytes:
        """The answer to ListImages, not decoded: it may have tens of thousands of images."""
        patience = time.monotonic() + self._hold
        try:
            return await self._list(request, call, patience)
        except errors.Unavailable:
            return await self._list(request, call, patience)

    async def _list(self, request: images_pb.ListImagesRequest, call: Call, patience: float) -> bytes:
        channel = await self._channel(call, "", patience)
        answer: bytes = await channel.unary(
            _LIST, request.SerializeToString(), call.passed_on(), call.remaining(), stall=UNARY_STALL
        )
        return answer

    async def change(self, method: str, request: Any, call: Call, name: str) -> Any:
        """Make a call once: if metadata goes away meanwhile, the outcome is unknown."""
        return await self._call(method, request, call, name, time.monotonic() + self._hold)

    async def collect(self, call: Call) -> None:
        """Run a collection and wait for its end, however long it takes."""
        channel = await self._channel(call, "", time.monotonic() + self._hold)
        await channel.client(_RECORDS).Collect(
            records_pb2.CollectRequest(known=True), headers=call.passed_on(), timeout=call.remaining()
        )

    async def _call(self, method: str, request: Any, call: Call, name: str, patience: float) -> Any:
        channel = await self._channel(call, name, patience)
        return await getattr(channel.client(_RECORDS), method)(request, headers=call.passed_on())

    async def _channel(self, call: Call, name: str, patience: float) -> Channel:
        end = patience if call.deadline is None else min(patience, call.deadline)
        channel = self._hop.to(call.optional_namespace, name)
        await channel.reached(max(0.0, end - time.monotonic()))
        return channel
