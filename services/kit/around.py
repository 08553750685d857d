"""What stands around the calls that leave by a channel, and how it is asked. The gateway has such things: taps, faults,
shadows (``gateway/instruments.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Literal, Protocol

from services.kit import errors, observer
from services.kit.call import Headers
from services.kit.observer import Observed
from services.kit.transport import CarriedStream


class Around(Protocol):
    """Stands around the calls that leave by a channel (``Channel.around``): it sees them, may delay them, and may
    fail them. Its methods are called in the context of the call, whose span is the current one.

    ``headers`` are all those that are sent, trace context among them. An exception is the call's, for its caller.
    """

    async def unary(self, path: str, request: bytes, headers: Headers, go: Callable[[], Awaitable[bytes]]) -> bytes:
        """Answer one unary call. ``go`` makes it, within the call's time limit, which this method has too."""
        ...

    def unread(self, path: str) -> bool:
        """Whether a relay may pass a call of this method as it does where nobody stands: it need not come by here."""
        ...

    def stream(self, path: str, headers: Headers, carried: CarriedStream) -> CarriedStream:
        """``carried``, or a stream around it, which passes messages one by one: what waits in it must be bounded, since
        whoever sends and receives waits only for it.
        """
        ...


def standing(around: Around | None, path: str) -> Around | None:
    """``around``, if there is one, and calls of this method must come by it."""
    return None if around is None or around.unread(path) else around


async def surrounded(
    around: Around,
    observed: Observed,
    path: str,
    request: bytes,
    headers: Headers,
    timeout: float | None,
    stall: float | None,
    go: Callable[[], Awaitable[bytes]],
) -> bytes:
    """The answer of a unary call that ``go`` makes, with ``around`` around it. ``timeout``, in seconds, is for both;
    ``stall`` for the time in which ``go`` does not run: the called process keeps its own.

    What then ends the call is ``around``, and the error is marked so (``NodeError.injected``): nobody repeats the call.
    """
    loop = asyncio.get_running_loop()
    by: Literal["", "before", "after"] = "before"
    answer = b""
    try:
        with observer.inside(observed):
            async with asyncio.timeout(timeout) as limit, asyncio.timeout(stall) as still:

                def pause(until: float | None) -> None:
                    with contextlib.suppress(RuntimeError):  # ``around`` calls ``go`` again after its answer
                        still.reschedule(until)

                async def going() -> bytes:
                    nonlocal by, answer
                    pause(None)
                    by = ""
                    try:
                        answer = await go()
                        by = "after"
                        return answer
                    finally:
                        pause(None if stall is None else loop.time() + stall)

                return await around.unary(path, request, {**headers, **dict(observed.headers())}, going)
    except TimeoutError as error:
        if not (limit.expired() or still.expired()):
            raise
        why = late(error) or "not done in time by what stands around the call"
        over = errors.DeadlineExceeded(f"{path}: {why}")
        over.injected, over.lost = by, answer
        raise over from None


def late(error: TimeoutError) -> str:
    """What was waited for when the time was over, in the words of whoever waited; empty if nobody said."""
    return str(error.__cause__) if isinstance(error.__cause__, asyncio.CancelledError) else ""


def silent(name: str, stall: float | None, error: TimeoutError) -> errors.Unavailable:
    """The error of a stream whose service ``name`` has sent nothing for ``stall`` seconds."""
    why = late(error)
    return errors.Unavailable(f"service {name} has been silent for {stall or 0.0:g} s{f' ({why})' if why else ''}")


def surrounded_stream(
    around: Around, observed: Observed, path: str, headers: Headers, carried: CarriedStream
) -> CarriedStream:
    """A streaming call with ``around`` around it."""
    with observer.inside(observed):
        return around.stream(path, {**headers, **dict(observed.headers())}, carried)
