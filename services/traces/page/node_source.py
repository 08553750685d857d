"""What the page shows of this node: the store's traces, what the processes report, and how they are."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from services.kit import errors
from services.traces.live import OpenSpans
from services.traces.page.source import OPEN, Node
from services.traces.store import Figures, Live, Query, Store, Summary, Trace


class NodeSource:
    """A ``Source``. ``health`` tells how the node is (:class:`services.traces.node_remote.RemoteNode`)."""

    def __init__(self, store: Store, open_spans: OpenSpans, health: Callable[[], Awaitable[Node]]) -> None:
        self._store = store
        self._open = open_spans
        self._health = health

    async def traces(self, query: Query) -> list[Summary]:
        return await self._store.traces(query)

    async def trace(self, prefix: str) -> Trace:
        """The trace with its open spans, as if they ended now; they say that they are open."""
        now = self._open.asked()
        still = [span for span in now.spans if span.trace.startswith(prefix.lower())]
        try:
            found = await self._store.trace(prefix)
        except errors.NotFound:
            if not still:
                raise
            found = Trace(still[0].trace, ())
        ended = {span.id for span in found.spans}
        open_now = [
            replace(span, end=max(now.now, span.start), attributes={**span.attributes, OPEN: True})
            for span in still
            if span.trace == found.id and span.id not in ended
        ]
        if not open_now:
            return found
        return Trace(found.id, sorted((*found.spans, *open_now), key=lambda span: span.start))

    async def figures(self) -> Figures:
        found = await self._store.figures()
        return replace(found, dropped=found.dropped + self._open.dropped())

    async def live(self) -> Live:
        return self._open.asked()

    async def node(self) -> Node:
        return await self._health()
