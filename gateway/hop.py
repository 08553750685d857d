"""The one way out of the gateway: a hop for each kind of service, and for each snapshotter by its name.

Every call that leaves asks its hop for an upstream: those that the transports relay (:mod:`gateway.relay`), and those
that the servicers make. It asks with its namespace and, where the gateway reads the request, what it is about. To
replace an upstream at run time, nothing else has to change::

    routes["images"].replace(routes.upstream("images", address, program))

An operation of several calls to a raw service asks once and stays with that upstream to its end: a Write whose stream
is opened again, the raw call of an intent and the question what became of it. An intent's end is told to the metadata
that began it.

The listeners of :attr:`Hop.changed` are called when the upstream was replaced, and when its process came back. Both may
answer otherwise than before, with other options or with its files elsewhere. Then the gateway forgets the mounts that
it keeps (:mod:`gateway.mounts`), closes the files of blobs (:mod:`gateway.openblobs`) and announces itself to metadata.
Small blobs stay (:mod:`gateway.smallblobs`): a digest says what the bytes are, whoever holds them.

A splitd.many.v1.Many is no call of its own here: each of the calls in it is answered or relayed by itself, and asks its
own hop; those that come to the same upstream go on as one again (:mod:`services.kit.many`).
"""

from __future__ import annotations

from gateway.upstream import Upstream
from services.kit import hops


class Hop(hops.Hop[Upstream]):
    """The way to one kind of service behind the gateway."""

    def __init__(self, name: str, upstream: Upstream) -> None:
        super().__init__(name, upstream)
        upstream.on_connect.append(self.tell)

    def replace(self, target: Upstream) -> Upstream:
        """Send calls to ``target`` from now on. Somebody must watch it (:meth:`gateway.routes.Routes.upstream` sees to
        that), and whoever replaced an upstream decides how long that one is watched on.
        """
        before = super().replace(target)
        before.on_connect.remove(self.tell)
        target.on_connect.append(self.tell)
        return before
