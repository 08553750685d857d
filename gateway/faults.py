"""Faults that an operator injects at a hop, to see what clients do when one service is slow or fails.

A fault stands for a while around the calls to a service, and is over by itself. Of the calls that it means it takes a
share; one random number is drawn for each of them, so that with the same seed the same sequence of calls gets the same
faults. Such a call is delayed, fails, or both: *before* it is made, so that it never arrives, or *after*, so that it is
done and its answer is lost. Of a stream the last answer is lost: the status, or what a Write answers to its commit.

An injected error is marked (``NodeError.injected``). The gateway does not repeat such a call, does not take the error
for the service's word on what exists, and asks the service what became of a call whose answer was lost. Bookkeeping
that the gateway owes is never faulted (:data:`NEVER`, :func:`gateway.instruments.owed`): a node whose faults are over
is as before.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gateway.choices import Choice
from gateway.instruments import OWED, Go, Order, Standing
from gateway.writes import WRITE, is_commit
from services.kit import errors, tracing
from services.kit.rpc import CarriedStream, Headers
from services.kit.settings import format_duration

log = logging.getLogger(__name__)

When = Literal["before", "after"]

MOST = 64
"""Faults at once."""
LONGEST, SLOWEST = 24 * 3600.0, 600.0
"""Seconds that a fault lasts at most, and by which it delays a call at most."""

_RECORDS = "/splitd.records.v1.Records/"
NEVER = frozenset({f"{_RECORDS}{name}" for name in ("Connect", "Finish", "Cancel")})
"""Calls by which the gateway ends what it began."""
_OWN = ("/splitd.stamp.", "/splitd.snapshotters.", "/splitd.metrics.", "/grpc.health.")
"""The beginnings of calls that the gateway makes for itself."""

CODES: Mapping[str, int] = {errors.name(code): code for code in errors.BY_CODE}


def spared(path: str) -> bool:
    """Whether calls of a method are never faulted."""
    return path in NEVER or path.startswith(_OWN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What an operator asked for. InvalidArgument if it makes no sense."""

    choice: Choice
    latency: float = 0.0
    """Seconds."""
    error: str = ""
    """The name of a gRPC code."""
    share: float = 1.0
    """The part of the calls, above 0 and up to 1."""
    seconds: float = 60.0
    """How long it lasts."""
    when: When = "before"
    seed: int | None = None

    def __post_init__(self) -> None:
        if not self.error and not self.latency:
            raise errors.InvalidArgument("a fault needs a latency, an error, or both")
        if self.error and self.error not in CODES:
            raise errors.InvalidArgument(f"error {self.error[:40]!r} is none of {', '.join(CODES)}")
        if not 0 <= self.latency <= SLOWEST:
            raise errors.InvalidArgument(f"latency is not between 0 s and {format_duration(SLOWEST)}")
        if not 0 < self.share <= 1:
            raise errors.InvalidArgument("share is not above 0 % and at most 100 %")
        if not 0 < self.seconds <= LONGEST:
            raise errors.InvalidArgument(f"a fault lasts more than 0 s and at most {format_duration(LONGEST)}")
        method = self.choice.method
        if self.choice.service in ("", "metadata") and f"{_RECORDS}{method}" in NEVER:
            raise errors.InvalidArgument(
                f"metadata.{method} is bookkeeping that the gateway owes: without it an operation would never end, so "
                "it is not faulted"
            )

    def __str__(self) -> str:
        """``5 % of content.Write: 200ms late, UNAVAILABLE, before the call``"""
        late = [f"{format_duration(self.latency)} late"] if self.latency else []
        does = ", ".join([*late, *([self.error] if self.error else [])])
        return f"{self.share * 100:g} % of {self.choice}: {does}, {self.when} the call"


class Fault:
    """One fault, as an instrument."""

    order = Order.FAULT

    def __init__(self, name: str, spec: Spec) -> None:
        self.name = name
        self.spec = spec
        self.begun = time.time_ns()
        self.until = time.monotonic() + spec.seconds
        self.seen = self.injected = 0
        """Calls that it meant, and those of them that it took."""
        self._random = random.Random(spec.seed)  # noqa: S311
        self.timer: asyncio.TimerHandle | None = None
        self.over = asyncio.Event()

    @property
    def words(self) -> str:
        """For ``splitd routes``."""
        return f"fault {self.name}: {self.spec}, for {format_duration(round(self.left))} more"

    def __repr__(self) -> str:
        return f"fault {self.name}"

    @property
    def left(self) -> float:
        """Seconds until it is over by itself."""
        return max(0.0, self.until - time.monotonic())

    def _takes(self, path: str, headers: Headers) -> bool:
        if not self.spec.choice.means(path, headers) or spared(path) or OWED.get():
            return False
        self.seen += 1
        if self._random.random() >= self.spec.share:
            return False
        self.injected += 1
        span = tracing.current()
        does = f"{self.name}: {self.spec}"
        span.set(**{"splitd.fault": does})
        span.event("fault.injected", **{"splitd.fault": does})
        span.keep()
        return True

    async def late(self, path: str, lost: bytes = b"") -> errors.NodeError | None:
        """Hold a call up; the result is the error that it gets, if any. ``lost`` is the answer that it would have got.
        When the fault is over, the calls that it holds go on.
        """
        words = f"injected by splitd fault ({self.name})"
        if self.spec.latency:
            try:
                async with asyncio.timeout(self.spec.latency):
                    await self.over.wait()
                return None
            except TimeoutError:
                pass
            except asyncio.CancelledError:  # whoever has no more time for it is told why
                raise asyncio.CancelledError(f"late, {words}") from None
        if not self.spec.error:
            return None
        error = errors.BY_CODE[CODES[self.spec.error]](f"{path.rpartition('/')[2]}: {words}")
        error.injected, error.lost = self.spec.when, lost
        return error

    async def unary(self, path: str, request: bytes, headers: Headers, go: Go) -> bytes:
        if not self._takes(path, headers):
            return await go()
        if self.spec.when == "before":
            if (error := await self.late(path)) is not None:
                raise error
            return await go()
        answer = await go()
        if (error := await self.late(path, answer)) is not None:
            raise error
        return answer

    def stream(self, path: str, headers: Headers, carried: CarriedStream) -> CarriedStream:
        if not self._takes(path, headers):
            return carried
        return _Before(self, path, carried) if self.spec.when == "before" else _After(self, path, carried)


