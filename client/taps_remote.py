"""An operator's taps and faults, over the node's internal socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from api.splitd.taps.v1 import taps_pb2 as pb
from api.splitd.taps.v1 import taps_stubs
from services.kit.rpc import Channel


@dataclass(frozen=True, slots=True, kw_only=True)
class Called:
    """A call that has ended. Times are in nanoseconds, ``time`` since the epoch."""

    call: int
    time: int
    service: str
    path: str
    namespace: str
    sent: int
    sent_bytes: int
    received: int
    received_bytes: int
    duration: int
    code: int
    message: str
    trace: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """A message of a call that has passed."""

    call: int
    time: int
    path: str
    received: bool
    size: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """So many events were dropped before the next one."""

    count: int


Event = Called | Passed | Dropped


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A fault that is asked for."""

    service: str
    method: str
    namespace: str = ""
    latency: float = 0.0
    """Seconds."""
    error: str = ""
    share: float = 1.0
    """From 0 to 1."""
    seconds: float = 60.0
    after: bool = False
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A fault that stands, or has just ended."""

    id: str
    words: str
    left: float
    """Seconds."""
    seen: int
    injected: int


class RemoteTaps:
    """Taps and faults of the node behind ``gateway``, a channel to its internal socket."""

    def __init__(self, gateway: Channel) -> None:
        self._taps = gateway.client(taps_stubs.TAPS)

    async def tap(
        self, service: str = "", method: str = "", namespace: str = "", *, messages: bool = False
    ) -> AsyncIterator[Event | None]:
        """Calls as they pass, until the iteration ends. The first is None: from then on calls are seen."""
        choice = pb.Choice(service=service, method=method, namespace=namespace)
        begun = False
        async for response in self._taps.Tap(pb.TapRequest(choice=choice, messages=messages)):
            if not begun:
                begun = True
                yield None
            if response.dropped:
                yield Dropped(count=response.dropped)
            for event in response.events:
                yield _event(event)

    async def fault(self, asked: Asked) -> Standing:
        """Begin a fault. InvalidArgument says what would be right."""
        request = pb.BeginFaultRequest(
            choice=pb.Choice(service=asked.service, method=asked.method, namespace=asked.namespace),
            latency=round(asked.latency * 1e9),
            error=asked.error,
            share=asked.share,
            duration=round(asked.seconds * 1e9),
            after=asked.after,
            seed=asked.seed,
        )
        return _standing(await self._taps.BeginFault(request))

    async def faults(self) -> list[Standing]:
        """Those that stand now."""
        return [_standing(each) for each in (await self._taps.List(pb.ListRequest())).faults]

    async def stop(self, fault: str = "") -> list[Standing]:
        """End one, or all. NotFound if there is none of that id."""
        return [_standing(each) for each in (await self._taps.StopFaults(pb.StopFaultsRequest(id=fault))).faults]


def _event(event: pb.Event) -> Event:
    if event.WhichOneof("kind") == "message":
        passed = event.message
        return Passed(
            call=event.call,
            time=event.time,
            path=passed.path,
            received=passed.received,
            size=passed.bytes,
            text=passed.text,
        )
    ended = event.ended
    return Called(
        call=event.call,
        time=event.time,
        service=ended.service,
        path=ended.path,
        namespace=ended.namespace,
        sent=ended.sent,
        sent_bytes=ended.sent_bytes,
        received=ended.received,
        received_bytes=ended.received_bytes,
        duration=ended.duration,
        code=ended.code,
        message=ended.message,
        trace=ended.trace,
    )


def _standing(fault: pb.Fault) -> Standing:
    return Standing(id=fault.id, words=fault.words, left=fault.left / 1e9, seen=fault.seen, injected=fault.injected)
