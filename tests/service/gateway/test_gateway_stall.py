"""A raw store that is connected but does not answer any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from api.containerd.services.content.v1 import content_pb2 as pb
from api.containerd.services.content.v1 import content_stubs
from api.splitd.localfiles.v1 import localfiles_pb2 as files_pb
from api.splitd.localfiles.v1 import localfiles_stubs
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

    async def Info(self, request: pb.InfoRequest, call: rpc.Call) -> pb.InfoResponse:
        raise errors.NotFound(f"content {request.digest}")


class SilentFiles:
    """Its files: commits never end."""

    SERVICE = localfiles_stubs.LOCAL_FILES

    async def Begin(self, request: files_pb.BeginRequest, call: rpc.Call) -> files_pb.BeginResponse:
        return files_pb.BeginResponse(path="/dev/null")

    async def Commit(self, request: files_pb.CommitRequest, call: rpc.Call) -> files_pb.CommitResponse:
        await asyncio.sleep(3600)
        return files_pb.CommitResponse()


@asynccontextmanager
async def gateway(place: Path) -> AsyncIterator[Path]:
    """A gateway's directory STATE. Its content is silent, and may be for 0.3 s."""
    root, state = place / "r", place / "s"
    state.mkdir()
    config = place / "c.toml"
    config.write_text('[gateway]\nstall = "300ms"\n')
    async with rpc.serving(state / "content.sock", [Silent(), SilentFiles()], grace=0):
        with (
            ServiceProcess("services.metadata", root, state),
            ServiceProcess("gateway", root, state, sockets=("containerd.sock",), config=config),
        ):
            yield state


async def test_a_write_to_a_silent_store_ends(place: Path) -> None:
    """The error names the silent service, after the configured time, though the connection is well. On the wire the
    service ends the call itself, and names that, too.
    """
    said: dict[str, tuple[type[errors.NodeError], str]] = {
        "wire": (errors.DeadlineExceeded, "service content: .*/Write made no progress for 0.3 s"),
        "grpcio": (errors.Unavailable, "service content has been silent for 0.3 s"),
    }
    kind, words = said[rpc.transport()]
    async with gateway(place) as state:
        async with (
            rpc.Channel(state / "containerd.sock") as channel,
            channel.client(SERVICE).Write(headers={rpc.NAMESPACE: "n"}) as stream,
        ):
            await stream.send(pb.WriteContentRequest(action=pb.STAT, ref="r"))
            with pytest.raises(kind, match=words):
                await asyncio.wait_for(stream.receive(), 20)


async def test_a_commit_of_a_file_in_a_silent_store_ends(place: Path) -> None:
    """It may take any time, but not stand still: the caller of this one waits without a limit of its own."""
    headers = {rpc.NAMESPACE: "n"}
    async with gateway(place) as state, rpc.Channel(state / "internal.sock", "gateway") as channel:
        files = channel.client(localfiles_stubs.LOCAL_FILES)
        await files.Begin(files_pb.BeginRequest(ref="r"), headers=headers)
        commit = files_pb.CommitRequest(ref="r", size=1, digest=f"sha256:{'a' * 64}", computed=True)
        with pytest.raises(errors.DeadlineExceeded, match="service content: .*LocalFiles/Commit made no progress for"):
            await asyncio.wait_for(files.Commit(commit, headers=headers, timeout=None), 20)
