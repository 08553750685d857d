"""The one way out of the gateway: a hop for each kind of service, and for each snapshotter by its name.

Every call that leaves asks its hop for an upstream: those that the transports relay (:mod:`gateway.relay`), and those
that the servicers make. It asks with its namespace and, where the gateway reads the request, what it is about. To
replace an upstream at run time, nothing else has to change::

    routes["images"].replace(routes.upstream("images", address, program))

An operation of several calls to a raw service asks once and stays with that upstream to its end: a Write whose stream
is opened again, the raw call of an intent and the question what became of it. An intent's end is told to the metadata
that began it.

A hop may have *candidates* (:mod:`gateway.candidates`): other services beside home, which take some of its new objects.
Of content and snapshots the servicers ask for the backend of a new object (:meth:`Hop.new`), and for the upstream of
the backend that a record names (:meth:`Hop.having`); :meth:`Hop.to` is home. Of the other kinds ``to`` chooses for each
call. A candidate's own hop, which raw calls use, has the name of its backend.

The listeners of :attr:`Hop.changed` are called when the upstream was replaced, and when its process came back. Both may
answer otherwise than before, with other options or with its files elsewhere. Then the gateway forgets the mounts that
it keeps (:mod:`gateway.mounts`), closes the files of blobs (:mod:`gateway.openblobs`) and announces itself to metadata.
Small blobs stay (:mod:`gateway.smallblobs`): a digest says what the bytes are, whoever holds them.

A splitd.many.v1.Many is no call of its own here: each of the calls in it is answered or relayed by itself, and asks its
own hop; those that come to the same upstream go on as one again (:mod:`services.kit.many`).
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.candidates import KINDS, Candidate, chosen, kind_of
from gateway.upstream import Upstream
from services.kit import errors, hops


class Hop(hops.Hop[Upstream]):
    """The way to one kind of service behind the gateway."""

    def __init__(self, name: str, upstream: Upstream) -> None:
        super().__init__(name, upstream)
        self._binding = KINDS.get(kind_of(name))
        self.candidates: Sequence[Candidate] = ()
        """Those that stand, in the order in which they were added; draining ones too."""
        self._elsewhere: dict[str, Hop] = {}
        """The hops of the candidates, by their backends."""
        self._choosing: Sequence[Candidate] = ()
        """Those among which :meth:`to` chooses."""
        upstream.on_connect.append(self.tell)

    @property
    def home(self) -> Upstream:
        """The route's own service."""
        return self._target

    @property
    def usual(self) -> Upstream:
        """The upstream of a call that is of no namespace in particular, for those who ask how it is."""
        last = self._choosing[-1] if self._choosing else None
        return self._elsewhere[last.terms.backend].home if last is not None and last.whole else self._target

    def to(self, namespace: str, key: str = "") -> Upstream:
        return self._among(namespace) if self._choosing else self._target

    def new(self, namespace: str) -> str:
        """The backend for a new object of ``namespace``. What a candidate would take goes home while that is down."""
        if self.candidates and (candidate := chosen(self.candidates, namespace)) is not None:
            if self._elsewhere[candidate.terms.backend].home.is_ready():
                candidate.chosen += 1
                return candidate.terms.backend
            candidate.sent_home += 1
        return self.name

    def having(self, backend: str, namespace: str = "", key: str = "") -> Upstream:
        """The upstream of the backend that a record names; FailedPrecondition if the gateway has no way to it."""
        if backend == self.name or not backend:
            return self.to(namespace, key)
        hop = self._elsewhere.get(backend)
        if hop is None:
            route, _, name = backend.partition("@")
            raise errors.FailedPrecondition(
                f"it is in backend {backend}, to which there is no route any more "
                f"(splitd replace {route} --address ADDRESS --name {name} makes it)"
            )
        return hop.to(namespace, key)

    def _among(self, namespace: str) -> Upstream:
        candidate = chosen(self._choosing, namespace)
        if candidate is None:
            return self._target
        upstream = self._elsewhere[candidate.terms.backend].home
        if self._binding == "whole" or upstream.is_ready():  # other records are no substitute
            candidate.chosen += 1
            return upstream
        candidate.sent_home += 1
        return self._target

    def stand(self, candidates: Sequence[Candidate], hops: Sequence[Hop]) -> None:
        """Have these candidates from now on, each with its own hop."""
        before = self._elsewhere
        self.candidates = tuple(candidates)
        self._elsewhere = {candidate.terms.backend: hop for candidate, hop in zip(candidates, hops, strict=True)}
        self._choosing = (
            tuple(each for each in candidates if not each.draining)
            if self._binding in ("calls", "namespaces", "whole")
            else ()
        )
        for backend, hop in before.items():
            if self._elsewhere.get(backend) is not hop:
                hop.changed.remove(self.tell)
        for backend, hop in self._elsewhere.items():
            if before.get(backend) is not hop:
                hop.changed.append(self.tell)
        self.tell()

    def replace(self, target: Upstream) -> Upstream:
        """Send calls to ``target`` from now on. Somebody must watch it (:meth:`gateway.routes.Routes.upstream` sees to
        that), and whoever replaced an upstream decides how long that one is watched on.
        """
        before = super().replace(target)
        before.on_connect.remove(self.tell)
        target.on_connect.append(self.tell)
        return before
