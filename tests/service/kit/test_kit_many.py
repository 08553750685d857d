"""Calls that are made together, over a real socket: one call on the wire, with the result that each would have
alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from api.containerd.services.content.v1 import content_pb2 as pb
from services.kit import errors, rpc
from tests.service.kit.test_kit_rpc import SERVICE, Content
from tests.support import eventually_async, short_directory

pytestmark = pytest.mark.once


@pytest.fixture(autouse=True, params=["wire", "grpcio"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The transport of both ends."""
    monkeypatch.setenv("SPLITD_GRPC_TRANSPORT", request.param)


class Front:
    """A servicer that relays its requests to another."""

    SERVICE = SERVICE

    def __init__(self, back: Any) -> None:
        self.back = back

    async def Info(self, request: pb.InfoRequest, call: rpc.Call) -> pb.InfoResponse:
        answer: pb.InfoResponse = await self.back.Info(request, headers=call.passed_on())
        return answer


class Counted(rpc.Channel):
    """A channel that records its calls."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.carried: list[str] = []
        carrier = self.carrier
        unary, stream = carrier.unary, carrier.stream

        async def noted_unary(path: str, *args: Any) -> bytes:
            self.carried.append(path.rpartition("/")[2])
            return await unary(path, *args)

        def noted_stream(path: str, *args: Any) -> Any:
            self.carried.append(path.rpartition("/")[2])
            return stream(path, *args)

        carrier.unary, carrier.stream = noted_unary, noted_stream  # type: ignore[method-assign, assignment]


@contextlib.asynccontextmanager
async def content(
    servicer: Content | None = None, *, relayed: bool = True
) -> AsyncIterator[tuple[Content, Any, Counted]]:
    with short_directory() as directory:
        servicer = servicer or Content()
        async with (
            rpc.serving(directory / "c.sock", [servicer], relayed=relayed, grace=0.1),
            Counted(directory / "c.sock", "content") as channel,
        ):
            yield servicer, channel.client(SERVICE), channel


async def ask(client: Any, *digests: str, headers: Any = {}) -> list[Any]:
    """Return each request's answer, or its error."""
    answers = await asyncio.gather(
        *(client.Info(pb.InfoRequest(digest=digest), headers=headers, together=True) for digest in digests),
        return_exceptions=True,
    )
    return [answer if isinstance(answer, BaseException) else answer.info.digest for answer in answers]


async def test_concurrent_requests_go_as_one_call() -> None:
    """Each request keeps its headers; a single request goes alone."""
    async with content() as (servicer, client, channel):
        assert await ask(client, *map(str, range(100)), headers={rpc.NAMESPACE: "n"}) == list(map(str, range(100)))
        assert channel.carried == ["Make"]
        assert {call.optional_namespace for call in servicer.seen} == {"n"}
        assert {call.method for call in servicer.seen} == {f"/{SERVICE.full_name}/Info"}
        assert await ask(client, "alone") == ["alone"]
        assert channel.carried == ["Make", "Info"]


async def test_callers_with_other_headers_are_kept_apart() -> None:
    """A call belongs to one caller."""
    async with content() as (_, client, channel):
        answers = await asyncio.gather(
            *(ask(client, "namespace", "namespace", headers={rpc.NAMESPACE: name, rpc.LEASE: "l"}) for name in "ab")
        )
        assert answers == [["a/l", "a/l"], ["b/l", "b/l"]]
        assert channel.carried == ["Make", "Make"]


async def test_each_has_its_own_end() -> None:
    """Errors keep their classes, words and trailers, among answers."""
    async with content() as (_, client, _):
        absent, there, odd, bug = await ask(client, "absent", "there", "trailers", "bug")
        assert there == "there"
        assert (type(absent), str(absent)) == (errors.NotFound, "content absent: not found")
        assert (type(odd), dict(odd.trailers)["grpc-status-details-bin"]) == (errors.FailedPrecondition, b"\x08\x09")
        assert type(bug) is errors.Internal
        missing = await asyncio.gather(
            *(client.Delete(pb.DeleteContentRequest(digest=each), together=True) for each in "ab"),
            return_exceptions=True,
        )
        assert [type(error) for error in missing] == [errors.Unimplemented, errors.Unimplemented]


