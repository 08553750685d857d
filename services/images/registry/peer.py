"""Another node of the fleet as a place that blobs are fetched from. Its side is ``services/fleet/peer_server.py``."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from services.images.registry.endpoint import Headers
from services.images.registry.failure import Blame, answered
from services.images.registry.transport import ERROR_BODY, USER_AGENT, Answer, Role, Session, peer_name
from services.images.registry_timeouts import Timeouts
from services.oci.descriptors import Descriptor
from services.oci.references import Reference

ARRIVING = "Splitd-Arriving"
"""The header of an answer of a peer that still fetches the blob itself. Of a 503: the bytes have not arrived yet, and
the fetch is alive.
"""
ASKS, AGAIN = 100, 1.0
"""How often a peer is asked that says so, at most, and the seconds from one time to the next, at least. It answers
after ten seconds.
"""


@dataclass(frozen=True, slots=True)
class PeerPlace:
    """The node ``node`` at ``address`` (``HOST:PORT``): a :class:`~.endpoint.Place`."""

    node: str
    address: str
    session: Session
    timeouts: Timeouts

    @property
    def name(self) -> str:
        return peer_name(self.node)

    @property
    def key(self) -> str:
        return peer_key(self.node)

    async def get(self, reference: Reference, descriptor: Descriptor, headers: Headers) -> Answer:
        """As :meth:`~.endpoint.Place.get`. Nothing says which repository is meant: a peer knows blobs only. It lasts as
        long as the peer says that the bytes are yet to arrive.
        """
        path = f"/v2/blobs/{descriptor.digest}"
        for last in reversed(range(ASKS)):
            begun = time.monotonic()
            answer = await self.session.exchange(
                "GET",
                f"https://{self.address}{path}",
                headers=[("User-Agent", USER_AGENT), ("Accept-Encoding", "identity"), *headers.items()],
                connect=self.timeouts.connect,
                handshake=self.timeouts.stall,
                stall=self.timeouts.stall,
                role=Role(mirror=True, then=reference.host, peer=self.node),
            )
            if answer.status in (200, 206):
                return answer
            if not last or answer.status != 503 or ARRIVING not in answer.headers:
                break
            answer.close()
            await asyncio.sleep(begun + AGAIN - time.monotonic())
        said = await answer.read(ERROR_BODY)
        failure = answered(self.name, f"GET {path}", answer.status, answer.reason, answer.headers, said)
        if answer.status == 503:
            failure.blame = Blame.NOBODY  # it lives, and says that another source is better
        answer.blame(failure)
        answer.close()
        raise failure


def peer_key(node: str) -> str:
    """The node's key in :mod:`.host_memory`."""
    return f"peer://{node}"
