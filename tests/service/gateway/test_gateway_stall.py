"""A raw store that is connected but does not answer any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from api.containerd.services.content.v1 import content_pb2 as pb
from api.containerd.services.content.v1 import content_stubs
from services.kit import errors, rpc
from tests.support import ServiceProcess

SERVICE = content_stubs.CONTENT


class Silent:
    """Content that takes all messages and never answers."""

    SERVICE = SERVICE

    async def Write(
        self, requests: AsyncIterator[pb.WriteContentRequest], call: rpc.Call
    ) -> AsyncIterator[pb.WriteContentResponse]:
        async for _ in requests:
            await asyncio.sleep(3600)
            yield pb.WriteContentResponse()


async def test_a_write_to_a_silent_store_ends(place: Path) -> None:
    """The error names the silent service, after the configured time, though the connection is well. On the wire the
    service ends the call itself, and names that, too.
    """
    said: dict[str, tuple[type[errors.NodeError], str]] = {
        "wire": (errors.DeadlineExceeded, "service content: .*/Write made no progress for 0.3 s"),
        "grpcio": (errors.Unavailable, "service content has been silent for 0.3 s"),
    }
    kind, words = said[rpc.transport()]
    root, state = place / "r", place / "s"
    state.mkdir()
    config = place / "c.toml"
    config.write_text('[gateway]\nstall = "300ms"\n')
    async with rpc.serving(state / "content.sock", [Silent()], grace=0):
        with (
            ServiceProcess("services.metadata", root, state),
            ServiceProcess("gateway", root, state, sockets=("containerd.sock",), config=config),
        ):
            async with (
                rpc.Channel(state / "containerd.sock") as channel,
                channel.client(SERVICE).Write(headers={rpc.NAMESPACE: "n"}) as stream,
            ):
                await stream.send(pb.WriteContentRequest(action=pb.STAT, ref="r"))
                with pytest.raises(kind, match=words):
                    await asyncio.wait_for(stream.receive(), 20)
