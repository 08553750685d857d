"""Fetches a blob: one stream of bytes, whatever happens to connections and hosts.

::

    async with client.fetch(reference, descriptor, offset) as body:
        async for chunk in body:            # as large as they arrive; the caller hashes and writes
            ...

A connection that is lost or stalls is replaced by another one, to the same host or the next; so is one that is too slow
while another host could be asked. The new connection continues at the same byte. A body whose size differs from the
descriptor's ends the fetch from that host at once, long before the caller's digest would show it. The caller checks the
digest, and calls :meth:`Body.distrust` if it is wrong. (Bytes after the end of the blob also show that a body is wrong.
If another host is left, they end the fetch with :class:`WrongBytes`: no part of such a body is kept.)

Parts are requested by ranges with both ends: some servers know no other (go-containerregistry's answers 416 to
``bytes=N-``). A server that ignores a range sends the whole blob, and the known bytes are dropped. A server may also
refuse a range (400 by Artifactory), fail twice over it (500), answer with another part or with several parts in one
body, or with a part of the compressed blob (Content-Encoding). It is then asked once without a range, and for a while
not again with one (:mod:`.host_memory`). A server that sends less than the part, which RFC 9110 (15.3.7) allows, is
asked for the rest.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import TracebackType

from services.images.registry.endpoint import Place
from services.images.registry.failover import Failover
from services.images.registry.failure import WORDS, Blame, Failure, combined
from services.images.registry.host_memory import HostMemory
from services.images.registry.transport import Answer
from services.images.registry_timeouts import Retry, Timeouts
from services.kit import errors, tracing
from services.oci.descriptors import Descriptor
from services.oci.references import Reference

AFTER_THE_END = 1.0
"""Seconds that a body without a stated length may take to end after all expected bytes."""

MEASURABLE = 64 * 1024
"""Bytes from which a host's throughput is measured."""

SLICE = 64 * 1024
"""A server that sends less than it was asked for must send so many bytes a request on average."""
SLICES = 1000
"""Requests after which that average is checked. A server below it counts as a lost connection: otherwise a layer could
take a request for each byte.
"""

NO_RANGE_REFUSALS = frozenset({401, 404, 407, 408, 410, 425, 429})
"""4xx answers that a request for the whole blob would get too: those about the blob (404, 410), about the caller (401,
407), or about a bad moment.
"""

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)")


class NoParts(Exception):
    """Only a part was wanted, and the host to be asked serves whole blobs."""


class WrongBytes(errors.FailedPrecondition):
    """The bytes that came are not the blob's, and another host may have them: it must be fetched from its first
    byte.
    """


class _TooMany(Failure):
    """A body continues after the end of the blob."""


class Body:
    """The bytes ``offset`` to ``end`` of a blob of ``size``. Iterate once.

    ``host`` is the host that serves it now. ``ranges``: whether that host serves parts, so that several connections can
    share the work.
    """

    def __init__(self, fetch: Download) -> None:
        self.offset = fetch.offset
        self.end = fetch.offset
        self.size = fetch.descriptor.size
        self.host = ""
        self.ranges = False
        self.hosts: list[str] = []
        """All hosts that served some of it, in order."""
        self.place = ""
        """The last of them, as :mod:`.host_memory` names it."""
        self._fetch = fetch

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._fetch.chunks()

    def take_all(self) -> None:
        """Continue to the end of the blob, however little was asked for: a host that serves no parts sends everything
        anyway. Call it before the iteration.
        """
        self.end = self.size

    def distrust(self, why: str, spared: str = "") -> None:
        """The digest of the bytes is wrong: for a while, ask the hosts that they came from after all others, except the
        :attr:`place` ``spared``.
        """
        self._fetch.distrust(why, spared)


