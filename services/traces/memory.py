"""The store in memory: a fake for tests, without bounds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from services.kit import errors
from services.traces import convert
from services.traces.store import Figures, Piece, Query, Span, Status, Summary, Trace, best, head


class MemoryStore:
    """A ``Store`` in a dict."""

    def __init__(self) -> None:
        self._traces: dict[str, dict[tuple[str, int], Span]] = {}

    async def add(self, spans: Sequence[Span]) -> None:
        await self.take([*convert.pieces(convert.spans_to_pb(spans).resource_spans)])

    async def take(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            known = self._traces.setdefault(piece.trace, {})
            for span in convert.spans(piece.data):
                known.setdefault((span.id, len(known) if span.id == "0" * 16 else -1), span)

    async def traces(self, query: Query) -> list[Summary]:
        found = [_summary(name, spans.values()) for name, spans in self._traces.items()]
        found.sort(key=lambda summary: summary.start, reverse=True)
        return [each for each in found if query.selects(each)][: query.limit]

    async def trace(self, prefix: str) -> Trace:
        name = self._named(prefix)
        return Trace(name, sorted(self._traces[name].values(), key=lambda span: span.start))

    async def encoded(self, prefix: str) -> Sequence[bytes]:
        return [convert.spans_to_pb(self._traces[self._named(prefix)].values()).SerializeToString()]

    async def delete(self, trace: str) -> None:
        if self._traces.pop(trace, None) is None:
            raise errors.NotFound(f"trace {trace}")

    async def figures(self) -> Figures:
        return Figures(len(self._traces), sum(map(len, self._traces.values())))

    async def tidy(self) -> None:
        """There is nothing to do."""

    def _named(self, prefix: str) -> str:
        if not prefix:
            raise errors.InvalidArgument("the id of a trace is empty")
        found = [name for name in self._traces if name.startswith(prefix.lower())]
        if not found:
            raise errors.NotFound(f"trace {prefix}")
        if len(found) > 1:
            raise errors.InvalidArgument(f"trace {prefix}: several begin so, such as {found[0]} and {found[1]}")
        return found[0]


def _summary(name: str, spans: Iterable[Span]) -> Summary:
    spans = list(spans)
    said = best(head(span) for span in spans)
    return Summary(
        name,
        said.name,
        said.operation,
        said.namespace,
        said.image,
        said.outcome,
        said.start if said.root else min(span.start for span in spans),
        said.end if said.root else max(max(span.start, span.end) for span in spans),
        len(spans),
        sum(span.status == Status.ERROR for span in spans),
        said.attributes,
    )
