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

from api.splitd.traces.v1 import traces_pb2 as pb
from api.splitd.traces.v1 import traces_stubs
from services.fleet.told import number
from services.kit.rpc import Channel

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
PATIENCE = 3.0
"""Seconds for the traces service to be there."""


class Pulls:
    """The pulls of this node, by its traces service behind ``traces``. Its RemoteStore is not used, since that loads
    OpenTelemetry's messages.
    """

    def __init__(self, traces: Channel, namespaces: Collection[str]) -> None:
        self._channel = traces
        self._traces = traces.client(traces_stubs.TRACES)
        self._namespaces = sorted(namespaces)
        self._verdicts: dict[tuple[str, int], Mapping[str, Any]] = {}
        self._last: tuple[float, bytes] = (float("-inf"), b"")
        self._lock = asyncio.Lock()

    async def document(self) -> bytes:
        """The latest pulls as JSON. It raises what the traces service does."""
        async with self._lock:
            at, data = self._last
            if time.monotonic() - at > FRESH:
                await self._channel.reached(PATIENCE)
                data = json.dumps({"v": 1, "now": time.time_ns(), "pulls": await self._pulls()}).encode()
                self._last = time.monotonic(), data
            return data

    async def _pulls(self) -> list[Mapping[str, Any]]:
        found: list[Mapping[str, Any]] = []
        for namespace in self._namespaces:
            request = pb.ListRequest(operation="pull", namespace=namespace, limit=MOST)
            for each in (await self._traces.List(request)).traces:
                found.append({**_summary(each), **await self._verdict(each)})
        return found

    async def _verdict(self, trace: pb.Summary) -> Mapping[str, Any]:
        key = trace.id, trace.spans
        found = self._verdicts.get(key)
        if found is None:
            judged = await self._traces.Judge(pb.JudgeRequest(id=trace.id))
            causes = [
                {"kind": each.kind, "part": each.part[:WORDS], "seconds": each.seconds, "what": each.what[:WORDS]}
                for each in judged.causes[:CAUSES]
            ]
            found = {"sentence": judged.sentence[:WORDS], "advice": judged.advice[:WORDS], "causes": causes}
            while len(self._verdicts) >= KEPT:
                del self._verdicts[next(iter(self._verdicts))]
            self._verdicts[key] = found
        return found


def _summary(trace: pb.Summary) -> Mapping[str, Any]:
    attributes = json.loads(trace.attributes or "{}")
    return {
        "trace": trace.id,
        "namespace": trace.namespace,
        "image": trace.image[:WORDS],
        "outcome": trace.outcome,
        "start": trace.start,
        "seconds": max(0, trace.end - trace.start) / 1e9,
        "bytes": number(attributes.get("splitd.bytes")),
        "peers": number(attributes.get("splitd.bytes.peers")),
    }
