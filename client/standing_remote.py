"""Asks metadata where the records are, and whether they can be reached. This is for operators."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from api.splitd.records.v1 import records_stubs
from services.kit.rpc import Channel
from services.metadata.transactions import Standing


async def standing(metadata: Channel, seconds: float) -> Standing:
    """The answer of metadata's own socket. ``seconds`` limits the wait for it."""
    found = await metadata.client(records_stubs.RECORDS).GetStanding(Empty(), timeout=seconds)
    return Standing(
        store=found.store,
        revision=found.revision,
        away=None if found.in_step else found.away,
        reads=found.reads,
        why=found.why,
    )
