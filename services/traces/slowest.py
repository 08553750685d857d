"""What distinguishes the slowest tenth of the last pulls, or other operations of one kind, from the others.

Each pull has a few properties: the host, a mirror, media types, the hour, other pulls meanwhile, the snapshotter, the
size of the image. A property distinguishes the slow ones if it is much more frequent among them than among the others,
and if chance would hardly make it so: Fisher's exact test, one-sided, at a level that is divided by the number of
properties that are tried (Bonferroni). When no property passes, nothing distinguishes them, and the answer says that.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from services.traces.sentences import seconds
from services.traces.store import Trace
from services.traces.tree import Tree, text, tree

FEWEST = 20
"""Pulls that are needed to say anything."""

SUPPORT = 3
"""Slow pulls that must have a property."""

DIFFERENCE = 0.3
"""How much more frequent it must be among the slow ones."""

LEVEL = 0.01
"""The chance at which some property would seem to distinguish pulls that nothing distinguishes."""

SLOWER = 1.25
"""A slow pull takes this many times as long as the median pull; if fewer than ``SUPPORT`` do, none is slow."""

NAMES = {
    "pull": ("pull", "pulls"),
    "push": ("push", "pushes"),
    "import": ("import", "imports"),
    "export": ("export", "exports"),
    "run": ("run", "runs"),
    "exec": ("exec", "execs"),
    "delete": ("delete", "deletes"),
    "collect": ("collection", "collections"),
}
"""Operations in words: one, and several."""

SIZES = ((0, "nothing to fetch"), (10e6, "below 10 MB"), (100e6, "10 to 100 MB"), (1e9, "100 MB to 1 GB"))


@dataclass(frozen=True, slots=True)
class Finding:
    """A property that is more frequent among the slow pulls than among the others."""

    attribute: str
    """``host``, ``mirror``, ``media type``, ``hour``, ``other pulls meanwhile`` (or runs), ``snapshotter``,
    ``size``.
    """
    value: str
    slow: int
    """Slow pulls that have it."""
    rest: int
    """Other pulls that have it."""
    chance: float
    """Of at least so many slow ones having it if it had nothing to do with being slow."""


@dataclass(frozen=True, slots=True)
class WhySlow:
    """What the last pulls say."""

    pulls: int
    """Operations that were compared: pulls, or those of the kind that was asked for."""
    slow: tuple[str, ...]
    """The ids of those of the slowest tenth that are slow, the slowest first."""
    threshold: float
    """Seconds that each of them took at least."""
    median: float
    """Seconds of the median pull."""
    findings: tuple[Finding, ...]
    """The clearest first; empty if nothing distinguishes the slow ones."""
    sentence: str


@dataclass(frozen=True, slots=True)
class _Pull:
    id: str
    seconds: float
    start: int
    end: int
    properties: frozenset[tuple[str, str]]


def why_slow(traces: Iterable[Trace], operation: str = "pull") -> WhySlow:
    """Compare the slowest tenth of the operations of one kind with the rest. Traces of other operations do not count.
    Those that failed count only for being there meanwhile.
    """
    one, several = NAMES.get(operation, (f"operation {operation}", f"operations {operation}"))
    trees = [made for trace in traces if trace.spans and _operation(made := tree(trace)) == operation]
    starts, ends = sorted(made.root.start for made in trees), sorted(made.root.end for made in trees)
    pulls = [
        _pull(made, several, bisect_left(starts, made.root.end) - bisect_right(ends, made.root.start) - 1)
        for made in trees
        if text(made.root.span.attributes.get("splitd.outcome")) in {"", "ok"}
    ]
    pulls.sort(key=lambda pull: -pull.seconds)
    if len(pulls) < FEWEST:
        said = f"{len(pulls)} {several} are too few to tell: {FEWEST} are needed"
        return WhySlow(len(pulls), (), 0.0, _median(pulls), (), said)
    median = _median(pulls)
    tenth = pulls[: max(SUPPORT, math.ceil(len(pulls) / 10))]
    slow = [pull for pull in tenth if pull.seconds >= SLOWER * median]
    rest = pulls[len(slow) :]
    if len(slow) < SUPPORT:
        said = (
            f"none is slow: the slowest {len(tenth)} of {len(pulls)} {several} took {seconds(tenth[-1].seconds)} s and"
        )
        said += f" longer, the median {one} {seconds(median)} s"
        return WhySlow(len(pulls), (), tenth[-1].seconds, median, (), said)
    findings, threshold = _findings(slow, rest), slow[-1].seconds
    said = f"the slowest {len(slow)} of {len(pulls)} {several} took {seconds(threshold)} s and longer (median"
    said += f" {seconds(median)} s): "
    said += _words(findings[0], len(slow), len(rest)) if findings else "nothing distinguishes them from the others"
    return WhySlow(len(pulls), tuple(pull.id for pull in slow), threshold, median, tuple(findings), said)


def _operation(made: Tree) -> str:
    return text(made.root.span.attributes.get("splitd.operation"))


def _median(pulls: list[_Pull]) -> float:
    return pulls[len(pulls) // 2].seconds if pulls else 0.0


def _words(finding: Finding, slow: int, rest: int) -> str:
    what = f"{finding.attribute} {finding.value}"
    return f"{finding.slow} of these {slow} have {what}, of the others {finding.rest} of {rest}"


def _pull(made: Tree, several: str, others: int) -> _Pull:
    root = made.root
    found: set[tuple[str, str]] = set()
    for node in made.nodes.values():
        attributes = node.span.attributes
        if node.span.name in {"registry.fetch", "registry.request"} and (host := node.text("server.address")):
            mirror = attributes.get("splitd.registry.mirror") is True
            found.add(("peer" if attributes.get("splitd.peer") else "mirror" if mirror else "host", host))
        if media_type := text(attributes.get("splitd.media_type")) or text(attributes.get("media_type")):
            found.add(("media type", media_type))
    if snapshotter := text(root.span.attributes.get("splitd.snapshotter")):
        found.add(("snapshotter", snapshotter))
    size = root.number("splitd.bytes")
    if size is not None:
        found.add(("size", next((name for most, name in SIZES if size <= most), "over 1 GB")))
    found.add((f"other {several} meanwhile", "none" if others <= 0 else "one" if others == 1 else "several"))
    if (hour := _hour(root.start)) is not None:
        found.add(("hour", f"{hour:02d} UTC"))
    return _Pull(made.id, root.length / 1e9, root.start, root.end, frozenset(found))


def _hour(time: int) -> int | None:
    try:
        return datetime.fromtimestamp(time / 1e9, UTC).hour
    except (OverflowError, ValueError, OSError):
        return None


def _findings(slow: list[_Pull], rest: list[_Pull]) -> list[Finding]:
    among_slow = Counter(each for pull in slow for each in pull.properties)
    among_rest = Counter(each for pull in rest for each in pull.properties)
    tried = len(among_slow | among_rest)
    findings = []
    for (attribute, value), count in among_slow.items():
        others = among_rest[attribute, value]
        if count < SUPPORT or count / len(slow) - others / len(rest) < DIFFERENCE:
            continue
        chance = _chance(count, len(slow), count + others, len(slow) + len(rest))
        if chance * tried <= LEVEL:
            findings.append(Finding(attribute, value, count, others, chance))
    return sorted(findings, key=lambda finding: finding.chance)


def _chance(count: int, slow: int, having: int, all_: int) -> float:
    """That of ``slow`` out of ``all_``, of which ``having`` have a property, at least ``count`` have it."""
    ways = sum(
        math.comb(having, each) * math.comb(all_ - having, slow - each) for each in range(count, min(slow, having) + 1)
    )
    return ways / math.comb(all_, slow)
