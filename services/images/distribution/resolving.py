"""What the name of an image stands for, for a pull. Its registry says it. Only while that is away, the fleet does, if
its nodes have the image: they say what most of them have.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from services.images.registry.client import Client
from services.images.transfer import Progress, Report
from services.kit import errors, loops, tracing
from services.oci.descriptors import Descriptor
from services.oci.references import Reference

if TYPE_CHECKING:
    from services.images.distribution.peers import Peers

log = logging.getLogger(__name__)

PATIENCE = 15.0
"""Seconds after which a registry that has not said what a name stands for counts as away, if the fleet knows it."""


async def resolved(
    client: Client,
    reference: Reference,
    name: str,
    namespace: str,
    peers: Peers | None,
    report: Report,
    patience: float = PATIENCE,
) -> Descriptor:
    """The descriptor of the target of ``reference``, which nodes have as the image ``name``. Errors are the registry's,
    as of ``Client.resolve``.
    """
    if peers is None or not peers.shares(namespace):
        return await client.resolve(reference)
    asking = loops.task("the resolving of a name", client.resolve(reference))
    try:
        await asyncio.wait((asking,), timeout=patience)
        if asking.done() and not isinstance(asking.exception(), errors.Unavailable):
            return asking.result()
        known = await peers.known(reference, name, namespace)
        found = None if known is None else await peers.root(reference, *known, namespace)
        if found is None or (asking.done() and asking.exception() is None):
            return await _answer(asking, "" if known is None else known[0])
        why = str(asking.exception()) if asking.done() else f"{reference.host} is silent for {patience:g} s"
    finally:
        asking.cancel()
        await asyncio.wait((asking,))
        if not asking.cancelled():
            asking.exception()  # marked as seen
    log.warning("%s is %s, as nodes of the fleet have it, since its registry is away: %s", reference, found.digest, why)
    tracing.operation(**{"splitd.resolved": "fleet"})
    report(Progress(f"{reference.host} is away: resolved as the fleet has it"))
    return found


async def _answer(asking: asyncio.Task[Descriptor], known: str) -> Descriptor:
    """The registry's answer, of whose image the fleet knows the digest, but no peer gives it."""
    try:
        return await asking
    except errors.Unavailable as error:
        if not known:
            raise
        raise errors.Unavailable.verbatim(f"{error}; and no node of the fleet gives {known}", error.trailers) from None
