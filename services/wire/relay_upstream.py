"""The upstream's side of a call that passes through: the owners of its stream. A repeated call has another."""

from __future__ import annotations

from typing import Protocol

from services.kit import errors
from services.kit.relays import Note
from services.wire import outcomes
from services.wire.answers import HEAD, OK
from services.wire.frames import Code
from services.wire.headers import Head
from services.wire.streams import Chunk

_MOST = 1 << 20
"""Bytes of an answer that are noted."""


class Passing(Protocol):
    """The call (:class:`services.wire.relay.Passage`)."""

    def heeds(self, owner: object) -> bool:
        """Whether this owner's stream is still the call's."""
        ...

    def answer_head(self, head: Head) -> None:
        """The answer begins."""
        ...

    def answer_data(self, chunk: Chunk) -> None:
        """Some bytes of it."""
        ...

    def answer_tail(self, head: Head) -> None:
        """It ends."""
        ...

    def fail(self, error: errors.NodeError) -> None:
        """Answer with an error, unless there is an answer."""
        ...

    def lost(self, reason: str, *, unseen: bool = False) -> None:
        """The upstream went away."""
        ...

    def settle(self) -> None:
        """The upstream has read."""
        ...


class Answering:
    """Passes the upstream's answer on."""

    __slots__ = ("_call",)

    def __init__(self, call: Passing) -> None:
        self._call = call

    def on_head(self, head: Head, end: bool) -> None:
        if not self._call.heeds(self):
            return
        if end:
            self._call.answer_tail(head)
        else:
            self._call.answer_head(head)

    def on_data(self, chunk: Chunk, end: bool) -> None:
        if self._call.heeds(self):
            self._call.answer_data(chunk)
            if end:
                self._call.fail(errors.Internal("server closed the stream without sending trailers"))

    def on_trailers(self, head: Head) -> None:
        if self._call.heeds(self):
            self._call.answer_tail(head)

    def on_reset(self, code: int, reason: str, *, local: bool) -> None:
        if not self._call.heeds(self):
            return
        if code == Code.REFUSED_STREAM and not local:
            self._call.lost(reason or "stream refused", unseen=True)
        else:
            self._call.fail(outcomes.of_reset(code, reason))

    def on_drained(self) -> None:
        if self._call.heeds(self):
            self._call.settle()

    def on_lost(self, reason: str) -> None:
        if self._call.heeds(self):
            self._call.lost(reason)


class Noting(Answering):
    """Hands the DATA of an answer, when it is complete, to ``note``, unless there is more to it than that."""

    __slots__ = ("_note", "_noted")

    def __init__(self, call: Passing, note: Note) -> None:
        super().__init__(call)
        self._note: Note | None = note
        self._noted = bytearray()

    def on_head(self, head: Head, end: bool) -> None:
        if head.encoded() != HEAD:
            self._note = None
        super().on_head(head, end)

    def on_data(self, chunk: Chunk, end: bool) -> None:
        if self._note is not None:
            self._noted += chunk
            if len(self._noted) > _MOST:
                self._note, self._noted = None, bytearray()
        super().on_data(chunk, end)

    def on_trailers(self, head: Head) -> None:
        if self._note is not None and head.encoded() == OK:
            self._note(bytes(self._noted))
        super().on_trailers(head)
