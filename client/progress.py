"""The state of a running transfer, from the events that the node sends (``services/images/distribution/progress.py``).

A transfer has *parts*: blobs, each known by its ref (``layer-sha256:...``), or the one archive that is imported or
exported. A part goes through its *stages* in order and never back, whatever order events come in. Its bytes never
decrease within a stage.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from services.images.transfer import LEFT_OUT, Progress
from services.images.waits import Wait

RATE_SECONDS = 3.0
"""Seconds over which a rate is measured."""

_DOCUMENTS = ("manifest-", "index-", "config-")


class Stage(enum.StrEnum):
    WAITING = "waiting"
    DOWNLOADING = "downloading"
    UPLOADING = "uploading"
    SENDING = "sending"
    RECEIVING = "receiving"
    DOWNLOADED = "downloaded"
    EXISTS = "exists"
    EXTRACTING = "extracting"
    DONE = "done"


MOVING = frozenset({Stage.DOWNLOADING, Stage.UPLOADING, Stage.SENDING, Stage.RECEIVING})
"""Stages in which bytes move between the node and another host or a client."""

_RANKS = {
    Stage.WAITING: 0,
    **dict.fromkeys(MOVING, 1),
    Stage.DOWNLOADED: 2,
    Stage.EXISTS: 2,
    Stage.EXTRACTING: 3,
    Stage.DONE: 4,
}

_EVENTS = {
    "waiting": Stage.WAITING,
    "downloading": Stage.DOWNLOADING,
    "uploading": Stage.UPLOADING,
    "sending": Stage.SENDING,
    "receiving": Stage.RECEIVING,
    "already exists": Stage.EXISTS,
    "extracting": Stage.EXTRACTING,
    "extracted": Stage.DONE,
}
"""``complete`` is missing: after a download there may be more to do."""


@dataclass(slots=True)
class Rate:
    """Bytes a second, over the last :data:`RATE_SECONDS`."""

    _samples: deque[tuple[float, int]] = field(default_factory=deque)

    def add(self, now: float, moved: int) -> None:
        """Record that so many bytes have moved in all by ``now`` (seconds)."""
        self._samples.append((now, moved))
        self._forget(now)

    def at(self, now: float) -> float:
        """The rate at ``now``; 0 if nothing is known, or nothing has moved for :data:`RATE_SECONDS`."""
        self._forget(now)
        if not self._samples:
            return 0.0
        (begun, before), (last, after) = self._samples[0], self._samples[-1]
        return (after - before) / (now - begun) if begun < now and now - last < RATE_SECONDS else 0.0

    def _forget(self, now: float) -> None:
        while len(self._samples) > 1 and self._samples[1][0] <= now - RATE_SECONDS:
            self._samples.popleft()


@dataclass(slots=True)
class Part:
    name: str
    digest: str = ""
    """Empty for an archive."""
    stage: Stage = Stage.WAITING
    bytes: int = 0
    """Of this stage: all bytes fetched or sent so far, also those of earlier transfers, or bytes extracted."""
    total: int = 0
    """0 if it is not known."""
    moved: int = 0
    """Bytes that this transfer itself has moved."""
    begun: int = 0
    """Bytes that existed when the transfer began."""
    existed: bool = False
    rate: Rate = field(default_factory=Rate)

    @property
    def is_document(self) -> bool:
        """Whether it is a manifest, an index or a config. These are small, so no user waits for them."""
        return self.name.startswith(_DOCUMENTS)

    @property
    def is_over(self) -> bool:
        return self.stage in (Stage.DONE, Stage.EXISTS)

    @property
    def label(self) -> str:
        """A short name for people."""
        return self.digest.partition(":")[2] or self.name.rpartition("/")[2]

    def rate_at(self, now: float) -> float:
        """Bytes a second; 0 unless bytes are moving."""
        return self.rate.at(now) if self.stage in MOVING else 0.0


def wait_of(event: Progress) -> Wait | None:
    """The wait that an event tells of, if it is one."""
    if event.name or len(event.parents) != 2:
        return None
    host, cause = event.parents
    return Wait(cause, event.event, host, event.progress, event.total)


class Tally:
    """The parts of one transfer, which began at ``now`` (seconds of any monotonic clock).

    ``complete`` is the stage of a part that has arrived. ``begun`` has, by name, the bytes that an earlier attempt
    left.
    """

    def __init__(self, now: float, complete: Stage = Stage.DONE, begun: Mapping[str, int] = {}) -> None:
        self.started = now
        self.parts: dict[str, Part] = {}
        self.saved: dict[str, str] = {}
        """Digests of the images that the node has stored, by name."""
        self.left_out: dict[str, str] = {}
        """The platforms of an archive's images that the node has not stored, by name."""
        self.root = ""
        """The digest of the image that is transferred, once it is known."""
        self.rate = Rate()
        self.wait: Wait | None = None
        """What the transfer waits for, if that has been told."""
        self.begun = begun
        self._complete = complete

    @property
    def rows(self) -> list[Part]:
        """The parts that are shown to people."""
        return [part for part in self.parts.values() if not part.is_document]

    @property
    def moved(self) -> int:
        """Bytes that the transfer has moved."""
        return sum(part.moved for part in self.parts.values() if not part.existed)

    @property
    def total(self) -> int:
        """Bytes that the transfer will move, as far as known; 0 if the size of a part is not known."""
        if any(part.stage in MOVING and not part.total for part in self.parts.values()):
            return 0
        return sum(max(part.total - part.begun, part.moved) for part in self.parts.values() if not part.existed)

    def take(self, event: Progress, now: float) -> Part | None:
        """Apply an event. The result is the part that it changed, if any."""
        if event.descriptor is not None and event.event in ("saved", "fetching image content", "pushing content"):
            self.root = event.descriptor.digest
            if event.event == "saved":
                self.saved[event.name] = self.root
        if not event.name:
            self.wait = wait_of(event)
        if event.event.startswith(LEFT_OUT):
            self.left_out[event.name] = event.event.removeprefix(LEFT_OUT)
        stage = self._complete if event.event == "complete" else _EVENTS.get(event.event)
        if stage is None or not event.name:
            return None
        part = self.parts.get(event.name)
        if part is None:
            part = self.parts[event.name] = Part(
                event.name,
                event.descriptor.digest if event.descriptor is not None else "",
                total=event.total,
                begun=self.begun.get(event.name, 0),
            )
            changed = True
        else:
            changed = False
        if stage in MOVING:
            self._moved(part, event.progress, now)
        if _RANKS[stage] < _RANKS[part.stage]:
            return part if changed else None
        before = (part.stage, part.bytes, part.total)
        self._enter(part, stage, event.progress, event.total)
        return part if changed or before != (part.stage, part.bytes, part.total) else None

    def finish(self, now: float) -> list[Part]:
        """The transfer succeeded, so every part is done, although the node may not have told of all of them. The result
        is the parts that this changes.
        """
        changed = [part for part in self.parts.values() if not part.is_over]
        for part in changed:
            self._enter(part, Stage.DONE, part.total, part.total)
        self.rate.add(now, self.moved)
        return changed

    def _enter(self, part: Part, stage: Stage, progress: int, total: int) -> None:
        part.bytes = max(part.bytes, progress) if stage is part.stage else progress
        part.stage = stage
        part.total = max(total, part.total)
        if stage is Stage.EXISTS:
            part.existed = True
        if stage in (Stage.DONE, Stage.DOWNLOADED, Stage.EXISTS):
            part.bytes = part.total = max(part.total, part.bytes, part.begun + part.moved)
            part.moved = max(part.moved, part.total - part.begun)

    def _moved(self, part: Part, progress: int, now: float) -> None:
        part.moved = max(part.moved, progress - part.begun)
        part.rate.add(now, part.moved)
        self.rate.add(now, self.moved)
