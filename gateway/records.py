"""metadata's Records as the gateway uses them: begin, do the raw call, finish.

An intent is open from Begin until metadata has heard Finish or Cancel, whatever happens in between: to the client (the
whole runs under ``rpc.shielded``), to metadata (the answer is repeated until it arrives), to the raw service (an
unknown outcome is asked for, never guessed). Only this process's own death leaves an intent behind; its incarnation, a
new UUID at each start, lets metadata see that.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from api.splitd.records.v1 import records_pb2 as pb
from api.splitd.records.v1 import records_stubs
from gateway.hop import Hop
from gateway.upstream import Upstream
from services.kit import errors, loops, rpc
from services.kit.rpc import Call, Question, method_path

log = logging.getLogger(__name__)
T = TypeVar("T")

SERVICE = records_stubs.RECORDS
_PATIENCE = 600.0
"""Seconds for which an answer is repeated to a metadata service that is away; after that its next start with
another gateway resolves the intent.
"""


_PAUSE, _FULL = 0.1, 1.0
"""Seconds until an answer is repeated, at first; and for which a caller waits for room on metadata's disk."""
_REPEATED = frozenset(
    {
        "OpenIngest",
        "GetIngest",
        "ListIngests",
        "BeginCommitIngest",
        "ResolveBlob",
        "BeginSnapshot",
        "BeginCommitSnapshot",
        "ResolveSnapshot",
    }
)
"""Calls that are asked again where metadata's death interrupted them: those that change nothing, and those that begin,
since an intent whose answer was lost is resolved when the gateway announces itself to the next metadata.
"""


async def _at_once() -> None:
    return


class Publish(Protocol):
    """Where events go."""

    def publish(self, namespace: str, topic: str, event: Any) -> None:
        """Queue one event."""
        ...