class _Before:
    """A stream whose call is delayed, and then made, or not."""

    def __init__(self, fault: Fault, path: str, carried: CarriedStream) -> None:
        self._fault = fault
        self._path = path
        self._carried = carried
        self._waited = asyncio.Lock()
        self._over = False
        self._failure: errors.NodeError | None = None

    async def _wait(self) -> None:
        async with self._waited:
            if not self._over:
                self._failure = await self._fault.late(self._path)
                if self._failure is not None:
                    self._carried.cancel()
                self._over = True
        if self._failure is not None:
            raise self._failure

    async def send(self, message: bytes) -> None:
        await self._wait()
        await self._carried.send(message)

    async def done_sending(self) -> None:
        await self._wait()
        await self._carried.done_sending()

    async def receive(self) -> bytes | None:
        await self._wait()
        return await self._carried.receive()

    async def leading(self) -> Headers:
        await self._wait()
        return await self._carried.leading()

    def trailing(self) -> Headers:
        return {} if self._failure is not None else self._carried.trailing()

    def cancel(self) -> None:
        self._carried.cancel()


class _After:
    """A stream whose last answer is delayed, or lost."""

    def __init__(self, fault: Fault, path: str, carried: CarriedStream) -> None:
        self._fault = fault
        self._path = path
        self._carried = carried
        self._failure: errors.NodeError | None = None

    async def send(self, message: bytes) -> None:
        if self._failure is not None:
            raise self._failure
        await self._carried.send(message)

    async def done_sending(self) -> None:
        if self._failure is not None:
            raise self._failure
        await self._carried.done_sending()

    async def receive(self) -> bytes | None:
        if self._failure is not None:
            raise self._failure
        message = await self._carried.receive()
        if message is None or (self._path == WRITE and is_commit(message)):
            self._failure = await self._fault.late(self._path, message or b"")
            if self._failure is not None:
                raise self._failure
        return message

    async def leading(self) -> Headers:
        return await self._carried.leading()

    def trailing(self) -> Headers:
        return {} if self._failure is not None else self._carried.trailing()

    def cancel(self) -> None:
        self._carried.cancel()


class Faults:
    """The faults of a gateway."""

    def __init__(self, standing: Standing) -> None:
        self._standing = standing
        self._all: dict[str, Fault] = {}
        self._count = 0

    def all(self) -> list[Fault]:
        """Those that stand now, the oldest first."""
        return list(self._all.values())

    def begin(self, spec: Spec) -> Fault:
        """Put up a fault, which is over by itself. ResourceExhausted if there are too many."""
        if len(self._all) >= MOST:
            raise errors.ResourceExhausted(f"there are {MOST} faults already (splitd fault --list)")
        self._count += 1
        fault = Fault(f"f{self._count}", spec)
        self._all[fault.name] = fault
        self._standing.put(fault, spec.choice.stands_at, lambda _: fault)
        fault.timer = asyncio.get_running_loop().call_later(spec.seconds, self._end, fault, "is over")
        log.warning("fault %s is injected for %s: %s", fault.name, format_duration(spec.seconds), spec)
        return fault

    def stop(self, name: str) -> Fault:
        """End one; NotFound if there is none of that name."""
        fault = self._all.get(name)
        if fault is None:
            raise errors.NotFound(f"there is no fault {name[:40]!r} (splitd fault --list shows them)")
        self._end(fault, "was stopped")
        return fault

    def _end(self, fault: Fault, how: str) -> None:
        self._all.pop(fault.name, None)
        fault.over.set()
        self._standing.take(fault)
        if fault.timer is not None:
            fault.timer.cancel()
        log.warning("fault %s %s: it was in %d of %d calls", fault.name, how, fault.injected, fault.seen)

    def close(self) -> None:
        """End all: the process ends."""
        for fault in self.all():
            self._end(fault, "ends with the gateway")
