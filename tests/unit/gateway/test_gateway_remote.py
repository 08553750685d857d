"""Reporting the end of an intent to metadata."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from api.splitd.records.v1 import records_pb2 as pb
from gateway.hop import Hop
from gateway.remote import RemoteRecords
from gateway.store import Intent, Outcome
from services.kit import errors
from services.kit.rpc import Call
from tests.support import eventually_async

FULL = errors.ResourceExhausted("metadata store: no space left on device")


class Metadata:
    """Metadata that gives the answers in ``answers``, the last of them repeatedly, and records published events."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []
        self.published: list[str] = []
        self.name, self.up = "metadata", False
        self.channel, self.on_connect = SimpleNamespace(client=lambda _: self), list[Any]()

    def _asked(self, name: str) -> Any:
        self.asked.append(name)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def Finish(self, request: Any, **_: Any) -> Any:
        return self._asked("Finish")

    async def Cancel(self, request: Any, **_: Any) -> Any:
        return self._asked("Cancel")

    def publish(self, namespace: str, topic: str, event: Any) -> None:
        self.published.append(topic)

    def records(self, **seconds: float) -> RemoteRecords:
        return RemoteRecords(Hop("metadata", self), self, content="content", snapshotters=(), **seconds)  # type: ignore[arg-type]


FINISHED = pb.Finished(events=[pb.Event(namespace="n", topic="/snapshot/prepare")])


async def test_a_waiting_caller_gets_disk_full_and_metadata_learns_the_outcome(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The caller does not wait ten minutes, in which a client without a deadline would hang. When there is room again,
    the intent ends and its events are published.
    """
    metadata = Metadata(FULL)
    told = metadata.records(pause=0.01, full=0.05)
    with pytest.raises(errors.ResourceExhausted, match="no space left on device"):
        await asyncio.wait_for(told.finish(Call("m", {}), Intent(id="i"), Outcome()), 10)
    await eventually_async(
        lambda: asyncio.sleep(0, set(told._open) == {"i"}), "the intent is not among those that are open"
    )
    metadata.answers.append(FINISHED)
    await eventually_async(
        lambda: asyncio.sleep(0, metadata.published == ["/snapshot/prepare"]), "the intent does not end"
    )
    assert not told._open
    assert caplog.text.count("Finish of an intent is repeated") == 2


async def test_a_metadata_that_is_away_is_waited_for() -> None:
    """Its restart, or a moment without room, fails no call."""
    metadata = Metadata(errors.Unavailable("metadata"), FULL, FINISHED)
    await metadata.records().finish(Call("m", {}), Intent(id="i"), Outcome())
    assert metadata.asked == ["Finish"] * 3
    assert metadata.published == ["/snapshot/prepare"]
