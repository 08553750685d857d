"""Another node of the fleet as a place that blobs are fetched from. Its side is ``services/fleet/peer_server.py``."""

from __future__ import annotations

from dataclasses import dataclass

from services.images.registry.endpoint import Headers
from services.images.registry.failure import answered
from services.images.registry.transport import ERROR_BODY, USER_AGENT, Answer, Role, Session, peer_name
from services.images.registry_timeouts import Timeouts
from services.oci.descriptors import Descriptor
from services.oci.references import Reference

ARRIVING = "Splitd-Arriving"
"""The header of an answer whose bytes the peer has not verified: it still fetches the blob."""


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
        """As :meth:`~.endpoint.Place.get`. Nothing says which repository is meant: a peer knows blobs only."""
        path = f"/v2/blobs/{descriptor.digest}"
        answer = await self.session.exchange(
            "GET",
            f"https://{self.address}{path}",
            headers=[("User-Agent", USER_AGENT), ("Accept-Encoding", "identity"), *headers.items()],
            connect=self.timeouts.connect,
            stall=self.timeouts.stall,
            role=Role(mirror=True, then=reference.host, peer=self.node),
        )
        if answer.status in (200, 206):
            return answer
        said = await answer.read(ERROR_BODY)
        failure = answered(self.name, f"GET {path}", answer.status, answer.reason, answer.headers, said)
        answer.blame(failure)
        answer.close()
        raise failure


def peer_key(node: str) -> str:
    """The node's key in :mod:`.host_memory`."""
    return f"peer://{node}"
