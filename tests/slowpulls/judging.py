"""Whether a verdict is right about a pull whose cause is known."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from deploy.samples import Image
from services.traces.causes import Kind
from services.traces.verdict import Verdict
from tests.slowpulls.causes import Injection
from tests.slowpulls.scene import Scene

EXCESS = 0.8
"""The part of what a pull took longer that its verdict must put to the injected cause."""

INNOCENT = {Kind.REGISTRY, Kind.MIRROR, Kind.LOCK, Kind.QUEUE}
"""What the verdict on a pull with nothing injected does not name."""


@dataclass(frozen=True)
class Judged:
    """A verdict, and what is wrong with it."""

    name: str
    verdict: Verdict
    figures: str
    wrong: tuple[str, ...]


async def undisturbed(scene: Scene, image: Image, pulls: int) -> Judged:
    """Pull with nothing injected; what is wrong with any of the verdicts is told with the last."""
    found = [await scene.judged(image) for _ in range(pulls)]
    scene.medians[image.digest] = statistics.median(verdict.wall for verdict in found)
    wrong = [reason for verdict in found for reason in _named_innocent(verdict)]
    figures = ", ".join(f"{verdict.wall:.2f} s" for verdict in found)
    return Judged("nothing", found[-1], figures, tuple(wrong))


def _named_innocent(verdict: Verdict) -> list[str]:
    advised = {cause.kind for cause in verdict.causes if verdict.advice and cause.kind in INNOCENT}
    wrong = set(verdict.kinds) & INNOCENT | {kind for kind in advised if _seconds(verdict, kind) >= verdict.gain}
    return [f"it names {kind}: {verdict.sentence} {verdict.advice}" for kind in wrong]


def _seconds(verdict: Verdict, kind: Kind) -> float:
    return sum(cause.seconds for cause in verdict.causes if cause.kind is kind)


async def with_cause(scene: Scene, injection: Injection, pulls: int = 1, *, in_turn: bool = False) -> Judged:
    """Pull with a cause injected, and judge the verdict on the pull of median length. Where the median without the
    cause is known, so is what that pull took longer.

    ``in_turn``: a pull without the cause comes before each with it, and their median counts. A disk that still writes
    what earlier pulls left makes an image of hundreds of megabytes slower by seconds.
    """
    image = injection.image()
    found, without = [], []
    for _ in range(pulls):
        if in_turn:
            without.append((await scene.judged(image)).wall)
        await scene.forgotten()
        scene.named = ""
        async with injection.inject(scene, image):
            verdict = await scene.pulled_and_judged(image)
        found.append((verdict, scene.named))
    verdict, named = sorted(found, key=lambda each: each[0].wall)[(pulls - 1) // 2]
    put = sum(cause.seconds for cause in verdict.causes if injection.is_named_by(cause))
    if without:
        scene.medians[image.digest] = statistics.median(without)
    figures, wrong = f"{verdict.wall:.2f} s: {put:.2f} s put to the cause", []
    if (median := scene.medians.get(image.digest)) is not None:
        excess = verdict.wall - median
        figures = f"{verdict.wall:.2f} s, median without {median:.2f} s: {put:.2f} of {excess:.2f} s put to the cause"
        if put < EXCESS * excess:
            wrong.append(f"less than {EXCESS:.0%} of the excess is put to {injection.kind}")
    if put < injection.least:
        wrong.append(f"less than {injection.least} s is put to {injection.kind}")
    if not {injection.kind, Kind.LOCK if injection.holder else injection.kind} & set(verdict.kinds):
        wrong.append(f"the sentence is about {', '.join(verdict.kinds)}, not {injection.kind}")
    if (name := injection.names or named or scene.registry.host) not in verdict.sentence:
        wrong.append(f"the sentence does not name {name}")
    return Judged(injection.name, verdict, figures, tuple(wrong))