class Download:
    """A fetch as a context manager. Entering it returns the :class:`Body`, once the head of the first answer has
    come.
    """

    def __init__(
        self,
        reference: Reference,
        descriptor: Descriptor,
        offset: int,
        length: int | None,
        places: Callable[[], Awaitable[Sequence[Place]]],
        memory: HostMemory,
        timeouts: Timeouts,
        retry: Retry,
        *,
        part_only: bool = False,
        optional: bool = False,
        breaks: bool = False,
        too_slow: Callable[[float], str] | None = None,
    ) -> None:
        """``optional``: if it fails, another source is asked, so that is no error of the operation. ``breaks``: a lost
        connection is no trouble of the host, which says so that it has no more. ``too_slow`` says why so many bytes a
        second of one connection are too few, if they are; asked after each ``slow_window``.
        """
        descriptor.checked()
        self.descriptor = descriptor
        self.offset = offset
        self._reference = reference
        self._length = length
        self._part_only = part_only
        self._optional = optional
        self._breaks = breaks
        self._too_slow = too_slow
        self._memory = memory
        self._timeouts = timeouts
        self._retry = retry
        self._what = f"{reference.host}/{reference.repository}: {descriptor}"
        self._places = places
        self._failover: Failover[Place] = Failover(self._what, (), memory, retry)
        self._place: Place | None = None
        self._answer: Answer | None = None
        self._at = offset
        self._skip = 0
        self._slices = 0
        self._failed_over_ranges: set[str] = set()
        self._waited = 0.0
        self._keys: list[str] = []
        self._span: tracing.Span | None = None
        self.body = Body(self)

    async def __aenter__(self) -> Body:
        size, offset = self.descriptor.size, self.offset
        if offset < 0 or (size and offset > size):
            raise errors.OutOfRange(f"{self.descriptor}: offset {offset} of {size} bytes")
        about: dict[str, str | int] = {
            "oci.manifest.digest" if self.descriptor.is_root else "oci.layer.digest": self.descriptor.digest,
            "splitd.offset": offset,
        }
        self._span = tracing.span("registry.fetch", **about)
        self._span.__enter__()
        try:
            self._failover = Failover(self._what, await self._places(), self._memory, self._retry)
            if size:
                self.body.end = size if self._length is None else min(size, offset + self._length)
            if not size or self.body.end > offset:
                await self._open()
        except BaseException as error:
            self._end(error)
            raise
        return self.body

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release_answer()
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        """End the span. That a host serves no parts, or that another host must be asked for all bytes, is no error of
        the operation.
        """
        traced, hosts = self._span, list(dict.fromkeys(self.body.hosts))
        assert traced is not None
        if hosts:
            traced.set(**{"server.address": hosts[-1]})
        if len(hosts) > 1:
            traced.set(**{"splitd.registry.hosts": ", ".join(hosts)})
        traced.set(
            **{
                "splitd.registry.attempts": self._failover.attempts,
                "splitd.bytes": self._at - self.offset,
                "splitd.bytes_ms": round(self._waited * 1000, 3),
            }
        )
        if isinstance(error, WrongBytes):
            traced.set(**{"error.type": "wrong", "error.message": str(error)[:WORDS]})
        elif isinstance(error, NoParts):
            traced.set(**{"splitd.registry.no_parts": True})
        elif self._optional and isinstance(error, errors.NodeError):
            traced.set(**{"error.type": "left", "error.message": str(error)[:WORDS]})
        unimportant = isinstance(error, NoParts | WrongBytes) or (
            self._optional and isinstance(error, errors.NodeError)
        )
        told = None if unimportant else error
        traced.__exit__(None if told is None else type(told), told, None if told is None else told.__traceback__)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes."""
        body = self.body
        checkpoint = self._at
        while self._at < body.end:
            assert self._answer is not None
            try:
                async for chunk in self._received(self._answer):
                    yield chunk
                if self._at < body.end:
                    await self._ask_for_rest()
                    checkpoint = self._at
                    continue
                await self._ended(self._answer)
            except Failure as failure:
                place = self._place
                assert place is not None
                if self._answer is not None:
                    self._answer.blame(failure)
                self._release_answer()
                self._failover.note(place, failure)
                if isinstance(failure, _TooMany) and self._failover.others(place):
                    self._memory.failed(place.key, failure.cause, dead=True)
                    raise WrongBytes.verbatim(str(combined(self._what, [failure]))) from None
                if self._at >= body.end:
                    raise combined(self._what, [failure]) from None
                if self._at - checkpoint >= self._retry.progress:
                    self._failover.progress()
                checkpoint = self._at
                await self._open(not_first=place)

    async def _received(self, answer: Answer) -> AsyncIterator[bytes]:
        """The bytes of ``answer``, up to the end. A Failure if the end is not reached, unless the server sent less than
        the part it was asked for.
        """
        read, place = answer.read_some, self._place
        assert place is not None
        window_bytes, window_waited, end, begun_at = 0, 0.0, self.body.end, self._at
        while self._at < end:
            before = answer.waited
            try:
                chunk = await read()
            except Exception as error:
                failure = answer.failure(error, f" after {self._at} of {self.body.size} bytes")
                if self._breaks and failure.named == "lost":
                    failure.blame = Blame.NOBODY
                raise failure from None
            waited = answer.waited - before
            if (
                not chunk
                and answer.status == 206
                and self._at > begun_at
                and (self._slices < SLICES or self._at - self.offset >= self._slices * SLICE)
            ):
                return
            if not chunk:
                raise self._wrong(
                    f"ended after {self._at} of {self.body.size} bytes",
                    transient=answer.length is None or answer.status == 206,
                )
            self._waited += waited
            window_waited += waited
            window_bytes += len(chunk)
            if window_waited >= self._timeouts.slow_window:
                self._memory.measured(place.key, window_bytes, window_waited)
                rate = window_bytes / window_waited
                if rate < self._timeouts.slow_floor and self._failover.another(place):
                    raise Failure(
                        place.name, f"only {rate / 1024:.1f} KiB/s", transient=True, blame=Blame.SLOW, named="slow"
                    )
                if self._too_slow is not None and (why := self._too_slow(rate)):
                    raise Failure(place.name, why, transient=True, blame=Blame.SLOW, named="slow")
                window_bytes, window_waited = 0, 0.0
            if self._skip:
                skipped = min(self._skip, len(chunk))
                self._skip -= skipped
                if skipped == len(chunk):
                    continue
                chunk = chunk[skipped:]
            if len(chunk) > end - self._at:
                if end == self.body.size:
                    raise self._too_many()
                chunk = chunk[: end - self._at]  # a part was asked for, and the server sends everything
            self._at += len(chunk)
            yield chunk
        if window_bytes >= MEASURABLE:
            self._memory.measured(place.key, window_bytes, window_waited)

    async def _ask_for_rest(self) -> None:
        """The host sent less than it was asked for, as it may: ask it for the rest."""
        place = self._place
        assert place is not None
        self._release_answer()
        self._slices += 1
        try:
            self._place, self._answer = await self._opened(place)
        except Failure as failure:
            self._failover.note(place, failure)
            await self._open(not_first=place)

    async def _ended(self, answer: Answer) -> None:
        """All bytes are there: the connection can be reused if the body ends here too."""
        assert self._place is not None
        if answer.length is None and self.body.end == self.body.size:
            try:
                async with asyncio.timeout(AFTER_THE_END):
                    more = await answer.read_some()
            except Exception:
                more = b""  # everything wanted is there, so it does not matter how the connection ends
            if more:
                raise self._too_many()
        self._memory.worked(self._place.key)

    async def _open(self, not_first: Place | None = None) -> None:
        place, answer = await self._failover.run(self._opened, not_first=not_first, proves=False)
        self._place, self._answer = place, answer
        self.body.host = answer.host
        self.body.hosts.append(answer.host)
        self.body.place = place.key
        if place.key not in self._keys:
            self._keys.append(place.key)

    async def _opened(self, place: Place) -> tuple[Place, Answer]:
        """An answer of ``place`` whose body continues at our offset, once ``_skip`` bytes of it are dropped."""
        headers = {"Accept": f"{self.descriptor.media_type}, */*" if self.descriptor.media_type else "*/*"}
        wanted, refused = self._range(), self._memory.refuses_ranges(place.key)
        if wanted and refused and self._part_only:
            raise NoParts
        ranged = bool(wanted) and not refused
        try:
            answer = await place.get(
                self._reference, self.descriptor, {**headers, "Range": wanted} if ranged else headers
            )
            refusal = (
                f"{self.descriptor} {why}" if ranged and answer.status == 206 and (why := self._no_part(answer)) else ""
            )
            if refusal:
                answer.close()
        except Failure as failure:
            if not ranged or not self._refuses(place, failure):
                raise
            refusal = failure.cause
        if refusal:
            if self._part_only:
                raise NoParts
            answer = await place.get(self._reference, self.descriptor, headers)
            self._memory.refused_range(place.key, refusal)
        try:
            self._check_head(answer, self.descriptor.size, partial=bool(wanted))
        except BaseException as error:
            if isinstance(error, Failure):
                answer.blame(error)
            answer.close()
            raise
        return place, answer

    def _refuses(self, place: Place, failure: Failure) -> bool:
        """Whether a host that failed to serve a part may serve the whole blob."""
        # a range upsets the server, or the server is in trouble: asking again shows which
        if failure.status == 500:
            again = place.key in self._failed_over_ranges
            self._failed_over_ranges.add(place.key)
            return again
        return failure.status == 501 or (400 <= failure.status < 500 and failure.status not in NO_RANGE_REFUSALS)

    def _covers(self, answer: Answer) -> re.Match[str] | None:
        """The Content-Range of a 206 answer, if it covers our offset. None for several parts in one body
        (multipart/byteranges), since each part has its own.
        """
        said = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
        return said if said is not None and int(said[1]) <= self._at <= int(said[2]) else None

    def _no_part(self, answer: Answer) -> str:
        """Why a 206 answer is of no use, if it is not: it has another part, or a part of the compressed blob, which
        cannot be decoded from the middle.
        """
        asked = f"was asked for from byte {self._at} on, and the answer is"
        if (said := self._covers(answer)) is None:
            return f'{asked} of "{answer.headers.get("Content-Range", "an unknown range")}"'
        return (
            f"{asked} a part of it as {', '.join(answer.codings)[:100]}"
            if self._is_encoded(answer, _total(said))
            else ""
        )

    def _is_encoded(self, answer: Answer, total: int | None) -> bool:
        """Whether an answer of ``total`` bytes must be decoded. If its size is the blob's, it is only mislabelled: a
        layer that was stored as "gzip".
        """
        return bool(answer.codings) and not (self.descriptor.size and total == self.descriptor.size)

    def _range(self) -> str:
        """The Range header for the wanted bytes; "" if these are the whole blob, or the end is not known."""
        at, size, end = self._at, self.body.size, self.body.end
        if not size:  # unknown, and so is ``end``
            return f"bytes={at}-{self.offset + self._length - 1}" if self._length is not None else ""
        return f"bytes={at}-{end - 1}" if at or end < size else ""

    def _check_head(self, answer: Answer, expected: int, *, partial: bool) -> None:
        body, total = self.body, answer.length
        self._skip = 0
        if answer.status == 206:
            said = self._covers(answer)
            if said is None or self._is_encoded(answer, _total(said)):
                raise self._wrong(self._no_part(answer), answer)
            self._skip = self._at - int(said[1])
            total = _total(said)
            body.ranges = True
        elif partial or self._at:
            if self._part_only:
                raise NoParts
            body.ranges = False
            self._skip = self._at
        else:
            body.ranges = answer.headers.get("Accept-Ranges", "").strip().lower() == "bytes"
        if self._is_encoded(answer, total):
            answer.decode(expected)
            body.ranges, total = False, None
        if expected and total is not None and total != expected:
            raise self._wrong(f"has {total} bytes; {expected} are expected", answer)
        if not expected:
            if total is None:
                raise self._wrong("has no size, and none is known", answer)
            body.size = total
            body.end = total if self._length is None else min(total, self.offset + self._length)

    def distrust(self, why: str, spared: str = "") -> None:
        """As :meth:`Body.distrust`."""
        for key in {*self._keys} - {spared}:
            self._memory.failed(key, f"{self.descriptor}: {why}", dead=True)

    def _wrong(self, what: str, answer: Answer | None = None, *, transient: bool = False) -> Failure:
        answer = answer or self._answer
        assert answer is not None
        found = Failure(
            answer.host,
            f"{self.descriptor} {what}",
            kind=errors.Unavailable if transient else errors.FailedPrecondition,
            transient=transient,
            blame=Blame.TROUBLE,
            status=200,
        )
        found.add_request_id(answer.request_id)
        return found

    def _too_many(self) -> _TooMany:
        assert self._answer is not None
        found = _TooMany(
            self._answer.host,
            f"{self.descriptor} has more than the {self.body.size} bytes expected",
            kind=errors.FailedPrecondition,
            blame=Blame.TROUBLE,
            status=200,
        )
        found.add_request_id(self._answer.request_id)
        return found

    def _release_answer(self) -> None:
        """Release the answer: its connection is kept if nothing is left on it."""
        if self._answer is not None:
            self._answer.release()
            self._answer = None


def _total(content_range: re.Match[str]) -> int | None:
    """The total number of bytes in a Content-Range."""
    return int(content_range[3]) if content_range[3] != "*" else None
