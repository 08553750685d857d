"""How far the parts of a transfer are, told three times a second: for pulls and pushes, as containerd tells it and ctr
shows it.

A *job* is a blob, known by its ref (``layer-sha256:...``), below the document that named it, or below the image. Its
events, in order:

- ``waiting`` as soon as it is known, or ``already exists`` if nothing is to be done for it;
- ``downloading`` (or ``uploading``) with the bytes so far, as long as they grow; ``complete`` once it is there;
- ``extracting`` and ``extracted`` for layers that are unpacked.

And of the transfer as a whole, each second: for whom it waits, if nothing has come from him for some
(:func:`telling_of`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from services.images.registry.silence import Silence
from services.images.transfer import SILENT, Progress, Report
from services.kit import errors, loops
from services.oci.descriptors import Descriptor

log = logging.getLogger(__name__)

INTERVAL = 0.3
SILENT_AFTER, SILENT_INTERVAL = 5.0, 1.0
"""Seconds of a host's silence after which that is told, and then how often."""

Active = Callable[[], Awaitable[Mapping[str, tuple[int, int]]]]
"""Bytes so far and in all of what is under way, by ref."""

Done = Callable[[str], Awaitable[bool]]
"""Whether the blob of this digest is there."""


@dataclass(slots=True)
class _Job:
    descriptor: Descriptor
    parents: tuple[str, ...]
    state: str = "waiting"
    progress: int = 0
    unpacked: int = -1
    """Bytes of a layer that are unpacked; -1 before that begins. It may begin while the layer is still downloading."""


@contextlib.asynccontextmanager
async def telling_of(
    silence: Silence | None, report: Report, *, after: float = SILENT_AFTER, interval: float = SILENT_INTERVAL
) -> AsyncIterator[Report]:
    """While the block lasts, tell of a host that is waited for and has been silent for some seconds, and for how long.
    Its other events go through what is given: the last of them without a name is told again when the host says
    something, since clients show it until there is another.
    """
    status = ""

    def through(event: Progress) -> None:
        nonlocal status
        if not event.name:
            status = event.event
        report(event)

    told = False

    async def tick() -> None:
        assert silence is not None
        nonlocal told
        while True:
            await asyncio.sleep(interval)
            host, seconds = silence.longest()
            if seconds >= after:
                report(
                    Progress(f"{SILENT}{host}, silent for {seconds:.0f} s", parents=(host,), progress=round(seconds))
                )
                told = True
            elif told:
                report(Progress(status))
                told = False

    if silence is None:
        yield report
        return
    async with loops.running("the telling of silent hosts", tick):
        yield through


class Tracker:
    """The jobs of one transfer of the image ``root``; ``moving`` is the event of those under way."""

    def __init__(
        self, root: str, moving: str, report: Report, active: Active, done: Done, *, interval: float = INTERVAL
    ) -> None:
        self._root = root
        self._moving = moving
        self._report = report
        self._active = active
        self._done = done
        self._interval = interval
        self._jobs: dict[str, _Job] = {}
        self._parents: dict[str, dict[str, None]] = {}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Tracker]:
        """Tell about the jobs as long as the block lasts, and once more at its end."""

        async def tick() -> None:
            while True:
                await asyncio.sleep(self._interval)
                await self._update()

        try:
            async with loops.running("the progress of a transfer", tick):
                yield self
        finally:
            await self._update()

    def add(self, descriptor: Descriptor) -> None:
        """A job that begins now, or will."""
        if descriptor.digest not in self._jobs:
            self._tell(self._job(descriptor), "waiting", 0)

    def children(self, descriptor: Descriptor, children: Sequence[Descriptor]) -> None:
        """``children`` are parts of ``descriptor``; told before they are added."""
        ref = descriptor.ref
        for child in children:
            self._parents.setdefault(child.digest, {})[ref] = None

    def exists(self, descriptor: Descriptor) -> None:
        """Nothing is to be done for it."""
        self.add(descriptor)
        job = self._jobs[descriptor.digest]
        job.state, job.progress = "complete", descriptor.size
        self._report(Progress("already exists", descriptor.ref, (), descriptor.size, descriptor.size, descriptor))

    def extracting(self, descriptor: Descriptor, progress: int) -> None:
        """So many bytes of a layer are unpacked; its size means all. (An ``Extracting`` of ``layers/unpacker.py``.)"""
        self._job(descriptor).unpacked = progress

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
        # nobody told meanwhile that it exists
        elif job.state == "waiting" and await self._done(job.descriptor.digest) and job.state == "waiting":
            job.state = "complete"
            self._tell(job, "complete", size)
        if job.state in ("complete", "extracting") and job.unpacked >= 0:
            job.state = "extracted" if job.unpacked >= size else "extracting"
            self._tell(job, job.state, job.unpacked)
