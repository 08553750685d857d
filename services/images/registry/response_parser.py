"""Puts the head of each answer into plain form (:mod:`.response_head`) before aiohttp's parser gets it; bodies pass
unchanged.

aiohttp's parser (llhttp) is made for servers, which must be strict, and its leniency cannot be set from Python. So it
sees only heads of ours. Bytes after an answer without a body (HEAD with a body all the same) are dropped, and so is the
connection, as Go does.

A body of known length goes to its reader as it comes, since aiohttp's parser would copy it. If one cannot be read on,
its reader gets an error at once, for whatever reason: no reader waits for bytes that will not come.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from services.images.registry import response_head
from services.images.registry.limits import HEAD_LIMIT
from services.kit import later

if TYPE_CHECKING:
    import aiohttp
    import aiohttp.http_exceptions as http
    from aiohttp.client_proto import ResponseHandler
else:
    aiohttp, http = later.Library("aiohttp"), later.Library("aiohttp.http_exceptions")
    ResponseHandler = object

_SWITCHING = 101

INTERIM = 100
"""Answers with status 1xx before the final one."""


@functools.cache
def answers() -> type[Answers]:
    """Aiohttp's protocol of a client's connection, with what is ours. aiohttp is loaded at the first call."""
    from aiohttp import client_proto

    return type("Answers", (Answers, client_proto.ResponseHandler), {})


class Answers(ResponseHandler):
    """What is ours in aiohttp's protocol of a client's connection."""

    _collected: bytearray | None = None
    """The bytes of the expected head; None if none is expected."""
    _passing = False
    """A body is arriving."""
    _left: int | None = None
    """Bytes of a body that this class passes on; None if aiohttp's parser does."""
    _to_head = False
    _spent = 0
    """Bytes of 1xx answers before the expected one."""
    _interim = 0
    """The number of those answers."""
    _used = False
    """An earlier request was answered on this connection."""

    def set_response_params(self, **params: Any) -> None:
        """A request is about to be sent."""
        self._collected, self._passing, self._spent, self._interim, self._left = bytearray(), False, 0, 0, None
        self._to_head = bool(params.get("skip_payload"))
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        if self._passing or not data or self._parser is None:
            self._passed(data)
            return
        if self._collected is None:
            self._unsolicited()
            return
        self._collected += data
        try:
            self._read(len(self._collected) - len(data))
        except response_head.Malformed as error:
            if self._used and not self._collected.startswith(b"HTTP/"[: len(self._collected)]):
                # the rest of an earlier answer, not an answer to this request: another connection will bring one
                self._end(aiohttp.ServerDisconnectedError())
            else:
                self._end(http.HttpProcessingError(code=0, message=str(error)))

    def _read(self, start: int) -> None:
        """Pass on the collected head, if its end is there; the end is not before ``start``."""
        while (collected := self._collected) is not None:
            end = response_head.end_of(collected, start)
            if self._spent + max(end, len(collected) if end < 0 else 0) > HEAD_LIMIT:
                raise response_head.Malformed(f"its headers have more than {HEAD_LIMIT} bytes")
            if end < 0:
                self._reschedule_timeout()
                return
            found, rest, start = (
                response_head.read(bytes(collected[:end]), to_head=self._to_head),
                bytes(collected[end:]),
                0,
            )
            if found.status < 200 and found.status != _SWITCHING:
                self._spent += end
                self._interim += 1
                if self._interim > INTERIM:
                    raise response_head.Malformed(f"more than {INTERIM} answers with a status of 1xx come before it")
                self._collected = bytearray(rest)
                continue
            if found.status == _SWITCHING:
                raise response_head.Malformed("it wants to switch to another protocol (101)")
            self._collected, self._passing, self._used = None, found.body, True
            super().data_received(found.plain)
            if found.length and self._payload is not None and self.exception() is None:
                self._left = found.length
            if rest and found.body:
                self._passed(rest)
            elif rest:
                self._unsolicited()

    def connection_lost(self, exc: BaseException | None) -> None:
        """No more bytes will come."""
        payload = self._payload
        super().connection_lost(exc)
        self._tell(payload)

    def _passed(self, data: bytes) -> None:
        if self._left is not None:
            self._passed_on(data)
            return
        payload = self._payload
        super().data_received(data)
        if self.exception() is not None:
            self._tell(payload)

    def _passed_on(self, data: bytes) -> None:
        """Give bytes of a body of known length to its reader."""
        if not data:  # the reader wants more again
            return
        payload, left = self._payload, self._left or 0
        if not left or payload is None:
            self._unsolicited()
            return
        self._reschedule_timeout()
        payload.feed_data(data if len(data) <= left else data[:left])
        self._left = max(0, left - len(data))
        if not self._left:
            self._parser = None  # it has seen nothing of the body
            if len(data) > left:
                self._unsolicited()
            payload.feed_eof()

    @staticmethod
    def _tell(payload: aiohttp.StreamReader | None) -> None:
        """Give the body's reader an error, unless it has one: no more bytes will come."""
        if payload is not None and not payload.is_eof() and payload.exception() is None:
            error = aiohttp.ClientPayloadError()
            error.__cause__ = http.TransferEncodingError("")
            payload.set_exception(error)

    def _unsolicited(self) -> None:
        """Bytes came that belong to no answer: the connection cannot be reused. A complete answer stays valid."""
        self.force_close()
        if self.transport is not None:
            self.transport.close()

    def _end(self, error: Exception) -> None:
        self._collected = None
        if self.transport is not None:
            self.transport.close()
        self.set_exception(error)