class Records:
    """Records for one gateway, as ``incarnation``."""

    def __init__(
        self,
        metadata: Hop,
        events: Publish,
        *,
        content: str,
        snapshotters: Sequence[str],
        known: Callable[[], Awaitable[None]] = _at_once,
        pause: float = _PAUSE,
        full: float = _FULL,
    ) -> None:
        """``known`` returns once it is known which snapshotters there are (:meth:`snapshotters`), or need not be waited
        for any longer: metadata is not told of a gateway before.

        The end of an intent is told again after ``pause`` seconds, then longer ones; whoever waits for it is told of a
        ``full`` disk after so many.
        """
        self._known = known
        self._pause = pause
        self._full = full
        self._hop = metadata
        self._metadata = metadata.to("")
        """Whom this gateway announces itself to."""
        self._events = events
        self._hello = pb.ConnectRequest(incarnation=str(uuid.uuid4()), content=content, snapshotters=snapshotters)
        self._open: dict[str, Upstream] = {}
        """Intents that metadata answered and has not heard the end of; by whom, who is told it."""
        self._connected = asyncio.Event()
        self._tasks = loops.Tasks()
        metadata.changed.append(self._announce)

    @property
    def incarnation(self) -> str:
        """The gateway's UUID, new at each start."""
        return self._hello.incarnation

    def _announce(self) -> None:
        """Say who we are, each time that metadata comes up or is another."""
        metadata = self._hop.to("")
        if metadata is not self._metadata:
            self._metadata = metadata
            self._connected.clear()
        if metadata.up:
            self._tasks.start("the announcement of this gateway", self._connect(metadata))

    def snapshotters(self, names: Sequence[str]) -> None:
        """There are others now: metadata is told so."""
        self._hello.snapshotters[:] = names
        self._announce()

    async def _connect(self, metadata: Upstream) -> None:
        await self._known()
        while metadata.up and metadata is self._metadata:
            self._hello.open.SetInParent()
            self._hello.open.ids[:] = sorted(intent for intent, begun in self._open.items() if begun is metadata)
            try:
                await metadata.channel.client(SERVICE).Connect(self._hello, timeout=10.0)
            except errors.NodeError as error:
                log.warning("metadata did not take this gateway's announcement: %s", error)
            except Exception:  # a fault of ours, after which no intent could be begun until metadata comes up anew
                log.exception("this gateway could not be announced to metadata")
            else:
                if metadata is self._metadata:
                    self._connected.set()
                return
            await asyncio.sleep(0.2)

    def question(
        self, name: str, call: Call, ask: Callable[[bytes], tuple[bytes, Callable[[bytes], Any], Callable[[], None]]]
    ) -> Question:
        """A Records call as the question of a route: as :meth:`call`, where nothing has to be waited for."""
        return Question(
            self._hop, method_path(SERVICE.methods_by_name[name]), call.passed_on(), 30.0, self._is_ready, ask
        )

    def _is_ready(self, metadata: rpc.Upstream) -> bool:
        return metadata.is_ready() and self._connected.is_set()

    async def call(self, name: str, request: Any, call: Call, *, timeout: float = 30.0) -> Any:
        """One Records call as ``call``'s client; a Begin waits for the announcement first."""
        metadata = self._hop.to(call.optional_namespace)
        await metadata.ready(call)
        if not self._connected.is_set():
            try:
                async with asyncio.timeout(metadata.hold):
                    await self._connected.wait()
            except TimeoutError:
                raise errors.Unavailable("service metadata has not accepted this gateway yet") from None
        try:
            answer = await _method(metadata, name)(request, headers=call.passed_on(), timeout=timeout)
        except errors.Disconnected:
            if name not in _REPEATED:
                raise
            metadata = self._hop.to(call.optional_namespace)
            await metadata.ready(call)
            answer = await _method(metadata, name)(request, headers=call.passed_on(), timeout=timeout)
        if isinstance(answer, pb.Intent) and answer.id and not answer.HasField("finished"):
            self._open[answer.id] = metadata
        return answer

    async def finish(self, request: pb.FinishRequest, call: Call) -> pb.Finished:
        """The raw call was done: make it so, publish its events. Repeated until metadata answers."""
        try:
            finished: pb.Finished = await self._until_answered("Finish", request, call)
        finally:
            self._open.pop(request.intent, None)
        self.publish(finished)
        return finished

    async def cancel(self, intent: str, call: Call) -> None:
        """The raw call failed for certain."""
        try:
            await self._until_answered("Cancel", pb.CancelRequest(intent=intent), call)
        finally:
            self._open.pop(intent, None)

    def publish(self, finished: pb.Finished) -> None:
        """Send the events that metadata's answer carries."""
        for event in finished.events:
            self._events.publish(event.namespace, event.topic, event.event)

    async def _until_answered(self, name: str, request: Any, call: Call, *, alone: bool = False) -> Any:
        """Repeat it until the metadata that began the intent answers. Where its disk is full, whoever waits is told so
        soon, and it is repeated ``alone``.
        """
        headers = call.passed_on()
        metadata = self._open.get(request.intent) or self._hop.to(call.optional_namespace)
        begun, pause, said = time.monotonic(), self._pause, ""
        while True:
            try:
                return await _method(metadata, name)(request, headers=headers, timeout=30.0)
            except (errors.Unavailable, errors.ResourceExhausted, errors.DeadlineExceeded, errors.Cancelled) as error:
                passed = time.monotonic() - begun
                if passed > _PATIENCE:
                    raise
                if str(error) != said:
                    log.warning("%s of an intent is repeated: %s", name, error)
                said = str(error)
                if isinstance(error, errors.ResourceExhausted) and not alone and passed > self._full:
                    self._tasks.start(f"{name} of an intent", self._told_alone(name, request, call, metadata))
                    raise
                await asyncio.sleep(pause)
                pause = min(pause * 2, 1.0)

    async def _told_alone(self, name: str, request: Any, call: Call, metadata: Upstream) -> None:
        self._open[request.intent] = metadata  # else the next metadata would resolve it, and tell of it too
        try:
            answer = await self._until_answered(name, request, call, alone=True)
        except errors.NodeError as error:  # metadata's next start, or its patience, ends the intent
            log.warning("%s of an intent came to nothing: %s", name, error)
        else:
            if isinstance(answer, pb.Finished):
                self.publish(answer)
        finally:
            self._open.pop(request.intent, None)

    async def outcome(
        self,
        intent: pb.Intent,
        call: Call,
        backend: Upstream,
        attempt: Callable[[], Awaitable[T]],
        happened: Callable[[], Awaitable[T | None]],
    ) -> T:
        """The result of a raw call under ``intent``, or its error with the intent cancelled.

        ``attempt`` makes the call; ``happened`` asks the raw service afterwards: the result if the operation took
        effect, None if it did not. Where the service went away or did not answer in time, it is waited for and asked;
        if nothing happened the call is made once more. While the service stays away the caller gets UNAVAILABLE, and
        the asking goes on without it.
        """
        try:
            try:
                await backend.ready()
                return await attempt()
            except (errors.Disconnected, errors.DeadlineExceeded, errors.Cancelled):
                await backend.ready()
                result = await happened()
                return await attempt() if result is None else result
        except (errors.Unavailable, errors.DeadlineExceeded, errors.Cancelled) as error:
            if isinstance(error, errors.Unavailable) and not isinstance(error, errors.Disconnected) and backend.up:
                await self.cancel(intent.id, call)  # the service's own word: a ref is locked, say
                raise
            self._tasks.start("the end of an intent", self._settle(intent, call, backend, happened))
            raise
        except errors.NodeError:
            await self.cancel(intent.id, call)
            raise

    async def _settle(
        self, intent: pb.Intent, call: Call, backend: Upstream, happened: Callable[[], Awaitable[Any]]
    ) -> None:
        """Ask until the outcome is known, then close the intent. Nobody waits for the result, so what took effect
        is as good as not: it is finished.
        """
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            try:
                await backend.ready()
                result = await happened()
                if result is None:
                    await self.cancel(intent.id, call)
                else:
                    request = pb.FinishRequest(intent=intent.id)
                    if isinstance(result, pb.FinishRequest):
                        request.MergeFrom(result)
                    await self.finish(request, call)
            except errors.NodeError as error:
                log.info("the outcome of an intent on %s is not known yet: %s", backend.name, error)
                await asyncio.sleep(1.0)
            else:
                return


def _method(metadata: Upstream, name: str) -> Any:
    return getattr(metadata.channel.client(SERVICE), name)


def with_headers(call: Call, *, drop: Sequence[str] = ("containerd-lease",)) -> Mapping[str, str | bytes]:
    """The headers for a raw service: the client's, but never the lease."""
    return {k: v for k, v in call.passed_on().items() if k not in drop}
