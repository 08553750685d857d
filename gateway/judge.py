"""Judges a candidate by how its calls end, and limits how long they take.

It stands around the calls of the candidate's upstream (:mod:`gateway.instruments`), inside of injected faults, which
say nothing about the candidate. Calls that their client gave up say nothing either, nor do those that other people's
services need not serve: splitd's own (LocalFiles, Stamp, Removals), and Cleanup.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from gateway.candidates import Candidate
from gateway.instruments import Go, Order
from services.kit import errors
from services.kit.rpc import LONG, CarriedStream, Headers

_JUDGED = "/containerd."
_WRITE = "/containerd.services.content.v1.Content/Write"
_OPTIONAL = "/containerd.services.snapshots.v1.Snapshots/Cleanup"


class Judge:
    """Counts for ``candidate``; ``noted`` is called after each call that counted."""

    order = Order.OUTCOME

    def __init__(self, candidate: Candidate, noted: Callable[[], None]) -> None:
        self._candidate = candidate
        self._noted = noted
        self._under_way = 0
        self.idle = asyncio.Event()
        """Set while no call has begun that has not ended."""
        self.idle.set()

    def _begun(self) -> None:
        """A call begins."""
        self._under_way += 1
        self.idle.clear()

    def _over(self) -> None:
        """One of them has ended."""
        self._under_way -= 1
        if not self._under_way:
            self.idle.set()

    async def unary(self, path: str, request: bytes, headers: Headers, go: Go) -> bytes:
        terms = self._candidate.terms
        self._begun()
        try:
            try:
                async with asyncio.timeout(
                    None if path.rpartition("/")[2] in LONG else terms.deadline or None
                ) as limit:
                    answer = await go()
            except TimeoutError:
                if not limit.expired():
                    raise
                raise errors.DeadlineExceeded(
                    f"service {terms.backend} has not answered {path} within {terms.deadline:g} s"
                ) from None
        except errors.NodeError as error:
            self._note(path, error.code)
            raise
        finally:
            self._over()
        self._note(path, 0)
        return answer

    def stream(self, path: str, headers: Headers, carried: CarriedStream) -> CarriedStream:
        self._begun()
        return _Judged(carried, partial(self._ended, path), each_answered=path == _WRITE)

    def _ended(self, path: str, code: int | None) -> None:
        self._over()
        if code is not None:
            self._note(path, code)

    def _note(self, path: str, code: int) -> None:
        if path.startswith(_JUDGED) and not (code == errors.Unimplemented.code and path == _OPTIONAL):
            self._candidate.outcomes.note(code)
            self._noted()


class _Judged:
    """A stream whose end is told once: by its code, or None if its client gave it up. Of a Write, each message is
    answered, and its client leaves after its commit: that is no giving up, if no answer is missing.
    """

    __slots__ = ("_carried", "_each_answered", "_missing", "_told")

    def __init__(self, carried: CarriedStream, told: Callable[[int | None], None], *, each_answered: bool) -> None:
        self._carried = carried
        self._told: Callable[[int | None], None] | None = told
        self._each_answered = each_answered
        self._missing: int | None = None
        """Answers; None before the first message."""

    async def send(self, message: bytes) -> None:
        self._missing = (self._missing or 0) + 1
        try:
            await self._carried.send(message)
        except errors.NodeError as error:
            self._ended(error.code)
            raise

    async def done_sending(self) -> None:
        try:
            await self._carried.done_sending()
        except errors.NodeError as error:
            self._ended(error.code)
            raise

    async def receive(self) -> bytes | None:
        try:
            message = await self._carried.receive()
        except errors.NodeError as error:
            self._ended(error.code)
            raise
        if message is None:
            self._ended(0)
        else:
            self._missing = (self._missing or 0) - 1
        return message

    async def leading(self) -> Headers:
        return await self._carried.leading()

    def trailing(self) -> Headers:
        return self._carried.trailing()

    def cancel(self) -> None:
        self._ended(0 if self._each_answered and self._missing == 0 else None)
        self._carried.cancel()

    def _ended(self, code: int | None) -> None:
        told, self._told = self._told, None
        if told is not None:
            told(code)
