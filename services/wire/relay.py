"""Calls that pass through: a client's stream and an upstream's, joined frame by frame.

Headers are rewritten if the gateway owns them. DATA is passed on as it came, without joining messages. Trailers are the
upstream's. A side that stops reading blocks the side that writes to it, and nothing else: bytes that could not be
passed on are not given back to the window of the stream that they came by.

Where somebody stands around the upstream's channel, a call passes message by message instead
(:mod:`services.wire.relay_messages`).

If the upstream goes away before it has answered, the call is repeated if its :class:`services.kit.relays.Route` allows
it, or if the upstream has certainly not looked at it. For this the request is kept, if it is small.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, cast

from google.protobuf.message import DecodeError

from services.kit import errors, logs, loops, observer
from services.kit.around import Around, standing
from services.kit.call import CURRENT, NAMESPACE, STOPPING, TOLD, Call, shorter
from services.kit.observer import Observed
from services.kit.relays import Answers, Elsewhere, Meaning, Note, Remembered, Upstream
from services.wire import eager, headers, messages, outcomes
from services.wire.answers import HEAD, OK, refusal
from services.wire.channel import ClientLink, WireCarrier
from services.wire.client_call import Unary
from services.wire.clients import client_of
from services.wire.frames import Code
from services.wire.headers import Head
from services.wire.plans import Plan
from services.wire.relay_messages import Attempt
from services.wire.relay_upstream import Answering, Noting
from services.wire.streams import Chunk, Stream

if TYPE_CHECKING:
    from services.wire.server import ServerLink, WireServer

log = logging.getLogger(__name__)

_KEPT = 64 << 10
"""A longer request is not repeated."""
_SHOWN = 1024
"""Bytes of a request that an entrance sees."""
_ANY = 1 << 30
"""Drained is reported at every step."""


class Passage:
    """One call that passes through. It is the owner of the client's stream."""

    __slots__ = (
        "_admitted",
        "_answered",
        "_asked",
        "_attempt",
        "_begun",
        "_by_messages",
        "_debt",
        "_early",
        "_ended",
        "_heard",
        "_kept",
        "_link",
        "_note",
        "_observed",
        "_part",
        "_plan",
        "_reader",
        "_server",
        "_size",
        "_stall",
        "_stream",
        "_target",
        "_task",
        "_to",
        "_up",
        "_up_debt",
        "_up_link",
        "_up_stream",
        "deadline",
        "head",
        "over",
        "working",
    )

    def __init__(self, server: WireServer, link: ServerLink, stream: Stream, head: Head, plan: Plan) -> None:
        self.head = head
        self._server = server
        self._link = link
        self._stream = stream
        self._plan = plan
        self._early = bytearray()
        """Bytes that came before there was an upstream to send them to."""
        self._ended = False
        """Whether the client has sent all of its request."""
        self._kept: bytearray | None = bytearray()
        """The request so far, to repeat it; None if it is too long."""
        self._part = 0
        """Bytes of the incomplete request, as they count for the client's connection."""
        self._debt = self._up_debt = 0
        """Bytes that wait on the other side: the client's, the upstream's."""
        self._answered = False
        self._admitted = plan.route.admit is None
        self._begun = False
        self._attempt = 0
        self._heard = False
        self.over = False
        self.working = False
        self._task: asyncio.Task[None] | None = None
        self._reader: asyncio.Future[None] | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._observed: Observed | None = None
        """None until the call has room; its request has mostly come by then."""
        self._size = 0
        self._note: Note | None = None
        """Takes the answer, if it is to be remembered."""
        self._asked: Unary | None = None
        self._target: Upstream | None = None  # that the route names for this call, in the place of the hop's
        self._to: Upstream | None = None
        """The upstream that answers, once the hop was asked. A repeated call may have another."""
        self._by_messages: Attempt | None = None
        """Set while the call passes message by message."""
        self._up: Answering | None = None
        self._up_link: ClientLink | None = None
        self._up_stream: Stream | None = None
        self.deadline: float | None = None

    @property
    def counted(self) -> bool:
        """Whether it counts among the calls that are in work."""
        return self._plan.counted

    @property
    def answers(self) -> bool:
        """Whether it is one request with its answer, or with answers that need no further request."""
        return self._plan.single and not self._plan.long

    @property
    def long(self) -> bool:
        """Whether it lasts as long as the thing that it watches."""
        return self._plan.long

    def begin(self, end: bool) -> None:
        """The client's head has come; with ``end``, all of its request."""
        self._ended = end
        self._server.passages.add(self)
        if self.head.problem:
            self.fail(errors.Internal(self.head.problem))
            return
        route = self._plan.route
        limit = shorter(self.head.timeout, route.timeout)
        if limit is not None:
            self.deadline = time.monotonic() + limit
            self._server.deadlines.add(self, limit)
        if not end and self._plan.single:
            self._link.incomplete[self] = time.monotonic() + self._link.limits.request
        self._link.starting.append((self, limit))

    def start(self, limit: float | None) -> None:
        """Send the call to the upstream, now or when that is connected, or when its request begins to come."""
        self._begun = True
        if self._server.entrance is not None and self._plan.single and not (self._early or self._ended):
            return  # the first bytes of the request begin it: they say the entrance what the call is about
        self._observe()
        chosen = self._chosen() if self._admitted else None
        if chosen is not None and chosen.is_ready() and standing(chosen.channel.around, self.head.path) is None:
            if self._plan.route.remembered is not None and self._remembers(self._plan.route.remembered, chosen):
                return
            link = self._carrier().link
            if link is not None and not link.full:
                self._start(link, limit)
                return
        if self._admitted or self._early or self._ended:  # else its first message must come first
            if not self._admitted and self._ask():
                return
            self._task = eager.start(self._prepare(), self._link.loop)

    def _observe(self) -> Observed:
        if self._observed is None:
            head, entrance = self.head, self._server.entrance
            if entrance is None:
                self._observed = observer.began("relay", head.path, head.headers)
            else:
                first = b"" if head.encoding else bytes(self._early[messages.PREFIX.size : _SHOWN])
                self._observed = entrance.began(self._link, "relay", head.path, head.headers, first)
        return self._observed

    def _ask(self) -> bool:
        """Ask the route's question, if this is an ordinary call. The result is whether it was asked."""
        question = self._plan.route.question
        if question is None or not self._ended or self.head.encoding:
            return False
        upstream = question.hop.to(self._plan.namespace)
        if not question.ready(upstream) or upstream.channel.around is not None:
            return False
        found = messages.whole(self._early, self._link.limits.message)
        if found is None:
            return False
        try:
            request, meaning, meanwhile = question.ask(found[0])
        except DecodeError:
            return False
        note = None
        if question.remembered is not None:
            asked = upstream, question.method, self._plan.namespace, request
            known = question.remembered.find(*asked)
            if known is not None:
                meanwhile()
                self._learnt(meaning, known)
                return True
            note = question.remembered.asked(*asked)
        carrier = cast("WireCarrier", upstream.channel.carrier)
        observed = self._observe()
        asking = observer.asking(observed, question.method) if observed.inside else None
        block = self._plan.question + (b"" if asking is None else headers.plain(asking.headers()))
        self._asked = carrier.ask(question.method, block, request, question.timeout)
        if self._asked is None:
            if asking is not None:
                asking.left()
            return False
        self._asked.answer.add_done_callback(partial(self._told, meaning, asking, note))
        self._link.loop.call_soon(meanwhile)  # the question is sent before that
        return True

    def _told(
        self, meaning: Meaning, asking: Observed | None, note: Note | None, answer: asyncio.Future[bytes]
    ) -> None:
        self._asked = None
        if answer.cancelled():  # the call that it was asked for has ended
            if asking is not None:
                asking.left()
            return
        failed = (error := answer.exception()) is not None
        if asking is not None:
            asking.ended(error.code if isinstance(error, errors.NodeError) else 2 * failed, str(error or ""))
        if not failed and note is not None:
            note(answer.result())
        if not self.over:
            self._learnt(meaning, None if failed else answer.result())

    def _learnt(self, meaning: Meaning, answer: bytes | None) -> None:
        """Go on with the answer to the question; None: there is none."""
        try:
            answers = False if answer is None else meaning(answer)
        except Exception as error:
            self._failed(error)
            return
        if answers is False or not self._settled(answers):
            self._task = eager.start(self._prepare(), self._link.loop)

    def _settled(self, answers: Answers | Elsewhere | None) -> bool:
        """Take the route's word about the call: whether it is answered now. Else it passes."""
        if isinstance(answers, Elsewhere):
            self._target, answers = answers.upstream, answers.answers
        if answers is not None and self._has_room(sum(map(len, answers))):
            self._answer(answers)
            return True
        self._admitted = True
        return False

    # -- finding the upstream

    def _chosen(self) -> Upstream:
        """Ask the hop for the upstream."""
        self._to = self._target or self._plan.route.hop.to(self._plan.namespace)
        return self._to

    def _name(self) -> str:
        return "" if self._to is None else self._to.name

    def _ours(self) -> bool:
        return self._to is not None and self._to.channel.ours

    def _carrier(self) -> WireCarrier:
        assert self._to is not None
        return cast("WireCarrier", self._to.channel.carrier)

    def _call(self) -> Call:
        return Call(self.head.path, self.head.headers, self.deadline)

    async def _prepare(self, delay: float = 0.0) -> None:
        route, call = self._plan.route, self._call()
        CURRENT.set(call)
        self._observe().enter()
        try:
            if not self._admitted:
                assert route.admit is not None
                if self._settled(await route.admit(await self._first_message(), call)):
                    return
            if delay:
                await asyncio.sleep(delay)
            channel = await (self._to or self._chosen()).ready(call)
            if (around := standing(channel.around, self.head.path)) is not None:
                await self._pass_messages(around, call)
                return
            link = await self._carrier().ready()
            if not self.over:
                self._start(link, call.remaining())
        except Exception as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        """Answer with an error that came up here. One that is none of the node's is a bug."""
        if not isinstance(error, errors.NodeError):
            log.error("%s failed unexpectedly", self.head.path, exc_info=error)
            error = errors.defect(self.head.path)
        self.fail(error)

    async def _pass_messages(self, around: Around, call: Call) -> None:
        """Carry the call to its end message by message."""
        early, self._early = self._early, bytearray()
        owed, self._debt = self._debt, 0
        self._by_messages = attempt = Attempt(self._link, self._stream, self.head.encoding, owed)
        attempt.feed(early, self._ended, owed=False)
        failure: errors.NodeError | None = None
        try:
            await attempt.run(
                self._carrier(),
                around,
                self.head.path,
                self._plan.passed_on(self.head),
                self._observe(),
                ours=self._ours(),
                unary=self._plan.unary,
                timeout=call.remaining(),
                stall=self._plan.route.stall,
                name=self._name(),
            )
        except errors.NodeError as error:
            failure = error
        finally:
            self._answered = self._answered or attempt.answered
            self._size += attempt.size
        if self.over:
            return
        if isinstance(failure, errors.Disconnected):
            self._by_messages = None
            self._lost(failure)
            return
        told = attempt.trailing.get(TOLD)
        passes = told is not None and observer.told_relay(self._observe(), self.head.headers, told)
        tail = attempt.tail(failure, told=passes)
        self._link.connection.send_tail(self._stream, tail if self._answered else HEAD + tail)
        self._link.flush_soon()
        self._finish(0 if failure is None else failure.code, "" if failure is None else str(failure))

    def _has_room(self, size: int) -> bool:
        """Whether so much can be sent at once. A client that gives no window gets the upstream's answer, which waits
        there, instead of an answer that would wait here.
        """
        return size + messages.PREFIX.size <= self._link.connection.room(self._stream)

    def _answer(self, answers: Answers) -> None:
        """Answer without the upstream."""
        if self.over:
            return
        connection, stream = self._link.connection, self._stream
        connection.send_head(stream, HEAD)
        for answer in answers:
            connection.send(stream, messages.prefix(answer), answer)
            self._size += len(answer)
        connection.send_tail(stream, OK)
        self._link.flush()  # the answer is complete: waiting for another turn of the loop gains nothing
        self._finish(0, "")

    def _remembers(self, remembered: Remembered, upstream: Upstream) -> bool:
        """Answer as the upstream did before, if it would again; else its answer is to be remembered. The result is
        whether the call was answered.
        """
        stream = self._stream
        if not self._ended or self.head.encoding or upstream.channel.around is not None:
            return False
        asked = upstream, self.head.path, self._plan.namespace, bytes(self._early)
        answer = remembered.find(*asked)
        if answer is None:
            self._note = remembered.asked(*asked)
            return False
        if len(answer) > self._link.connection.room(stream):  # as in :meth:`_has_room`
            return False
        observer.remembered(self._observe())
        self._link.connection.answer(stream, HEAD, answer, OK)
        self._link.flush()
        self._size += len(answer)
        self._finish(0, "")
        return True

    async def _first_message(self) -> bytes:
        assembler = messages.Assembler(self._link.limits.message, self.head.encoding)
        seen = 0
        while True:
            found = assembler.feed(bytes(self._early[seen:]))
            if found:
                return found[0]
            seen = len(self._early)
            if self._ended or seen >= self._link.limits.window // 2:
                raise errors.InvalidArgument(f"{self.head.path} without a request")
            self._reader = self._link.loop.create_future()
            await self._reader

    def _start(self, link: ClientLink, limit: float | None) -> None:
        """Open the upstream's stream, and send it what has come so far."""
        if not self._ours():
            limit = self._watched(limit)
        if limit == self._plan.route.timeout:
            block = self._plan.limited + self._link.name
        else:
            block = self._plan.block + self._link.name + headers.timeout(max(limit or 0.0, 0.001))
        block += self._plan.along(self.head)
        if self._ours():
            block += self._plan.stalling
        along = self._observe().headers()
        if along:
            block += headers.plain(along)
        self._up = Answering(self) if self._note is None else Noting(self, self._note)
        self._up_link = link
        self._up_stream = stream = link.open(self._up, block)
        stream.low = self._stream.low = _ANY
        early, self._early = bytes(self._early), bytearray()
        if early or self._ended:
            link.connection.send(stream, early, end=self._ended)
            self.settle()
        link.flush_soon()

    def _watched(self, limit: float | None) -> float | None:
        """Watch an upstream that does not do so itself. Returns how long the call may take."""
        stall = self._plan.route.stall
        if stall is not None and not self._plan.counted:
            self._stall = self._stall or self._link.loop.call_later(stall, self._silent)
        elif stall is not None and (limit is None or limit > stall):
            limit, self.deadline = stall, time.monotonic() + stall
            self._server.deadlines.discard(self)
            self._server.deadlines.add(self, stall)
        return limit

    def _again(self) -> None:
        self._let_go()
        self._up = self._up_link = self._up_stream = self._to = None
        assert self._kept is not None
        self._early = bytearray(self._kept)
        self._task = loops.aside("a call that is made again", self._prepare(0.05))

    # -- the client's side: Owner

    def on_data(self, chunk: Chunk, end: bool) -> None:
        if self.over:
            return
        self._ended = end
        size = len(chunk)
        self._size += size
        if self._kept is not None:
            self._kept += chunk
            if len(self._kept) > _KEPT:
                self._kept = None
        self._debt += size
        if self._plan.single and not self._fits(size, end=end):
            return
        link = self._up_link
        if self._by_messages is not None:
            self._debt = 0
            self._by_messages.feed(chunk, end)
            return
        if link is None or self._up_stream is None:
            self._early += chunk
            if self._begun and self._task is None:
                self.start(self._call().remaining())
            elif self._reader is not None and not self._reader.done():
                self._reader.set_result(None)
            return
        link.connection.send(self._up_stream, chunk, end=end)
        link.flush_soon()
        self.settle()

    def _fits(self, size: int, *, end: bool) -> bool:
        """Count a part of the one request. The upstream joins the parts, for many clients; this bound is for each
        client.
        """
        link = self._link
        if end:
            self._complete()
            return True
        self._part += size
        link.assembling += size
        if link.assembling <= link.limits.assembling:
            return True
        self.fail(outcomes.crowded(link.limits.assembling))
        return False

    def _complete(self) -> None:
        self._link.incomplete.pop(self, None)
        self._link.assembling -= self._part
        self._part = 0

    def overdue(self) -> None:
        """The request is still not complete."""
        self.fail(outcomes.overdue(self.head.path, self._link.limits.request))

    def settle(self) -> None:
        """Give back to the client's window what the upstream's stream has sent."""
        assert self._up_stream is not None
        sent = self._debt - self._up_stream.queued
        if sent > 0:
            self._debt -= sent
            self._link.consumed(self._stream, sent)

    def on_trailers(self, head: Head) -> None:
        self.on_data(b"", end=True)

    def on_drained(self) -> None:
        """The client has read, so the upstream may write more."""
        if self._by_messages is not None:
            self._by_messages.drained()
            return
        sent = self._up_debt - self._stream.queued
        if sent > 0 and self._up_link is not None and self._up_stream is not None:
            self._up_debt -= sent
            self._up_link.consumed(self._up_stream, sent)

    def on_reset(self, code: int, reason: str, *, local: bool) -> None:
        self._abandon()

    def on_lost(self, reason: str) -> None:
        self._abandon()

    def _abandon(self) -> None:
        if not self.over:
            self._finish(errors.Cancelled.code, "cancelled")

    # -- the upstream's side: Passing

    def heeds(self, owner: object) -> bool:
        return self._up is owner and not self.over

    def answer_head(self, head: Head) -> None:
        self._heard = self._answered = True
        self._link.connection.send_head(self._stream, head.encoded())
        self._link.flush_soon()

    def answer_data(self, chunk: Chunk) -> None:
        self._heard = True
        size = len(chunk)
        self._size += size
        self._up_debt += size
        self._link.connection.send(self._stream, chunk)
        self._link.flush_soon()
        self.on_drained()

    def answer_tail(self, head: Head) -> None:
        if head.code == errors.Unavailable.code and STOPPING in head.headers:
            self.lost(head.message)
            return
        if not self._answered:
            failure = outcomes.of_response(head, self._name())
            if failure is not None and head.code is None:
                self.fail(failure)
                return
        elif head.code is None:
            self.fail(errors.Internal("server closed the stream without sending trailers"))
            return
        tail = head.encoded()
        if TOLD in head.headers and not observer.told_relay(self._observe(), self.head.headers, head.headers[TOLD]):
            tail = head.without(TOLD)
        self._link.connection.send_tail(self._stream, tail)
        self._link.flush_soon()
        self._finish(head.code or 0, head.message)

    def lost(self, reason: str, *, unseen: bool = False) -> None:
        """The upstream went away. With ``unseen`` it has certainly not looked at the call."""
        error = self._carrier().disconnected(reason)
        error.unseen = unseen
        self._lost(error)

    def _lost(self, error: errors.Disconnected) -> None:
        route = self._plan.route
        allowed = 3 if error.unseen and route.repeats < 3 else route.repeats
        if not self._answered and self._kept is not None and self._attempt < allowed:
            self._attempt += 1
            log.info("%s is repeated: service %s went away", self.head.path, self._name())
            self._again()
            return
        self.fail(error)

    # -- its end

    def expire(self) -> None:
        """The deadline has passed."""
        self.fail(outcomes.late(self.head.path, self._name() or self._plan.route.hop.name))

    def _silent(self) -> None:
        stall = self._plan.route.stall
        assert stall is not None
        # if the client does not read, the silence is not the upstream's
        if self._heard or self._stream.queued or self._up_stream is None:
            self._heard = False
            self._stall = self._link.loop.call_later(stall, self._silent)
        else:
            self.fail(errors.Unavailable(f"service {self._name()} has been silent for {stall:g} s"))

    def stopped(self) -> None:
        """The process is told to stop. The caller's relay repeats the call on its successor."""
        error = errors.Unavailable(f"{self.head.path}: the service is stopping", trailers=((STOPPING, "1"),))
        error.told = True  # not logged, since all calls under way end so
        self.fail(error)

    def fail(self, error: errors.NodeError) -> None:
        """Answer with an error, unless there is an answer."""
        if self.over:
            return
        logs.failed(self.head.path, str(self.head.headers.get(NAMESPACE, "")), error)
        tail = refusal(error)
        self._link.connection.send_tail(self._stream, tail if self._answered else HEAD + tail)
        self._link.flush_soon()
        self._finish(error.code, str(error))

    def _let_go(self) -> None:
        """End the upstream's stream, if it has not ended."""
        if (
            self._up_link is not None
            and self._up_stream is not None
            and not (self._up_stream.local_closed and self._up_stream.remote_closed)
        ):
            self._up_link.reset(self._up_stream, Code.CANCEL)

    def _finish(self, code: int, message: str) -> None:
        self.over = True
        self._server.passages.discard(self)
        if self._plan.single:
            self._complete()
        if self.deadline is not None:
            self._server.deadlines.discard(self)
        if self._stall is not None:
            self._stall.cancel()
        if self._asked is not None:
            self._asked.cancel()
            self._asked.answer.cancel()  # tells who observes the question
        if self._task is not None and self._task is not asyncio.current_task(self._link.loop):
            self._task.cancel()
        self._let_go()
        if self._up_stream is not None:
            self._up_stream.owner = None
        self._stream.owner = self._up = None  # objects that reference each other are freed only by a garbage collection
        self._observe().ended(code, message, self._size)
        client_of(self._stream).ended(self)
        self._link.on_idle()
