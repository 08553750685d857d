"""The verdict on an operation: where its time went, in one sentence, and what would help most.

``judge`` works it out from the spans alone: the tree (:mod:`.tree`), the critical path (:mod:`.critical_path`), the
reasons of its pieces (:mod:`.attribution`), and words for them (:mod:`.sentences`). It is pure and bounded, whatever
the spans say. Names from outside are in its texts, cut to a length but not escaped: whoever prints them does that
(``client.shown``), and so does a page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from services.traces import sentences
from services.traces.attribution import Attribution
from services.traces.causes import Cause, Kind, Reason, Slice
from services.traces.critical_path import Path
from services.traces.store import Live, Span, Trace, best, head
from services.traces.tree import MOST, Tree, text, tree

__all__ = ["Cause", "Kind", "Segment", "Verdict", "judge", "wanted", "with_open"]


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the critical path, in nanoseconds since the epoch: ``span`` had this time for itself, because of
    ``cause``. The segments follow each other without a gap from the root's start to its end.

    ``span`` may be of another trace: one that this operation waited for. Segments of a span that measured shares of its
    time stand in a fixed order.
    """

    span: Span
    start: int
    end: int
    cause: Cause

    @property
    def seconds(self) -> float:
        return (self.end - self.start) / 1e9


@dataclass(frozen=True, slots=True)
class Verdict:
    """Where the time of an operation went."""

    trace: str
    operation: str
    """``splitd.operation``, or the root's name."""
    image: str
    outcome: str
    """``ok``, ``failed``, ``cancelled``; empty if unknown."""
    start: int
    """Of the root, in nanoseconds since the epoch."""
    wall: float
    """Seconds of the root."""
    kinds: tuple[Kind, ...]
    """What the sentence names: first the kind of the causes that took most of the time together."""
    sentence: str
    advice: str
    """What would help most, and by how much at best; empty if nothing stands out."""
    gain: float
    """Seconds that ``advice`` promises at best."""
    causes: tuple[Cause, ...]
    """The greatest first; their seconds add up to ``wall``."""
    path: tuple[Segment, ...]
    notes: tuple[str, ...] = ()


def wanted(trace: Trace) -> set[str]:
    """The ids of other traces that the waits of this one link to, for ``judge``; 32 at most."""
    found = {link.trace for span in trace.spans if span.name.startswith("wait.") for link in span.links}
    return set(sorted(found - {trace.id, *(span.trace for span in trace.spans)})[:32])


def with_open(stored: Iterable[Trace], ids: Iterable[str], live: Live) -> list[Trace]:
    """The stored traces and those of ``ids``, with their spans that are still open: whoever held what an operation
    waited for is often still under way, and its root says who it is.
    """
    spans = {trace.id: list(trace.spans) for trace in stored}
    asked, ended = {*spans, *ids}, {(span.trace, span.id) for found in spans.values() for span in found}
    for span in live.spans:
        if span.trace in asked and (span.trace, span.id) not in ended:
            spans.setdefault(span.trace, []).append(replace(span, end=max(span.start, live.now)))
    return [Trace(name, sorted(found, key=lambda span: span.start)) for name, found in spans.items()]


def judge(trace: Trace, others: Iterable[Trace] = ()) -> Verdict:
    """Judge an operation; ValueError if the trace has no span.

    ``others`` are the traces that its waits link to (:func:`wanted`), those that are known: with them the verdict says
    what the others did while this one waited.
    """
    made = tree(trace)
    trees = [made, *(tree(other) for other in others if other.spans and other.id != trace.id)]
    spans = {(node.span.trace, node.span.id): node for each in reversed(trees) for node in each.nodes.values()}
    path = Path(spans)
    slices = Attribution(made, spans, path).slices(path.of(made.root))
    causes = _causes(made, slices, sentences.rates(spans.values()))
    root = made.root
    wall = root.length / 1e9
    about = best(head(span) for span in ([root.span] if made.rooted else trace.spans[:MOST]))
    outcome = text(about.outcome)
    ordered = tuple(sorted(causes.values(), key=lambda cause: -cause.seconds))
    said = sentences.of(about, ordered, slices, made)
    return Verdict(
        trace=trace.id,
        operation=text(about.operation) or text(root.span.name),
        image=text(about.image),
        outcome=outcome,
        start=root.start,
        wall=wall,
        kinds=said.kinds,
        sentence=said.sentence,
        advice=said.advice,
        gain=said.gain,
        causes=ordered,
        path=tuple(Segment(part.node.span, part.start, part.end, causes[part.reason]) for part in slices),
        notes=said.notes,
    )


def _causes(made: Tree, slices: Sequence[Slice], rates: Mapping[str, float]) -> dict[Reason, Cause]:
    """All slices with the same reason as one cause."""
    lengths: Counter[Reason] = Counter()
    layers: dict[Reason, Counter[tuple[int | None, str]]] = {}
    for part in slices:
        lengths[part.reason] += part.end - part.start
        layers.setdefault(part.reason, Counter())[part.layer, part.digest] += part.end - part.start
    whole = made.root.length
    causes = {}
    for reason, length in lengths.items():
        (layer, digest), most = layers[reason].most_common(1)[0]
        alone = most >= sentences.MOSTLY * length
        causes[reason] = Cause(
            kind=reason.kind,
            part=reason.part,
            seconds=length / 1e9,
            share=length / whole if whole else 0.0,
            what=sentences.what(reason, layer if alone else None, rates.get(reason.host)),
            host=reason.host,
            layer=layer,
            digest=digest,
            holder=reason.holder,
        )
    return causes
