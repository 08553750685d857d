"""The comparing process's side of its two sockets: copies come in by one, and reports go out by the other."""

from __future__ import annotations

import asyncio
import logging
import socket
from pathlib import Path

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError

from api.splitd.shadows.v1 import shadows_pb2 as pb
from api.splitd.shadows.v1 import shadows_stubs
from services.kit import rpc
from services.kit.rpc import Call, Channel
from services.shadows import convert
from services.shadows.pace import Pace
from services.shadows.replay import Replay
from services.shadows.service_remote import RemoteService

log = logging.getLogger(__name__)

LARGEST = 1 << 20
"""Bytes of a message on the socket of copies."""


class ComparisonsServicer:
    """splitd.shadows.v1.Comparisons: the report so far."""

    SERVICE = shadows_stubs.COMPARISONS

    def __init__(self, replay: Replay) -> None:
        self._replay = replay

    async def Get(self, request: Empty, call: Call) -> pb.Report:
        return pb.Report(methods=[convert.method_to_pb(method) for method in self._replay.report()])


async def serve(copies: socket.socket) -> None:
    """Compare until ``copies`` ends, which it does with the gateway. It is a SOCK_SEQPACKET: a
    splitd.shadows.v1.Begin, then Copy messages. The socket is the queue: while there is no room here, nothing is read,
    and the gateway drops what the socket does not take.
    """
    copies.setblocking(False)
    loop = asyncio.get_running_loop()
    begin = pb.Begin.FromString(await loop.sock_recv(copies, LARGEST))
    async with Channel(begin.ours, begin.shadow.route) as ours, _candidate(begin.shadow) as candidate:
        replay, pace = Replay(RemoteService(ours), RemoteService(candidate), prefix=begin.prefix), Pace()
        try:
            async with rpc.serving(Path(begin.socket), [ComparisonsServicer(replay)]):
                while data := await loop.sock_recv(copies, LARGEST):
                    try:
                        message = pb.Copy.FromString(data)
                    except DecodeError as error:
                        log.error("a copy cannot be read, and is left out: %s", error)
                        continue
                    for path, count in message.dropped.items():
                        replay.dropped(path, count)
                    if message.path:
                        await replay.take(convert.copy_from_pb(message))
                        if rest := pace.rest():
                            await asyncio.sleep(rest)
        finally:
            pace.close()
            await replay.close()


def _candidate(shadow: pb.StartRequest) -> Channel:
    return Channel(convert.address_from_pb(shadow), f"{shadow.route}'s candidate", pings="never")
