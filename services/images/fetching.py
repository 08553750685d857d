"""One blob from a registry into the store: from where an earlier attempt ended, hashed as it arrives, once for all who want it.

The registry client deals with lost connections and hosts that do not answer. What is left for here is a blob whose bytes turn out to be others than its digest says: then what was there before is
dropped, or the host it came from is asked last, and it is fetched again from its first byte.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Mapping

from services.images import oci
from services.images.asking import asked
from services.images.budget import Budget
from services.images.oci import Descriptor
from services.images.registry import Client, Reference
from services.images.transfer import Landing, Node
from services.images.turns import Turns
from services.kit import errors
from services.kit.faults import fault

TRIES = 3
"""Once with the bytes that were there, once from a host that has the wrong ones, once from another."""


class Fetcher:
    """Fetches blobs; one for the whole process, since it knows what is being fetched."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.moving: dict[str, tuple[int, int]] = {}
        """Bytes so far and in all of what is being fetched, by digest."""
        self._turns = Turns()

    async def fetch(self, node: Node, client: Client, reference: Reference, descriptor: Descriptor, labels: Mapping[str, str], number: int) -> bool:
        """See that the node has a blob; False if it had it. ``number`` is its place among the layers of its image."""
        if not descriptor.size:
            raise errors.InvalidArgument(f"unable to fetch descriptor ({descriptor.digest}) which reports content size of zero")
        async with self._turns.alone(descriptor.digest):
            try:
                async with node.landing(descriptor) as landing:
                    await self._landed(landing, client, reference, descriptor, labels, number)
            except errors.AlreadyExists:
                return False
            finally:
                self.moving.pop(descriptor.digest, None)
            return True

    async def _landed(self, landing: Landing, client: Client, reference: Reference, descriptor: Descriptor, labels: Mapping[str, str], number: int) -> None:
        known = await self._known(client, reference, descriptor) if landing.offset < descriptor.size else None
        for left in reversed(range(TRIES)):
            begun, body = landing.offset, None
            if known is not None:
                if begun:
                    await landing.restart()
                await landing.write(known)
            elif begun < descriptor.size:
                async with self.budget.layer(number), client.fetch(reference, asked(descriptor), begun) as body:
                    async for chunk in body:
                        await landing.write(chunk)
                        self.moving[descriptor.digest] = (landing.offset, descriptor.size)
                        fault("images.fetching")
            try:
                await landing.commit(labels)
                return
            except errors.FailedPrecondition as error:
                if body is not None and not begun:
                    body.distrust(str(error))
                await landing.restart()
                if not left:
                    hosts = ", ".join(body.hosts) if body is not None else reference.host
                    raise errors.FailedPrecondition(f"{hosts}: {reference.repository}: {error}") from None

    async def _known(self, client: Client, reference: Reference, descriptor: Descriptor) -> bytes | None:
        """The bytes of a manifest, which the client has checked, or of a blob that its descriptor brings along; None for others."""
        if descriptor.data:
            with contextlib.suppress(ValueError):
                data = base64.b64decode(descriptor.data, validate=True)
                if len(data) == descriptor.size and oci.digest_of(data) == descriptor.digest:
                    return data
        if oci.is_manifest(descriptor.media_type) or oci.is_index(descriptor.media_type):
            async with self.budget.document():
                return await client.manifest(reference, asked(descriptor))
        return None
