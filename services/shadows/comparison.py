"""Compares the answers of two services, and tells what differs by chance from what differs.

The rule is diffy's (Twitter, 2015): ours is asked twice. A field is reported if the candidate differs from ours clearly
more often than ours differs from itself: by more than a fifth of both rates together, and in more than 3 of 10,000
calls.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from services.shadows.store import (
    ABSENT,
    CODE,
    EXAMPLES,
    FIELDS,
    OTHER,
    Answer,
    Difference,
    Example,
    Latency,
    MethodReport,
)

_RELATIVE = 0.2
_ABSOLUTE = 0.0003

_BOUNDS = tuple(1e-5 * 2 ** (step / 8) for step in range(8 * 24))
"""Upper bounds of the histogram, in seconds: from 10 µs to 160 s, each 9 % above the one before."""


class Latencies:
    """Times in a histogram, whose size does not depend on their number."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_BOUNDS) + 1)
        self._count = 0

    def add(self, seconds: float) -> None:
        self._counts[bisect.bisect_left(_BOUNDS, seconds)] += 1
        self._count += 1

    def latency(self) -> Latency:
        """The percentiles, at most 9 % too high."""
        return Latency(self._count, self._percentile(0.5), self._percentile(0.99))

    def _percentile(self, share: float) -> float:
        wanted, seen = share * self._count, 0
        for bound, count in zip((*_BOUNDS, _BOUNDS[-1]), self._counts, strict=True):
            seen += count
            if count and seen >= wanted:
                return bound
        return 0.0


@dataclass(slots=True)
class _Field:
    """How often a field differed."""

    count: int = 0
    noise: int = 0
    examples: list[Example] = field(default_factory=list)


class Comparison:
    """The comparison of one method's calls."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.calls = 0
        self.dropped = 0
        self.skipped: dict[str, int] = {}
        self.ours, self.candidate = Latencies(), Latencies()
        self._compared = 0
        self._asked = 0
        self._fields: dict[str, _Field] = {}
        self._kinds: dict[frozenset[str], int] = {}
        """Compared calls by the fields in which they differed, which decide later whether a call was different: a field
        may turn out to be noise.
        """

    def skip(self, reason: str) -> None:
        """Count a copy that cannot be compared."""
        self.skipped[reason] = self.skipped.get(reason, 0) + 1

    def compare(
        self, ours: Answer, candidate: Answer, again: Answer | None, *, request: Callable[[], str], trace: str = ""
    ) -> None:
        """Compare one call's answers; ``again`` is what ours answered when it was asked a second time, if it was.
        ``request`` shows the request, for an example.
        """
        self._compared += 1
        self.candidate.add(candidate.seconds)
        found = self._differing(ours, candidate)
        for name, wheres in found.items():
            self._fields[name].count += 1
            examples = self._fields[name].examples
            if len(examples) < EXAMPLES:
                where = wheres[0]
                examples.append(Example(_value(ours, where), _value(candidate, where), where, request(), trace))
        kind = frozenset(found)
        if kind not in self._kinds and len(self._kinds) >= FIELDS:
            kind = frozenset({OTHER})
            self._fields.setdefault(OTHER, _Field())
        self._kinds[kind] = self._kinds.get(kind, 0) + 1
        if again is not None:
            self._asked += 1
            for name in self._differing(ours, again):
                self._fields[name].noise += 1

    def _differing(self, one: Answer, other: Answer) -> Mapping[str, Sequence[str]]:
        """The fields in which two answers differ, each with the concrete paths. Answers with different codes differ in
        nothing else: one of them has no fields.
        """
        wheres = (
            [CODE]
            if one.code != other.code
            else sorted(
                path
                for path in one.fields.keys() | other.fields.keys()
                if one.fields.get(path, ABSENT) != other.fields.get(path, ABSENT)
            )
        )
        found: dict[str, list[str]] = {}
        for where in wheres:
            name = general(where)
            if name not in self._fields and len(self._fields) >= FIELDS:
                name = OTHER
            self._fields.setdefault(name, _Field())
            found.setdefault(name, []).append(where)
        return found

    def _is_noise(self, name: str) -> bool:
        found = self._fields[name]
        rate = found.count / self._compared
        noise = found.noise / self._asked if self._asked else 0.0
        return rate - noise <= _ABSOLUTE or rate - noise <= _RELATIVE * (rate + noise)

    def report(self) -> MethodReport:
        """The state of the comparison."""
        real = {name for name, found in self._fields.items() if found.count and not self._is_noise(name)}
        different = sum(count for kind, count in self._kinds.items() if kind & real)
        differences = [
            Difference(name, found.count, found.noise, self._asked, tuple(found.examples))
            for name, found in self._fields.items()
            if name in real
        ]
        return MethodReport(
            self.method,
            self.calls,
            self._compared - different,
            different,
            self.dropped,
            dict(self.skipped),
            self.ours.latency(),
            self.candidate.latency(),
            sorted(differences, key=lambda each: (-each.count, each.name)),
        )


_IN_BRACKETS = re.compile(r"\[[^\]]*\]")
_LABEL = re.compile(r"\.(labels|annotations)\..*")


def general(path: str) -> str:
    """The field that a concrete path is one of: ``info[sha256:…].labels.x`` is ``info[].labels``."""
    return _LABEL.sub(r".\1", _IN_BRACKETS.sub("[]", path))


def _value(answer: Answer, path: str) -> str:
    return answer.code if path == CODE else answer.fields.get(path, ABSENT)
