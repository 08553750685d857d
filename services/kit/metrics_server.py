"""splitd.metrics.v1.Metrics: the metrics of this process, for the gateway, which makes one page of all of them; and
that call. A hundred containers have ten thousand series, so these become messages, and messages these, in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from api.splitd.metrics.v1 import metrics_pb2 as pb
from api.splitd.metrics.v1 import metrics_stubs
from services.kit import metrics
from services.kit.call import Call
from services.kit.channel import Channel
from services.kit.metrics import Family, Kind, Sample

_KINDS: dict[str, Kind] = {kind: kind for kind in ("counter", "gauge", "histogram", "summary")}


class MetricsServicer:
    """Answers what :func:`services.kit.metrics.collect` does."""

    SERVICE = metrics_stubs.METRICS

    async def Collect(self, request: pb.CollectRequest, call: Call) -> pb.CollectResponse:
        """The families of this process."""
        return await asyncio.to_thread(to_pb, await metrics.collect())


async def collect(channel: Channel, seconds: float) -> list[Family]:
    """The families of another process, within ``seconds``. Raises the errors of any call."""
    answer = await channel.client(metrics_stubs.METRICS).Collect(pb.CollectRequest(), timeout=seconds)
    return await asyncio.to_thread(from_pb, answer)


def to_pb(families: Iterable[Family]) -> pb.CollectResponse:
    return pb.CollectResponse(
        families=[
            pb.Family(
                name=family.name,
                help=family.help,
                kind=family.kind,
                samples=[pb.Sample(suffix=s.suffix, labels=dict(s.labels), value=s.value) for s in family.samples],
            )
            for family in families
        ]
    )


def from_pb(response: pb.CollectResponse) -> list[Family]:
    """Families of a kind that is unknown here are left out."""
    return [
        Family(
            family.name,
            family.help,
            kind,
            [Sample(sample.value, dict(sample.labels), sample.suffix) for sample in family.samples],
        )
        for family in response.families
        if (kind := _KINDS.get(family.kind)) is not None
    ]
