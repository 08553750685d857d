"""Shadows: a candidate gets copies of the calls to a service, and can affect neither their answers nor their time.

The gateway only hands copies on, by a socket, to a process of its own for each shadow (:mod:`services.shadows`), which
makes them and compares the answers. It does so in a pause between calls. What does not fit into the bounded queue is
dropped and counted, so no call waits for a copy. Reads of bytes are copied without their answers: the
process asks both services. Of a blob that came in many bytes or by a file, the copy says what was stored, and the
process reads it from ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from google.protobuf.empty_pb2 import Empty

from api.containerd.services.content.v1 import content_pb2
from api.splitd.localfiles.v1 import localfiles_pb2
from api.splitd.shadows.v1 import shadows_pb2 as pb
from api.splitd.shadows.v1 import shadows_stubs
from api.splitd.stamp.v1 import stamp_pb2, stamp_stubs
from gateway.instruments import Order
from gateway.upstream import Upstream
from services.kit import errors, loops
from services.kit.rpc import CarriedStream, Channel, Headers
from services.shadows.methods_convert import METHODS, READ, REMOVED, STORED, WRITE

log = logging.getLogger(__name__)

_LARGEST = 192 << 10
"""Bytes of a copy: what the smallest usual buffer of a socket takes."""
_QUEUE = 4 << 20
"""Bytes of copies that wait here, and again in the socket."""
_WAITING = 1024
"""Copies that wait here."""
_PAUSE = 0.006
"""Seconds without a call that is copied, after which copies are handed on: the last one has mostly been answered then,
and the next one comes later than these copies have been made.
"""
_LONGEST = 0.1
"""Seconds for which that pause is waited for."""
_EARLY = 0.001
"""Seconds by which a timer may come early."""
_AT_ONCE, _BUSY = 20, 6
"""So many copies are handed on in that time: usually, and if this process was on a processor for half of it. Each is a
call to both services, and costs clients more than a call of their own.
"""
_ENDING = 5.0
"""Seconds that the comparing process may take to end."""
_SO_SNDBUFFORCE = 32


class Process(Protocol):
    """A process that was started."""

    async def wait(self) -> int: ...
    def kill(self) -> None: ...


async def _started(copies: socket.socket) -> Process:
    return await asyncio.create_subprocess_exec(sys.executable, "-m", "services.shadows", stdin=copies.fileno())


class Shadow:
    """The shadow of ``ours``: an instrument around its calls, and the process that compares."""

    order = Order.SHADOW

    def __init__(
        self,
        wanted: pb.StartRequest,
        ours: Upstream,
        state: Path,
        *,
        writes: bool,
        start: Callable[[socket.socket], Awaitable[Process]] = _started,
    ) -> None:
        """``start`` starts the comparing process, which gets the socket."""
        self.wanted = wanted
        self.ours = ours
        self.writes = writes
        self.since = time.time_ns()
        self.trouble = ""
        self.socket = state / f"shadow-{wanted.route}.sock"
        self._share = wanted.share or 1.0
        self._shares = _shares(self._share, writes=writes)
        self._copies: socket.socket | None = None
        self._dropped: Counter[str] = Counter()
        self._waiting: deque[_Copy] = deque()
        """Calls that are handed on in a pause: their clients come first."""
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._called = 0.0
        """When the last copy came, by the loop's clock, in seconds."""
        self._looked = (0.0, 0.0)
        """When copies were handed on last, and how long this process had been on a processor then; in seconds."""
        self._since = 0.0
        """Since when the oldest copy waits for a pause."""
        self._start = start
        self._loop = loops.start(f"the shadow of {wanted.route}", self._run)

    @property
    def words(self) -> str:
        """For ``splitd routes``."""
        trouble = f", and is down: {self.trouble}" if self.trouble else ""
        return f"shadow: {self.wanted.address} gets copies of {self._share:.0%} of its calls{trouble}"

    def shown(self) -> pb.Shadow:
        return pb.Shadow(
            route=self.wanted.route,
            address=self.wanted.address,
            share=self._share,
            writes=self.writes,
            since=self.since,
            trouble=self.trouble,
        )

    async def report(self) -> pb.Report:
        """What was found so far. Unavailable while the comparing process is starting."""
        self._tell_dropped()
        async with Channel(self.socket, f"the shadow of {self.wanted.route}") as channel:
            await channel.reached(5.0)
            found: pb.Report = await channel.client(shadows_stubs.COMPARISONS).Get(Empty(), timeout=10.0)
        found.shadow.CopyFrom(self.shown())
        return found

    async def close(self) -> None:
        """End it, and the comparing process."""
        self.ours.instruments.remove(self)
        if self._timer is not None:
            self._timer.cancel()
        self._loop.cancel()
        await asyncio.wait((self._loop,))

    # -- the comparing process

    async def _run(self) -> None:
        """Run the comparing process. If it dies, the next one begins to compare anew."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs:
                _enlarge(ours)
                ours.setblocking(False)
                process = await self._start(theirs)
            try:
                begin = pb.Begin(ours=self.ours.address, shadow=self.wanted, socket=str(self.socket))
                if self.writes:
                    begin.prefix = f"shadow-{secrets.token_hex(4)}/"
                ours.send(begin.SerializeToString())
                self._copies = ours
                self.trouble = ""
                self.ours.instruments.add(self)
                code = await process.wait()
            finally:
                self._copies = None
                self.ours.instruments.remove(self)
                ours.close()  # which ends the process
                try:
                    async with asyncio.timeout(_ENDING):
                        await process.wait()
                except TimeoutError:
                    process.kill()
                    await process.wait()
                self.socket.unlink(missing_ok=True)
        self.trouble = f"the comparing process ended with {code}, and its counts are lost"
        raise loops.Explained(self.trouble)

    # -- copies

    async def unary(self, path: str, request: bytes, headers: Headers, go: Callable[[], Awaitable[bytes]]) -> bytes:
        if not self._is_copied(path):
            return await go()
        begun = time.monotonic()
        try:
            answer = await go()
        except errors.NodeError as error:
            self.copy(path, [request], headers, code=error.code, seconds=time.monotonic() - begun)
            raise
        self.copy(path, [request], headers, [answer], seconds=time.monotonic() - begun)
        return answer

    def stream(self, path: str, headers: Headers, carried: CarriedStream) -> CarriedStream:
        """Reads come by :meth:`remembered`, all of them."""
        return _Copied(self, path, headers, carried) if path != READ and self._is_copied(path) else carried

    def remembered(self, path: str, request: bytes, answer: bytes | None) -> None:
        if self._is_copied(path):
            self.copy(path, [request], {}, None if answer is None else [answer])

    def unread(self, path: str) -> bool:
        """The gateway reads the request of each Read, and no answer of one is kept."""
        return path == READ

    def _is_copied(self, path: str) -> bool:
        share = self._shares.get(path, 0.0)
        return share >= 1 or random.random() < share  # noqa: S311 - no secret

    def copy(
        self,
        path: str,
        requests: Sequence[bytes],
        headers: Headers,
        answers: Sequence[bytes] | None = None,
        *,
        code: int = 0,
        seconds: float = 0.0,
    ) -> None:
        """Hand on a call, once there is a pause; drop it if there is no room. A Read may not have been answered yet."""
        size = sum(map(len, requests)) + sum(map(len, answers or ()))
        if self._copies is None or len(self._waiting) >= _WAITING or size > min(_LARGEST, _QUEUE - self._bytes):
            self.drop(path)
            return
        self._bytes += size
        self._waiting.append(_Copy(path, requests, answers, headers, code, seconds, size))
        loop = asyncio.get_running_loop()
        self._called = loop.time()
        if self._timer is None:
            self._since = self._called
            self._timer = loop.call_at(self._called + _PAUSE, self._hand_on)

    def drop(self, path: str) -> None:
        """Count a call that cannot be handed on."""
        self._dropped[path] += 1

    def _hand_on(self) -> None:
        """Hand on the oldest copies, if this is a pause, or if none has come."""
        loop = asyncio.get_running_loop()
        now, pause = loop.time(), self._called + _PAUSE
        if now < pause - _EARLY and now < self._since + _LONGEST:
            self._timer = loop.call_at(min(pause, self._since + _LONGEST), self._hand_on)
            return
        before, self._looked = self._looked, (now, time.process_time())
        for _ in range(min(_many(*before, *self._looked), len(self._waiting))):
            each = self._waiting.popleft()
            self._bytes -= each.size
            if not self._sent(each.message(self._dropped)):
                self.drop(each.path)
                break  # the process takes no more now
            self._dropped.clear()
        self._since = now
        self._timer = loop.call_at(now + _PAUSE, self._hand_on) if self._waiting else None

    def _tell_dropped(self) -> None:
        if self._dropped and self._sent(pb.Copy(dropped=self._dropped)):
            self._dropped.clear()

    def _sent(self, message: pb.Copy) -> bool:
        data = message.SerializeToString()
        if self._copies is None or len(data) > _LARGEST + 4096:
            return False
        with contextlib.suppress(OSError):  # no room, or no process any more
            self._copies.send(data)
            return True
        return False


def _shares(share: float, *, writes: bool) -> Mapping[str, float]:
    """How much of the calls of each method is copied. Writes are copied all: a candidate that lacks some could be
    compared in nothing that builds on them.
    """
    shares = {path: share for path, method in METHODS.items() if method.kind != "write"}
    if writes:
        shares |= {path: 1.0 for path in (*METHODS, STORED, REMOVED) if path not in shares}
    return shares


def _many(since: float, before: float, now: float, spent: float) -> int:
    """How many copies are handed on ``now``, since they were last: at least one. This process had been on a processor
    for so many seconds in all before, and has ``spent`` so many now.
    """
    passed = now - since
    most = _BUSY if spent - before > passed / 2 else _AT_ONCE
    return max(1, round(most * min(passed / _LONGEST, 1.0)))


@dataclass(slots=True)
class _Copy:
    """A call that waits to be handed on."""

    path: str
    requests: Sequence[bytes]
    answers: Sequence[bytes] | None
    headers: Headers
    code: int
    seconds: float
    size: int

    def message(self, dropped: Mapping[str, int]) -> pb.Copy:
        trace = str(self.headers.get("traceparent", "")).split("-")
        return pb.Copy(
            path=self.path,
            requests=self.requests,
            answers=self.answers or (),
            answered=self.answers is not None,
            code=self.code,
            seconds=self.seconds,
            trace=trace[1] if len(trace) > 1 else "",
            dropped=dropped,
        )


class _Copied:
    """A stream whose call is handed on when it has ended. Its messages are kept as long as they are small together."""

    __slots__ = ("_answers", "_begun", "_carried", "_ended", "_headers", "_method", "_requests", "_shadow", "_size")

    def __init__(self, shadow: Shadow, path: str, headers: Headers, carried: CarriedStream) -> None:
        self._shadow = shadow
        self._method = METHODS[path]
        self._headers = headers
        self._carried = carried
        self._requests: list[bytes] = []
        self._answers: list[bytes] = []
        self._size = 0
        self._begun = time.monotonic()
        self._ended = False

    async def send(self, message: bytes) -> None:
        self._size += len(message)
        if self._size <= _LARGEST or not self._requests:
            self._requests.append(message)
        await self._carried.send(message)

    async def done_sending(self) -> None:
        await self._carried.done_sending()

    async def receive(self) -> bytes | None:
        try:
            message = await self._carried.receive()
        except errors.NodeError as error:
            self._end(error.code)
            raise
        if message is None:
            self._end(0)
        else:
            self._size += len(message)
            if self._size > _LARGEST:
                self._answers.clear()  # the last one says what a Write stored
            self._answers.append(message)
        return message

    def _end(self, code: int) -> None:
        if self._ended:
            return
        self._ended = True
        seconds = time.monotonic() - self._begun
        path, requests, headers = self._method.path, self._requests, self._headers
        if self._size <= _LARGEST:
            self._shadow.copy(path, requests, headers, None if code else self._answers, code=code, seconds=seconds)
        elif self._method is WRITE and (stored := _stored(requests, self._answers)) is not None:
            self._shadow.copy(STORED, [stored], headers, code=code, seconds=seconds)
        else:
            self._shadow.drop(path)

    async def leading(self) -> Headers:
        return await self._carried.leading()

    def trailing(self) -> Headers:
        return self._carried.trailing()

    def cancel(self) -> None:
        """A Write is left without reading to its end: after its commit, or in the middle, and then to be resumed."""
        self._carried.cancel()
        if self._method is WRITE and self._answers:
            self._end(0)


def _stored(requests: Sequence[bytes], answers: Sequence[bytes]) -> bytes | None:
    """What a Write of many bytes stored, as a blob that came by a file; None if it did not commit."""
    if not requests or not answers:
        return None
    opening = content_pb2.WriteContentRequest.FromString(requests[0])
    end = content_pb2.WriteContentResponse.FromString(answers[-1])
    if end.action != content_pb2.COMMIT:
        return None
    return localfiles_pb2.CommitRequest(ref=opening.ref, size=end.offset, digest=end.digest).SerializeToString()


def _enlarge(copies: socket.socket) -> None:
    """Give the queue its size; less, where only the system's limit can be had."""
    try:
        copies.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _QUEUE)
    except PermissionError:
        copies.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _QUEUE)


async def has_own_store(candidate: Channel, ours: Channel) -> bool:
    """Whether the candidate's store is another one than ours: its stamp says so. A service without a stamp does not
    say.
    """
    try:
        found = await candidate.client(stamp_stubs.STAMP).Get(stamp_pb2.GetRequest(), timeout=5.0)
    except errors.Unimplemented:
        return False
    own = await ours.client(stamp_stubs.STAMP).Get(stamp_pb2.GetRequest(), timeout=5.0)
    return bool(own.store_id) and found.store_id != own.store_id
