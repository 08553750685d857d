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
    first = max(_groups(verdict).items(), key=lambda group: group[1])[0]
    advised = (
        verdict.advice
        and max(
            ((kind, total) for kind, total in _groups(verdict).items() if kind is not Kind.UNKNOWN),
            key=lambda each: each[1],
        )[0]
    )
    return [f"it names {kind}: {verdict.sentence} {verdict.advice}" for kind in {first, advised} if kind in INNOCENT]


def _groups(verdict: Verdict) -> dict[Kind, float]:
    found: dict[Kind, float] = {}
    for cause in verdict.causes:
        found[cause.kind] = found.get(cause.kind, 0.0) + cause.seconds
    return found


async def with_cause(scene: Scene, injection: Injection) -> Judged:
    """Pull with a cause injected; the median without it is known."""
    image = injection.image()
    median = scene.medians[image.digest]
    await scene.forgotten()
    async with injection.inject(scene):
        verdict = await scene.pulled_and_judged(image)
    injected = [cause for cause in verdict.causes if injection.is_named_by(cause)]
    put = sum(cause.seconds for cause in injected)
    excess = verdict.wall - median
    figures = f"{verdict.wall:.2f} s, median without {median:.2f} s: {put:.2f} of {excess:.2f} s put to the cause"
    wrong = []
    if put < EXCESS * excess:
        wrong.append(f"less than {EXCESS:.0%} of the excess is put to {injection.kind}")
    if not injected or verdict.causes[0].kind is not injection.kind:
        wrong.append(f"the greatest cause is {verdict.causes[0].kind}, not {injection.kind}")
    if (name := injection.names or scene.registry.host) not in verdict.sentence:
        wrong.append(f"the sentence does not name {name}")
    return Judged(injection.name, verdict, figures, tuple(wrong))