async def test_an_error_that_cannot_be_said_is_an_error_too() -> None:
    """Its words have a file name that is not valid text: no caller waits for ever, neither alone nor among many."""
    async with content() as (_, client, _):
        async with asyncio.timeout(10):
            alone, among, there = *await ask(client, "unspeakable"), *await ask(client, "unspeakable", "there")
        assert there == "there"
        assert [(type(error), str(error)) for error in (alone, among)] == [
            (errors.NotFound, "content \\udcff: not found")
        ] * 2


async def test_all_end_with_their_channel() -> None:
    """No caller waits for ever."""
    servicer = Content()
    with short_directory() as directory:
        async with rpc.serving(directory / "c.sock", [servicer], relayed=True, grace=0.1):
            async with Counted(directory / "c.sock", "content") as channel:
                asked = asyncio.ensure_future(ask(channel.client(SERVICE), "slow", "slow"))
                await servicer.entered.wait()
            async with asyncio.timeout(10):
                assert all(isinstance(end, errors.NodeError | asyncio.CancelledError) for end in await asked), (
                    asked.result()
                )


async def test_none_waits_for_another() -> None:
    """The handler of a request whose caller has gone ends when all others have."""
    async with content() as (servicer, client, _):
        slow, quick, other = (
            asyncio.ensure_future(client.Info(pb.InfoRequest(digest=each), together=True))
            for each in ("slow", "quick", "other")
        )
        assert {(await quick).info.digest, (await other).info.digest} == {"quick", "other"}
        assert not slow.done()
        assert not servicer.cancelled
        slow.cancel()

        async def cancelled() -> bool:
            return servicer.cancelled == ["Info"]

        await eventually_async(cancelled)


async def test_the_deadline_is_the_latest_of_all() -> None:
    """Only requests with a deadline count."""
    async with content() as (_, client, _):
        calls = [client.Info(pb.InfoRequest(digest="slow"), together=True, timeout=seconds) for seconds in (0.01, 0.3)]
        begun = asyncio.get_running_loop().time()
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(end) for end in ends] == [errors.DeadlineExceeded, errors.DeadlineExceeded]
        assert asyncio.get_running_loop().time() - begun > 0.25


async def test_a_server_that_does_not_know_it_is_asked_one_by_one() -> None:
    """It may be a foreign service in place of ours."""
    async with content(relayed=False) as (_, client, channel):
        assert await ask(client, "a", "b", "c") == ["a", "b", "c"]
        assert await ask(client, "d", "e") == ["d", "e"]
        assert channel.carried.count("Make") == 1


async def test_large_requests_are_divided() -> None:
    """No message becomes larger than the largest request, or a MiB."""
    async with content() as (_, client, channel):
        digests = [f"{number}{'x' * 700_000}" for number in range(3)]
        assert await ask(client, *digests) == digests
        assert channel.carried == ["Info"] * 3
        small = [f"{number}" for number in range(300)]
        assert await ask(client, *small) == small
        assert channel.carried[3:] == ["Make"] * 3


class AllTogether(Content):
    """A servicer that answers some calls together."""

    def __init__(self) -> None:
        super().__init__()
        self.together = {"Info": self.infos}
        self.asked: list[list[str]] = []

    async def infos(self, requests: Sequence[pb.InfoRequest], call: rpc.Call) -> list[Any]:
        self.asked.append([request.digest for request in requests])
        if "bug" in self.asked[-1]:
            raise ValueError("a bug")
        if "busy" in self.asked[-1]:
            raise errors.Unavailable("all of it")
        return [
            None
            if request.digest == "alone"
            else errors.NotFound(f"of {call.optional_namespace}", trailers=(("why", "so"),))
            if request.digest == "absent"
            else pb.InfoResponse(info=pb.Info(digest=f"{request.digest}, too"))
            for request in requests
        ]


