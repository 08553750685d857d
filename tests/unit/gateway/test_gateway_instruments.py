"""gateway.instruments: their order, and what becomes of a call whose instrument fails."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any

import pytest

from gateway.instruments import Go, Instruments, Order
from services.kit import errors, rpc

CALLS = ("before", "after", "never")


@dataclass(eq=False)
class Named:
    """An instrument that notes its calls; ``fails`` is "before" or "after" the call goes on, or "never"."""

    name: str
    order: Order
    notes: list[str] = field(default_factory=list)
    fails: str = "never"
    refuses: bool = False

    async def unary(self, path: str, request: bytes, headers: rpc.Headers, go: Go) -> bytes:
        self.notes.append(self.name)
        if self.refuses:
            raise errors.Aborted("no")
        if self.fails == "before":
            raise ZeroDivisionError("a bug")
        answer = await go()
        if self.fails == "after":
            raise ZeroDivisionError("a bug")
        return answer

    def stream(self, path: str, headers: rpc.Headers, carried: rpc.CarriedStream) -> rpc.CarriedStream:
        self.notes.append(self.name)
        if self.fails == "opening":
            raise ZeroDivisionError("a bug")
        return Wrapped(carried, self)


class Wrapped:
    def __init__(self, carried: rpc.CarriedStream, owner: Named) -> None:
        self.carried = carried
        self.owner = owner

    async def send(self, message: bytes) -> None:
        self._fail("before")
        await self.carried.send(message)
        self._fail("after")

    async def done_sending(self) -> None:
        await self.carried.done_sending()

    async def receive(self) -> bytes | None:
        self._fail("before receiving")
        message = await self.carried.receive()
        self._fail("after receiving")
        return message

    async def leading(self) -> rpc.Headers:
        return await self.carried.leading()

    def trailing(self) -> rpc.Headers:
        return self.carried.trailing()

    def cancel(self) -> None:
        self.carried.cancel()

    def _fail(self, when: str) -> None:
        if self.owner.fails == when:
            raise ZeroDivisionError("a bug")


class Echo:
    """A stream that answers what it was sent."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.left: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.cancelled = 0
        self.fails: Exception | None = None

    async def send(self, message: bytes) -> None:
        self.sent.append(message)
        self.left.put_nowait(message)

    async def done_sending(self) -> None:
        self.left.put_nowait(None)

    async def receive(self) -> bytes | None:
        if self.fails is not None:
            raise self.fails
        return await self.left.get()

    async def leading(self) -> rpc.Headers:
        return {"a": "b"}

    def trailing(self) -> rpc.Headers:
        return {"c": "d"}

    def cancel(self) -> None:
        self.cancelled += 1


@pytest.fixture
def channel() -> rpc.Channel:
    return rpc.Channel("/nowhere", "peer")


def on(channel: rpc.Channel, *instruments: Named) -> Instruments:
    found = Instruments(channel)
    for each in instruments:
        found.add(each)
    return found


class Service:
    """Answers b"yes", and counts."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls = 0
        self.error = error

    async def __call__(self) -> bytes:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return b"yes"


async def test_taps_are_outermost_and_shadows_innermost(channel: rpc.Channel) -> None:
    """In whatever order they came; without any the channel asks nobody."""
    notes: list[str] = []
    each = [Named(order.name, order, notes) for order in (Order.SHADOW, Order.TAP, Order.OUTCOME, Order.FAULT)]
    instruments = on(channel, *each)
    assert channel.around is instruments
    assert await instruments.unary("/s/M", b"", {}, Service()) == b"yes"
    assert notes == ["TAP", "FAULT", "OUTCOME", "SHADOW"]
    notes.clear()
    instruments.stream("/s/M", {}, Echo())
    assert notes == ["SHADOW", "OUTCOME", "FAULT", "TAP"]  # made from within, used from without
    assert instruments.watched
    for one in each[1:2] + each[3:]:
        instruments.remove(one)
    assert not instruments.watched
    for one in each:
        instruments.remove(one)
    assert channel.around is None


@pytest.mark.parametrize("error", [None, errors.NotFound("it"), OSError("of the transport")], ids=["ok", "no", "bug"])
@pytest.mark.parametrize("fails", CALLS)
async def test_a_failing_instrument_is_taken_off_and_the_call_is_made_once(
    channel: rpc.Channel, caplog: pytest.LogCaptureFixture, fails: str, error: Exception | None
) -> None:
    """The caller gets the service's answer, or its error, whichever it is; the other instrument stays."""
    broken, sound = Named("broken", Order.TAP, fails=fails), Named("sound", Order.FAULT)
    instruments = on(channel, broken, sound)
    service = Service(error)
    call = instruments.unary("/s/M", b"", {}, service)
    if error is None:
        assert await call == b"yes"
    else:
        with pytest.raises(type(error)) as caught:
            await call
        assert caught.value is error
    assert service.calls == 1
    # "after" is not reached where the service fails
    gone = fails == "before" or (fails == "after" and error is None)
    assert (broken in instruments, sound in instruments) == (not gone, True)
    assert [r.levelno for r in caplog.records] == [logging.ERROR] * gone


async def test_an_instrument_may_refuse_a_call(channel: rpc.Channel) -> None:
    """Nothing is sent, and it stays."""
    refusing = Named("refusing", Order.FAULT, refuses=True)
    instruments = on(channel, refusing)
    service = Service()
    with pytest.raises(errors.Aborted):
        await instruments.unary("/s/M", b"", {}, service)
    assert service.calls == 0
    assert refusing in instruments


@pytest.mark.parametrize("fails", ["opening", "before", "after", "before receiving", "after receiving", "never"])
async def test_a_failing_instrument_loses_and_doubles_no_message(
    channel: rpc.Channel, caplog: pytest.LogCaptureFixture, fails: str
) -> None:
    """Wherever in a stream it fails; the instrument within it goes on seeing the call."""
    broken, sound = Named("broken", Order.TAP, fails=fails), Named("sound", Order.SHADOW)
    instruments = on(channel, broken, sound)
    echo = Echo()
    stream = instruments.stream("/s/M", {}, echo)
    got: list[Any] = []
    for message in (b"1", b"2", b"3"):
        await stream.send(message)
        got.append(await stream.receive())
    await stream.done_sending()
    got.append(await stream.receive())
    assert (echo.sent, got) == ([b"1", b"2", b"3"], [b"1", b"2", b"3", None])
    assert (await stream.leading(), stream.trailing()) == ({"a": "b"}, {"c": "d"})
    stream.cancel()
    assert echo.cancelled
    assert (broken in instruments) == (fails == "never")
    assert sound in instruments
    assert len([r for r in caplog.records if r.levelno == logging.ERROR]) == (fails != "never")


async def test_a_failure_from_within_is_not_the_instruments(channel: rpc.Channel) -> None:
    """An exception of the transport passes unchanged."""
    tap = Named("tap", Order.TAP)
    instruments = on(channel, tap)
    echo = Echo()
    echo.fails = RuntimeError("of the transport")
    with pytest.raises(RuntimeError, match="of the transport"):
        await instruments.stream("/s/M", {}, echo).receive()
    assert tap in instruments
