"""What the traces service holds and what was lost, as metrics."""

from __future__ import annotations

from collections.abc import Sequence

from services.kit import metrics
from services.kit.metrics import Family, Sample
from services.traces.live import OpenSpans
from services.traces.store import Store


def measured(store: Store, opened: OpenSpans) -> None:
    """Show the figures of ``store``, and the spans that processes lost before they sent them."""

    async def families() -> Sequence[Family]:
        found = await store.figures()
        items = {"traces": found.traces, "spans": found.spans}
        of_store = {"store": "traces"}
        return [
            Family("splitd_store_bytes", "Bytes in a store.", "gauge", [Sample(float(found.bytes), of_store)]),
            Family(
                "splitd_store_items",
                "Things in a store, by their kind.",
                "gauge",
                [Sample(float(count), {**of_store, "kind": kind}) for kind, count in items.items()],
            ),
            Family(
                "splitd_spans_dropped",
                "Spans that were lost: by the processes that made them, or by the traces service.",
                "counter",
                [
                    Sample(float(opened.dropped()), {"where": "sender"}, "_total"),
                    Sample(float(found.dropped), {"where": "store"}, "_total"),
                ],
            ),
        ]

    metrics.source(families)