async def test_a_servicer_may_answer_several_together() -> None:
    """Each has an answer or an error of its own; what is left out is answered alone, and so is a single call."""
    async with content(AllTogether()) as (servicer, client, _):
        assert isinstance(servicer, AllTogether)
        a, absent, alone, b = await ask(client, "a", "absent", "alone", "b", headers={rpc.NAMESPACE: "n"})
        assert (a, alone, b) == ("a, too", "alone", "b, too")
        assert (type(absent), str(absent), dict(absent.trailers)) == (errors.NotFound, "of n: not found", {"why": "so"})
        assert servicer.asked == [["a", "absent", "alone", "b"]]
        assert await ask(client, "c") == ["c"]
        assert len(servicer.asked) == 1


async def test_what_fails_together_fails_for_all() -> None:
    """A failure of the whole is the error of each, and a defect is an internal one."""
    async with content(AllTogether()) as (_, client, _back):
        assert [(type(error), str(error)) for error in await ask(client, "busy", "a")] == [
            (errors.Unavailable, "all of it: unavailable")
        ] * 2
        assert [type(error) for error in await ask(client, "a", "bug")] == [errors.Internal] * 2


async def test_it_spreads() -> None:
    """Calls that the handlers of such requests make go together too."""
    async with content() as (_, client, back):
        with short_directory() as directory:
            async with (
                rpc.serving(directory / "f.sock", [Front(client)], relayed=True, grace=0.1),
                Counted(directory / "f.sock", "front") as front,
            ):
                assert await ask(front.client(SERVICE), *"abc", "absent") == ["a", "b", "c", NotFound("content absent")]
                assert (front.carried, back.carried) == (["Make"], ["Make"])
                await front.client(SERVICE).Info(pb.InfoRequest(digest="alone"))
                assert back.carried == ["Make", "Info"]


class NotFound(errors.NotFound):
    """An error that equals another with the same words."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, errors.NotFound) and str(other) == str(self)

    __hash__ = None  # type: ignore[assignment]


async def test_all_that_are_under_way_fail_when_the_server_goes() -> None:
    """Each fails as it would alone."""
    servicer = Content()
    with short_directory() as directory:
        async with Counted(directory / "c.sock", "content") as channel:
            async with rpc.serving(directory / "c.sock", [servicer], relayed=True, grace=0.1):
                asked = asyncio.ensure_future(ask(channel.client(SERVICE), "slow", "slow"))
                await servicer.entered.wait()
            assert all(isinstance(end, errors.Unavailable | errors.Cancelled) for end in await asked), asked.result()


async def test_failures_are_freed_without_the_garbage_collector() -> None:
    """Frames of a failed call refer to its data. If they referred to the exception too, all of it would stay until a
    garbage collection, which a busy process cannot often afford.
    """
    if rpc.transport() != "wire":
        pytest.skip("grpcio has cycles of its own")
    async with content() as (_, client, _back):
        with short_directory() as directory:
            async with (
                rpc.serving(directory / "f.sock", [Front(client)], relayed=True, grace=0.1),
                Counted(directory / "f.sock", "front") as front,
            ):
                gc.collect()
                before = _failures()  # of other tests
                gc.disable()
                try:
                    for many in (1, 3):
                        assert (
                            await ask(front.client(SERVICE), *["absent"] * many) == [NotFound("content absent")] * many
                        )
                    with pytest.raises(errors.NotFound):
                        await front.client(SERVICE).Info(pb.InfoRequest(digest="absent"))

                    async def forgotten() -> bool:
                        return all(any(one is other for other in before) for one in _failures())

                    await eventually_async(forgotten, "what failed is still there")
                finally:
                    gc.enable()


def _failures() -> list[errors.NotFound]:
    return [one for one in gc.get_objects() if isinstance(one, errors.NotFound)]
