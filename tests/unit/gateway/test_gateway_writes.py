"""The calls of a Write to the raw store."""

from __future__ import annotations

from typing import cast

import pytest

from api.containerd.services.content.v1 import content_pb2 as pb
from gateway.store import Ingest, Intent
from gateway.upstream import Upstream
from gateway.writes import Commit, RawCommit, _Write
from services.kit import errors
from services.kit.rpc import Call

DIGEST = "sha256:" + "a" * 64


class Raw:
    """A raw store with its own channel and stream. It dies once at the first message with one of the actions in
    ``dies``.
    """

    def __init__(self, *dies: int) -> None:
        self.name = "content"
        self.channel, self.watched = self, False
        self.heard: list[tuple[int, str, str]] = []
        self._dies = list(dies)
        self._answer: pb.WriteContentResponse | None = None

    async def ready(self, call: Call) -> Raw:
        return self

    def stream(self, method: str, headers: object, *, stall: float) -> Raw:
        return self

    async def send(self, message: bytes) -> None:
        request = pb.WriteContentRequest.FromString(message)
        self.heard.append((request.action, request.ref, request.expected))
        if request.action in self._dies:
            self._dies.remove(request.action)
            raise errors.Disconnected("the raw store died")
        self._answer = pb.WriteContentResponse(action=request.action, digest=DIGEST, offset=5)

    async def receive(self) -> bytes | None:
        answer, self._answer = self._answer, None
        return None if answer is None else answer.SerializeToString()

    async def __aexit__(self, *exc: object) -> None:
        return None


async def committed(raw: Raw, *messages: pb.WriteContentRequest) -> None:
    """Make a Write of these messages, repeated as often as the raw store dies."""

    async def commit(call: Call, raw: object, raw_commit: RawCommit, **how: object) -> tuple[str, int]:
        while True:
            try:
                return await raw_commit(Intent(id="i", raw_ref="raw"))
            except errors.Disconnected:
                continue

    ingest = Ingest(ref="r", raw_ref="raw")
    async with _Write(
        cast("Commit", commit), cast("Upstream", raw), Call("/Write", {}), {}, ingest, messages[0], 60.0
    ) as write:
        for message in messages:
            answer = pb.WriteContentResponse.FromString(await write.answer(message))
    assert (answer.action, answer.digest, answer.offset) == (pb.COMMIT, DIGEST, 5)


STAT, COMMIT = (
    pb.WriteContentRequest(action=pb.STAT, ref="r"),
    pb.WriteContentRequest(action=pb.COMMIT, ref="r", data=b"12345", expected=DIGEST),
)
RAW_STAT, RAW_COMMIT = (pb.STAT, "raw", ""), (pb.COMMIT, "raw", DIGEST)


@pytest.mark.parametrize(
    ("raw", "messages", "heard"),
    [
        (Raw(), [COMMIT], [RAW_COMMIT]),
        (Raw(), [STAT, COMMIT], [RAW_STAT, RAW_COMMIT]),
        (Raw(pb.COMMIT), [COMMIT], [RAW_COMMIT, RAW_STAT, RAW_COMMIT]),
        (Raw(pb.COMMIT), [STAT, COMMIT], [RAW_STAT, RAW_COMMIT, RAW_STAT, RAW_COMMIT]),
    ],
    ids=[
        "a commit alone",
        "after an opening",
        "a commit alone, of a store that dies",
        "after an opening, of a store that dies",
    ],
)
async def test_a_commit_opens_the_raw_write(
    raw: Raw, messages: list[pb.WriteContentRequest], heard: list[tuple[int, str, str]]
) -> None:
    """If it is the first message, no other call comes before it: a small blob takes one message. After a death the raw
    store is opened with STAT, as always.
    """
    await committed(raw, *messages)
    assert raw.heard == heard
