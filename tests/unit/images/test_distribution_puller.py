"""The layers of a pull, as the unpacker sees them."""

from __future__ import annotations

import asyncio

from services.images.distribution.puller import _Arriving
from services.images.node.ingest import SharedIngest
from services.kit import tracing
from tests.spans import attribute, recorded
from tests.support import turns


async def test_who_waits_for_bytes_says_who_brings_them() -> None:
    """The wait begins before the fetch does, and links to it all the same. A layer that is there is not waited for."""
    blobs = _Arriving(2)

    async def unpack(number: int) -> None:
        with tracing.span("unpack.layer"):
            await blobs.begun(number)
            await blobs.there(number)

    async def commit(_: object) -> None:
        return

    with recorded() as spans:
        blobs.arrived(1)
        await unpack(1)
        assert not spans.named("wait.bytes")
        unpacking = asyncio.ensure_future(unpack(0))
        await turns()
        with tracing.span("images.layer"):
            blobs.arriving(0, SharedIngest(1, commit))
            blobs.arrived(0)
        await unpacking
        wait = spans.one("wait.bytes")
        assert attribute(wait, "splitd.wait.for") == "a layer that is arriving"
        assert spans.parent(wait).name == "unpack.layer"
        assert [each.name for each in spans.linked(wait)] == ["images.layer"]
