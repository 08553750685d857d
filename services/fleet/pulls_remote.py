"""What the other nodes may know of this one's latest pulls: how long they took, and what most of the time went for. It
comes from the node's own traces, and only pulls of shared namespaces are told.

Of waits for another operation it says no more than that: which image that was about may be private.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Collection, Mapping
from typing import Any

from services.kit.rpc import Channel
from services.traces.remote import RemoteStore
from services.traces.store import Query, Summary, Value

MOST = 20
"""Pulls of a namespace that are told, the newest."""
CAUSES = 6
"""Causes of a pull that are told."""
WORDS = 500
"""Characters of a text that are told."""
FRESH = 2.0
"""Seconds for which an answer is given again."""
KEPT = 200
"""Verdicts that are remembered."""


class Pulls:
    """The pulls of this node, by its traces service behind ``traces``."""

    def __init__(self, traces: Channel, namespaces: Collection[str]) -> None:
        self._traces = RemoteStore(traces)
        self._namespaces = sorted(namespaces)
        self._verdicts: dict[tuple[str, int], Mapping[str, Any]] = {}
        self._last: tuple[float, bytes] = (float("-inf"), b"")
        self._lock = asyncio.Lock()

    async def document(self) -> bytes:
        """The latest pulls as JSON. It raises what the traces service does."""
        async with self._lock:
            at, data = self._last
            if time.monotonic() - at > FRESH:
                data = json.dumps({"v": 1, "now": time.time_ns(), "pulls": await self._pulls()}).encode()
                self._last = time.monotonic(), data
            return data

    async def _pulls(self) -> list[Mapping[str, Any]]:
        found: list[Mapping[str, Any]] = []
        for namespace in self._namespaces:
            query = Query(operation="pull", namespace=namespace, limit=MOST)
            for each in await self._traces.traces(query):
                found.append({**_summary(each), **await self._verdict(each)})
        return found

    async def _verdict(self, summary: Summary) -> Mapping[str, Any]:
        key = summary.id, summary.spans
        found = self._verdicts.get(key)
        if found is None:
            judged = await self._traces.judged(summary.id)
            causes = [
                {"kind": each.kind, "part": each.part[:WORDS], "seconds": each.seconds, "what": each.what[:WORDS]}
                for each in judged.causes[:CAUSES]
            ]
            found = {"sentence": judged.sentence[:WORDS], "advice": judged.advice[:WORDS], "causes": causes}
            while len(self._verdicts) >= KEPT:
                del self._verdicts[next(iter(self._verdicts))]
            self._verdicts[key] = found
        return found


def _summary(trace: Summary) -> Mapping[str, Any]:
    return {
        "trace": trace.id,
        "namespace": trace.namespace,
        "image": trace.image[:WORDS],
        "outcome": trace.outcome,
        "start": trace.start,
        "seconds": trace.seconds,
        "bytes": _count(trace.attributes.get("splitd.bytes")),
        "peers": _count(trace.attributes.get("splitd.bytes.peers")),
    }


def _count(value: Value) -> int:
    return value if isinstance(value, int) else 0
