"""Reports the progress of pulls and pushes three times a second, as containerd reports it and ctr shows it; more seldom
while many transfers are under way.

A *job* is a blob, known by its ref (``layer-sha256:...``). Its parents are the documents that name it, or the image.
Its events, in order:

- ``waiting`` as soon as it is known, or ``already exists`` if nothing is to be done for it;
- ``downloading`` (or ``uploading``) with the bytes so far, as long as they grow; ``complete`` once it is there;
- ``extracting`` and ``extracted`` for layers that are unpacked.

For the transfer as a whole, :func:`reporting_waits` reports what it waits for (``images/waits.py``), after half a
second and then each second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.images.transfer import Progress, Report
from services.images.waits import AFTER, Board, Wait
from services.kit import errors, loops
from services.oci.descriptors import Descriptor

log = logging.getLogger(__name__)

INTERVAL = 0.3
_OFTEN, _SELDOM = 3, 10
"""Transfers that are reported so often at once: the reports of more take turns, as each costs the node and its client a
part of a millisecond for each blob. How much more seldom one is reported, at most.
"""
WAITS, AGAIN = 0.25, 1.0
"""Seconds from one look at what is waited for to the next, and from one report of the same wait to the next."""

Active = Callable[[], Awaitable[Mapping[str, tuple[int, int]]]]
"""The bytes so far and in total of each blob that is being transferred, by ref."""

Done = Callable[[str], Awaitable[bool]]
"""Whether the blob with this digest is there."""


class Working(Protocol):
    """Takes which layers the node unpacks at the moment."""

    def __call__(self, what: str, *, on: bool) -> None: ...


_running: set[Tracker] = set()
"""Those of this process."""


@dataclass(slots=True)
class _Job:
    descriptor: Descriptor
    parents: tuple[str, ...]
    state: str = "waiting"
    progress: int = 0
    unpacked: int = -1
    """Bytes of a layer that are unpacked; -1 before unpacking begins, which may be while the layer is still
    downloading.
    """


class _Telling:
    """Tells what is waited for. Events of waits have no name, and clients show such an event until the next one without
    a name: so when a wait is over, the last other one is told again. The last event with a name follows each time,
    since ctr draws anew only for those.
    """

    def __init__(self, board: Board, report: Report, after: float, again: float) -> None:
        self._board = board
        self._after = after
        self._again = again
        self._report = report
        self._status = ""
        self._named: Progress | None = None
        self._told: Wait | None = None
        self._at = float("-inf")

    def through(self, event: Progress) -> None:
        """Report another event."""
        if event.name:
            self._named = event
        else:
            self._status, self._told = event.event, None
        if self._told is not None:
            self.look()  # the wait may be over
        self._report(event)

    def _tell(self, event: Progress) -> None:
        self._report(event)
        if self._named is not None:
            self._report(self._named)

    def look(self) -> None:
        """Report the wait that is to be told now, if it is news."""
        wait, now = self._board.told(self._after), self._board.clock()
        if wait is not None:
            told = self._told
            same = told is not None and (told.cause, told.host) == (wait.cause, wait.host)
            if not same or now - self._at >= self._again or wait.seconds < self._told.seconds:  # type: ignore[union-attr]
                self._tell(
                    Progress(
                        wait.words,
                        parents=(wait.host, wait.cause),
                        progress=round(wait.seconds),
                        total=round(wait.lasts),
                    )
                )
                self._told, self._at = wait, now
        elif self._told is not None:
            self._told = None
            self._tell(Progress(self._status))


@contextlib.asynccontextmanager
async def reporting_waits(
    board: Board, report: Report, *, after: float = AFTER, interval: float = WAITS, again: float = AGAIN
) -> AsyncIterator[Report]:
    """During the block, waits are noted on ``board``, and those of more than ``after`` seconds are reported, each
    ``again`` after so many seconds. All other events go through the result.
    """
    telling = _Telling(board, report, after, again)

    async def tick() -> None:
        while True:
            await asyncio.sleep(interval)
            telling.look()

    with board.active():
        async with loops.running("the telling of waits", tick):
            yield telling.through


class Tracker:
    """The jobs of one transfer of the image ``root``; ``moving`` is the event of jobs that are being transferred."""

    def __init__(
        self,
        root: str,
        moving: str,
        report: Report,
        active: Active,
        done: Done,
        *,
        working: Working = lambda _, on: None,  # noqa: ARG005 (a Working that nobody looks at)
        interval: float = INTERVAL,
    ) -> None:
        self._root = root
        self._moving = moving
        self._report = report
        self._active = active
        self._done = done
        self._working = working
        self._interval = interval
        self._jobs: dict[str, _Job] = {}
        self._parents: dict[str, dict[str, None]] = {}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Tracker]:
        """Report the jobs during the block, and once more at its end."""

        async def tick() -> None:
            while True:
                await asyncio.sleep(self._interval * min(max(1.0, len(_running) / _OFTEN), _SELDOM))
                await self._update()

        try:
            _running.add(self)
            async with loops.running("the progress of a transfer", tick):
                yield self
        finally:
            _running.discard(self)
            await self._update()

    def add(self, descriptor: Descriptor) -> None:
        """Add a job that begins now or later."""
        if descriptor.digest not in self._jobs:
            self._tell(self._job(descriptor), "waiting", 0)

    def children(self, descriptor: Descriptor, children: Sequence[Descriptor]) -> None:
        """Note that ``children`` are parts of ``descriptor``; called before they are added."""
        ref = descriptor.ref
        for child in children:
            self._parents.setdefault(child.digest, {})[ref] = None

    def exists(self, descriptor: Descriptor) -> None:
        """Note that nothing is to be done for it."""
        self.add(descriptor)
        job = self._jobs[descriptor.digest]
        job.state, job.progress = "complete", descriptor.size
        self._report(Progress("already exists", descriptor.ref, (), descriptor.size, descriptor.size, descriptor))

    def extracting(self, descriptor: Descriptor, progress: int) -> None:
        """Note that ``progress`` bytes of a layer are unpacked; its size means all. (An ``Extracting`` of
        ``layers/unpacker.py``.)
        """
        self._job(descriptor).unpacked = progress
        self._working(descriptor.digest, on=progress < descriptor.size)

    def _job(self, descriptor: Descriptor) -> _Job:
        parents = tuple(self._parents.get(descriptor.digest, ())) or (self._root,)
        return self._jobs.setdefault(descriptor.digest, _Job(descriptor, parents))

    def _tell(self, job: _Job, event: str, progress: int, total: int | None = None) -> None:
        descriptor = job.descriptor
        self._report(
            Progress(
                event, descriptor.ref, job.parents, progress, descriptor.size if total is None else total, descriptor
            )
        )

    async def _update(self) -> None:
        try:
            active = await self._active()
            for job in list(self._jobs.values()):
                await self._update_of(job, active)
        except errors.NodeError as error:
            log.warning("progress of %s: %s", self._root, error)

    async def _update_of(self, job: _Job, active: Mapping[str, tuple[int, int]]) -> None:
        size = job.descriptor.size
        if job.state == "waiting" and (found := active.get(job.descriptor.ref)) is not None:
            offset, total = found
            if offset > job.progress:
                job.progress = offset
                self._tell(job, self._moving, offset, total)
        # it was not reported as existing meanwhile
        elif job.state == "waiting" and await self._done(job.descriptor.digest) and job.state == "waiting":
            job.state = "complete"
            self._tell(job, "complete", size)
        if job.state in ("complete", "extracting") and job.unpacked >= 0:
            state = "extracted" if job.unpacked >= size else "extracting"
            if state != job.state:
                job.state = state
                self._tell(job, state, job.unpacked)
