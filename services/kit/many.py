"""Many small calls sent as one: calls that are made *together*, in one turn of the loop and to one process, become a
single call (``api/splitd/many``).

A call between processes costs about as much as one of metadata's transactions, so a burst of some sixty calls (an image
has as many layers) costs less as one. This carries over to further hops: what the handlers of such calls ask of other
processes is sent together, too. Each call has its answer as soon as it is done, so that none waits for another. But a
single call cannot be cancelled: its answer is dropped, and its handler stops when all calls that it was sent with are
cancelled, or when the latest of their deadlines is over.

What a call costs where it is answered (a task, spans, counters, a place in a transaction's queue) can be had once for
all calls of one method, too: ``together`` of a servicer names, for some of its methods, what answers several calls
(:data:`services.kit.transport.Together`). In a trace they are one span, with the number of calls.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from api.splitd.many.v1 import many_pb2 as pb
from api.splitd.many.v1 import many_stubs
from services.kit import errors, logs, loops, observer
from services.kit.call import TOGETHER, TOLD, UNARY, Call, Metadata, method_path
from services.kit.relays import relayed
from services.kit.transport import Answering, Carrier, Method, Server

log = logging.getLogger(__name__)

SERVICE = many_stubs.MANY
_PATH = method_path(SERVICE.methods_by_name["Make"])
_CALLS = 128
_BYTES = 1 << 20
"""Bytes of the requests in one call. A larger request is sent alone."""


# ---------------------------------------------------------------------------------------------- serving


class ManyServicer:
    """splitd.many.v1.Many for the servicers and the relay of ``server``, which is set before it serves."""

    SERVICE = SERVICE
    server: Server

    async def Make(self, request: pb.MakeRequest, call: Call) -> AsyncIterator[pb.MakeResponse]:
        done: deque[pb.Answer] = deque()
        more, ending = asyncio.Event(), False

        async def answered(
            numbers: Sequence[int], what: str, work: Coroutine[Any, Any, Sequence[pb.Answer]]
        ) -> Sequence[pb.Answer]:
            """Take the answers of some of the calls; those that are left out are answered alone."""
            try:
                found = await work
            except asyncio.CancelledError:
                if ending:
                    raise
                words = f"{what}: {errors.Cancelled.suffix}"
                found = [pb.Answer(call=number, code=errors.Cancelled.code, message=words) for number in numbers]
            # without this its caller, and all that wait for the end of the whole, would wait for ever
            except Exception:
                log.exception("%s among many failed unexpectedly", what)
                words = str(errors.defect(what))
                found = [pb.Answer(call=number, code=errors.Internal.code, message=words) for number in numbers]
            done.extend(found)
            more.set()
            return found

        async def alone(number: int) -> None:
            one = request.calls[number]
            await answered((number,), one.method, self._answer(number, one, call))

        async def together(numbers: Sequence[int], method: Method) -> None:
            some = [request.calls[number] for number in numbers]
            found = await answered(numbers, method.path, self._answers(method, numbers, some, call))
            begin(sorted({*numbers} - {answer.call for answer in found}))

        def begin(numbers: Iterable[int]) -> None:
            tasks.extend(loops.task("one of many calls", alone(number)) for number in numbers)

        tasks = list[asyncio.Task[None]]()
        for path, numbers in _alike(request.calls).items():
            method = self.server.methods.of_servicers(path, call.headers) if len(numbers) > 1 else None
            if method is None or method.together is None:
                begin(numbers)
            else:
                tasks.append(loops.task("many calls of one method", together(numbers, method)))
        try:
            left = len(request.calls)
            while left:
                await more.wait()
                more.clear()
                left -= len(done)
                answers = list(done)
                done.clear()
                if answers:
                    yield pb.MakeResponse(answers=answers)
        finally:
            ending = True
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _answers(
        self, method: Method, numbers: Sequence[int], ones: Sequence[pb.Call], call: Call
    ) -> list[pb.Answer]:
        """The answers of calls of one method, without those that its own handler is to answer."""
        assert method.together is not None
        TOGETHER.set(True)
        inner = _inner(ones[0], call)
        found: Sequence[Any] = ()
        with Answering(self.server, inner, long=False) as answering:
            observer.several(len(ones))
            found = await method.together([method.decode(one.request) for one in ones], inner)
            inner.size = sum(len(one.request) for one in ones)
        if answering.failure is not None:
            found = [answering.failure] * len(ones)
        answers, told = [], _trailers(inner.trailing)
        for number, one in zip(numbers, found, strict=True):
            if one is None:
                continue
            if isinstance(one, errors.NodeError):
                if one is not answering.failure:
                    logs.failed(method.path, call.optional_namespace, one)
                answer = pb.Answer(
                    call=number, code=one.code, message=str(one), trailers=[*told, *_trailers(one.trailers)]
                )
            else:
                answer = pb.Answer(call=number, response=method.whole(one), trailers=told)
            answers.append(answer)
            told = []
        return answers

    async def _answer(self, number: int, one: pb.Call, call: Call) -> list[pb.Answer]:
        """The answer of one call."""
        TOGETHER.set(True)
        inner = _inner(one, call)
        response = b""
        with Answering(self.server, inner, long=False) as answering:
            response = await self._response(one, inner)
            inner.size = len(one.request) + len(response)
        failure = answering.failure
        trailers = _trailers((*inner.trailing, *(failure.trailers if failure is not None else ())))
        if failure is None:
            return [pb.Answer(call=number, response=response, trailers=trailers)]
        return [pb.Answer(call=number, code=failure.code, message=str(failure), trailers=trailers)]

    async def _response(self, one: pb.Call, call: Call) -> bytes:
        methods = self.server.methods
        method = methods.of_servicers(one.method, call.headers)
        if method is not None and method.arity == UNARY:
            return method.whole(await method.handler(method.decode(one.request), call))
        relay = methods.relay
        if method is not None or relay is None or relay.arity(one.method) != UNARY:
            raise errors.Unimplemented(f"{one.method} among many")
        return await relayed(relay.route(call), one.request, call, together=True)


def _alike(calls: Sequence[pb.Call]) -> dict[str, list[int]]:
    """The places of the calls, by their methods."""
    found: dict[str, list[int]] = {}
    for number, one in enumerate(calls):
        found.setdefault(one.method, []).append(number)
    return found


def _inner(one: pb.Call, call: Call) -> Call:
    """One of the calls, as its handler sees it."""
    traced = {
        name: value for name, value in (("traceparent", one.traceparent), ("tracestate", one.tracestate)) if value
    }
    return Call(one.method, {**call.headers, **traced}, call.deadline, outer=call)


def _trailers(pairs: Iterable[tuple[str, str | bytes]]) -> list[pb.Trailer]:
    return [pb.Trailer(name=name, value=value if isinstance(value, bytes) else value.encode()) for name, value in pairs]


def _failure(answer: pb.Answer) -> errors.NodeError:
    return errors.from_status(
        answer.code,
        answer.message,
        [(t.name, t.value if t.name.endswith("-bin") else t.value.decode()) for t in answer.trailers if t.name != TOLD],
    )


# ---------------------------------------------------------------------------------------------- calling


class _UnderWay:
    """The calls of this process that were sent together and have no answer yet. Each of them enters it."""

    def __init__(self) -> None:
        self._count = 0
        self._next: asyncio.Event | None = None
        """Set while somebody waits for the next answer."""

    def __enter__(self) -> None:
        self._count += 1

    def __exit__(self, *exc: object) -> None:
        self._count -= 1
        if self._next is not None:
            self._next.set()
            self._next = None

    async def answered(self) -> None:
        await asyncio.sleep(0)  # by then, whatever else begins in this turn of the loop has been asked
        if self._count:
            if self._next is None:
                self._next = asyncio.Event()
            await self._next.wait()


_under_way = _UnderWay()


async def answered() -> None:
    """Wait until the first of the calls that are sent together now, or were before, has its answer; if there are none,
    this returns soon. All waiters continue in the same turn of the loop.
    """
    await _under_way.answered()


@dataclass(slots=True, eq=False)
class _Asked:
    path: str
    request: bytes
    trace: Mapping[str, str]
    timeout: float | None
    answer: asyncio.Future[bytes]
    here: Any
    """The span that its caller works in."""
    told: bytes = b""
    """What the answer tells the root of the trace."""


class Gathering:
    """The calls to one process that are made together."""

    def __init__(self, carrier: Carrier) -> None:
        self._carrier = carrier
        self._waiting: dict[Metadata, list[_Asked]] = {}
        """By their headers."""
        self._sending = loops.Tasks()
        self._known = True
        """Whether the peer may know ``Many``."""

    async def unary(
        self, path: str, request: bytes, headers: Metadata, trace: Sequence[tuple[str, str]], timeout: float | None
    ) -> bytes:
        """Make one of them. Its errors are those of ``Carrier.unary``."""
        with _under_way:
            return await self._unary(path, request, headers, trace, timeout)

    async def _unary(
        self, path: str, request: bytes, headers: Metadata, trace: Sequence[tuple[str, str]], timeout: float | None
    ) -> bytes:
        if not self._known:
            return await self._carrier.unary(path, request, (*headers, *trace), timeout)
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._send)
        asked = _Asked(path, request, dict(trace), timeout, loop.create_future(), observer.here())
        self._waiting.setdefault(headers, []).append(asked)
        try:
            return await asked.answer
        finally:
            if asked.told:
                observer.told(asked.told)
            # a failure's traceback holds this frame, which would hold the failure: a cycle, with everything that the
            # caller's frames hold
            del asked

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for headers, asked in waiting.items():
            for some in _divided([each for each in asked if not each.answer.done()]):
                _ends_with(self._sending.start("calls that are made together", self._asked(headers, some)), some)

    async def _asked(self, headers: Metadata, asked: Sequence[_Asked]) -> None:
        try:
            if len(asked) > 1 and self._known:
                try:
                    await self._together(headers, asked)
                except errors.Unimplemented:
                    self._known = False
            if len(asked) == 1 or not self._known:
                await asyncio.gather(*(self._alone(headers, each) for each in asked if not each.answer.done()))
        except asyncio.CancelledError:  # by a transport that is being closed
            for each in asked:
                each.answer.cancel()
            raise
        except Exception as error:
            if not isinstance(error, errors.NodeError):
                log.exception("calls that were made together failed")
                error = errors.Internal("calls that were made together failed, see the service's log")
            for each in asked:
                if not each.answer.done():
                    each.answer.set_exception(type(error).verbatim(str(error), error.trailers))

    async def _alone(self, headers: Metadata, asked: _Asked) -> None:
        observer.resume(asked.here)
        try:
            response = await self._carrier.unary(
                asked.path, asked.request, (*headers, *asked.trace.items()), asked.timeout
            )
        except errors.NodeError as error:
            if not asked.answer.done():
                asked.answer.set_exception(error)
        else:
            if not asked.answer.done():
                asked.answer.set_result(response)
        finally:
            del asked  # as in unary

    async def _together(self, headers: Metadata, asked: Sequence[_Asked]) -> None:
        limits = [each.timeout for each in asked if each.timeout is not None]
        stream = self._carrier.stream(_PATH, headers, max(limits) if len(limits) == len(asked) else None)
        try:
            await stream.send(
                pb.MakeRequest(
                    calls=[pb.Call(method=each.path, request=each.request, **each.trace) for each in asked]
                ).SerializeToString()
            )
            await stream.done_sending()
            while (message := await stream.receive()) is not None:
                for answer in pb.MakeResponse.FromString(message).answers:
                    future = asked[answer.call].answer
                    if future.done():  # its caller was cancelled
                        continue
                    asked[answer.call].told = next((t.value for t in answer.trailers if t.name == TOLD), b"")
                    if answer.code:
                        future.set_exception(_failure(answer))
                    else:
                        future.set_result(answer.response)
            raise errors.Internal("the call ended without an answer")  # for those without an answer
        finally:
            stream.cancel()


def _divided(asked: Sequence[_Asked]) -> list[list[_Asked]]:
    """As many in each call as fit."""
    found: list[list[_Asked]] = []
    room = 0
    for each in asked:
        if not found or len(found[-1]) == _CALLS or len(each.request) > room:
            found.append([])
            room = _BYTES
        found[-1].append(each)
        room -= len(each.request)
    return found


def _ends_with(task: asyncio.Task[None], asked: Sequence[_Asked]) -> None:
    """Cancel ``task`` when nobody waits for any of ``asked`` any more."""
    left, wanted = len(asked), True

    def ended(answer: asyncio.Future[bytes]) -> None:
        nonlocal left, wanted
        left -= 1
        wanted = wanted and not answer.cancelled()
        if not left and not wanted:
            task.cancel()

    for each in asked:
        each.answer.add_done_callback(ended)
