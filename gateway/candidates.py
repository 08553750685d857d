"""Candidates: services that take some of a route's new objects, beside the route's own service.

The words. A *route* is the way to one kind of service: ``content``, ``images``, ``tasks``, ``diff``, ``metadata``,
``snapshots.NAME`` for each snapshotter, and ``sandbox.NAME`` for each sandbox controller. *Home* is the service that
the route has without candidates: ours, or a proxy plugin. A *candidate* is another service of the same kind, at an
address of its own. Both are *backends*: records name the one that has an object. Home's backend has the route's name, a
candidate's is ``ROUTE@NAME``.

An object stays with the backend that made it. So a candidate matters where something new is made: its *selector* says
of which namespaces it takes new objects, and how many of them. A child of a snapshot lives where its parent lives, so
only snapshots without a parent are new in this sense.

The life of a candidate::

    replace --> takes new objects --restore, until, back-at--> draining --its last object is removed--> gone
                        ^                                         |
                        +-------------- replace ------------------+

- *until* ends it at a moment.
- *back-at* ends it once so many of its last calls have failed (:class:`Outcomes`).
- A candidate that is *down* goes on to stand: new objects go home meanwhile, calls for its objects are held.
- One that the configuration names never goes: it is draining until the file names it no more.

What a candidate can take depends on the kind (:data:`KINDS`). All of this is pure: :mod:`gateway.replacing` acts.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Literal

from services.kit import errors
from services.kit.addresses import Address

ALL = 100.0
"""Percent."""
WINDOW, LEAST = 100, 20
"""Calls by which a candidate is judged: the last ones; and how many there must be."""
_NAME = re.compile(r"[a-z0-9._-]{1,64}")
_NAMESPACE = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")
"""As containerd has it; 76 characters at most."""
_NAMESPACES = 100
_HARMLESS = frozenset({errors.NotFound.code, errors.AlreadyExists.code})
"""Codes that are ordinary answers, so they say nothing about a candidate."""

Binding = Literal["objects", "calls", "namespaces", "containers", "sandboxes", "whole"]

KINDS: Mapping[str, Binding] = {
    "content": "objects",
    "snapshots": "objects",
    "diff": "calls",
    "images": "namespaces",
    "tasks": "containers",
    "sandbox": "sandboxes",
    "metadata": "whole",
}
"""What of each kind of route a candidate takes.

- ``objects``: new ones; records name the backend of each.
- ``calls``: each by itself, since no call depends on another.
- ``namespaces``: all calls of some, since the streams of a transfer belong to it.
- ``containers``: all calls about a container go where its task was created.
- ``sandboxes``: all calls about a sandbox go where it was created.
- ``whole``: everything, since nobody else has its records.
"""


def kind_of(route: str) -> str:
    """The kind of a route, or of a candidate's backend: without a snapshotter's name."""
    return route.partition("@")[0].partition(".")[0]


def backend_of(route: str, name: str) -> str:
    """The name of a candidate's backend in records."""
    return f"{route}@{name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What an operator asks for: the service, and what it takes. ``name`` is unique on its route; it lasts as long as
    objects do, so the same name at another address is the same store, which moved.
    """

    route: str
    name: str
    address: str
    """A unix socket's path or ``HOST:PORT`` (:class:`services.kit.addresses.Address`, as the last five are)."""
    namespaces: tuple[str, ...] = ()
    """Those from which it takes new objects; empty: all."""
    share: float = ALL
    """Percent of those new objects."""
    until: float = 0.0
    """When it ends by itself, in seconds since 1970; 0: never."""
    back_at: float = 0.0
    """Percent of failed calls at which it ends by itself; 0: never."""
    deadline: float = 0.0
    """Seconds that a unary call to it may take; 0: as long as one home."""
    capabilities: tuple[str, ...] = ()
    """Features of a snapshotter that clients may use there, such as rebase or remap-ids."""
    tls: bool = False
    ca: str = ""
    cert: str = ""
    key: str = ""
    server_name: str = ""

    @property
    def backend(self) -> str:
        """As records name it."""
        return backend_of(self.route, self.name)

    @property
    def judged(self) -> bool:
        """Whether somebody stands around its calls, to count and to limit them. Streams cost a little more then."""
        return bool(self.back_at or self.deadline)

    @property
    def where(self) -> Address:
        """Where it is, and how it is reached. ValueError if that makes no sense."""
        return Address(
            address=self.address, tls=self.tls, ca=self.ca, cert=self.cert, key=self.key, server_name=self.server_name
        )

    def check_wanted(self) -> None:
        """As :meth:`check`, for an operator who asks for them now: also what earlier releases took, which therefore may
        stand in their files.
        """
        self.check()
        if not self.name.strip("._-"):
            raise errors.InvalidArgument(f"name {self.name!r}: a name has a letter or a digit")
        if self.capabilities and kind_of(self.route) != "snapshots":
            raise errors.InvalidArgument(f"{self.route} takes no capabilities: only snapshotters have some")

    def check(self) -> None:
        """InvalidArgument, in words for the operator, where these cannot be meant."""
        binding = KINDS.get(kind_of(self.route))
        if binding is None:
            raise errors.InvalidArgument(f"route {self.route}")
        if not _NAME.fullmatch(self.name):
            raise errors.InvalidArgument(
                f"name {self.name[:80]!r}: a name has 1 to 64 of the characters a-z, 0-9, '.', '_' and '-'"
            )
        try:
            str(self.where)
        except ValueError as error:
            raise errors.InvalidArgument(str(error)) from None
        for namespace in self.namespaces:
            if len(namespace) > 76 or not _NAMESPACE.fullmatch(namespace):
                raise errors.InvalidArgument(
                    f"namespace {namespace[:80]!r}: a namespace has 1 to 76 letters, digits, and single '.', '_' and "
                    "'-' between them"
                )
        if len(self.namespaces) > _NAMESPACES:
            raise errors.InvalidArgument(f"{self.backend}: more than {_NAMESPACES} namespaces")
        if not 0 < self.share <= ALL:
            raise errors.InvalidArgument(f"share {self.share:g}%: it is more than 0% and at most 100%")
        if not 0 <= self.back_at <= ALL:
            raise errors.InvalidArgument(f"back-at {self.back_at:g}%: it is at most 100%")
        if self.share < ALL and binding in ("namespaces", "whole"):
            why = (
                "the streams of a transfer must reach the service that has the transfer: choose by namespace"
                if binding == "namespaces"
                else "nobody else has its records: it is replaced whole"
            )
            raise errors.InvalidArgument(f"{self.route} takes no share: {why}")
        if self.namespaces and binding == "whole":
            raise errors.InvalidArgument(
                f"{self.route} takes no namespaces: nobody else has its records: it is replaced whole"
            )


def named_by(address: str) -> str:
    """A name for the service at ``address``: its socket's stem, or host and port."""
    rest = address.removeprefix("unix:").partition("://")[2] or address.removeprefix("unix:")
    found = PurePath(rest).stem if "/" in rest.rstrip("/") or rest.startswith("/") else rest
    return re.sub(r"[^a-z0-9._-]+", "-", found.lower()).strip("-.")[:64] or "candidate"


class Shares:
    """Takes ``percent`` of what is offered, evenly: at 25 % the first, the fifth and so on. So the first try shows, and
    the number is exact after each hundred.
    """

    __slots__ = ("_due", "percent")

    def __init__(self, percent: float) -> None:
        self.percent = percent
        self._due = ALL - percent

    def takes(self) -> bool:
        """Whether the next one is taken."""
        self._due += self.percent
        if self._due < ALL:
            return False
        self._due -= ALL
        return True


class Outcomes:
    """Whether the last calls failed, and how many there were. Answers that are ordinary (NOT_FOUND, ALREADY_EXISTS) do
    not count, nor do calls that their client gave up.
    """

    __slots__ = ("_failed", "_last", "calls", "failures")

    def __init__(self) -> None:
        self._last: deque[bool] = deque(maxlen=WINDOW)
        self._failed = 0
        self.calls = 0
        """All that counted."""
        self.failures = 0

    def note(self, code: int) -> None:
        """A call ended with a gRPC code."""
        if code in _HARMLESS:
            return
        failed = code != 0
        if len(self._last) == WINDOW:
            self._failed -= self._last[0]
        self._last.append(failed)
        self._failed += failed
        self.calls += 1
        self.failures += failed

    @property
    def failed(self) -> float:
        """Percent of the last calls that failed; 0 while there are too few to say."""
        return ALL * self._failed / len(self._last) if len(self._last) >= LEAST else 0.0


@dataclass(slots=True)
class Candidate:
    """A candidate that stands on a route."""

    terms: Terms
    since: float = field(default_factory=time.time)
    """When it began to take new objects, in seconds since 1970."""
    drained: str = ""
    """Why it takes no new objects any more; empty: it does."""
    configured: str = ""
    """The entry of the configuration that names it, in one line; empty: none does."""
    outcomes: Outcomes = field(default_factory=Outcomes)
    chosen: int = 0
    """New objects (or calls) that went to it, since the gateway began."""
    sent_home: int = 0
    """Those that went home because it was down."""
    _shares: Shares = field(init=False)

    def __post_init__(self) -> None:
        self._shares = Shares(self.terms.share)

    @property
    def draining(self) -> bool:
        """Whether it takes no new objects."""
        return bool(self.drained)

    def wants(self, namespace: str) -> bool:
        """Whether it takes the next new object of ``namespace``. Asking counts."""
        terms = self.terms
        return (
            not self.drained
            and (not terms.namespaces or namespace in terms.namespaces)
            and (terms.share == ALL or self._shares.takes())
        )

    @property
    def whole(self) -> bool:
        """Whether it takes all new objects."""
        return not self.drained and not self.terms.namespaces and self.terms.share == ALL

    def over(self, now: float) -> str:
        """Why it ends by itself now; empty: it does not."""
        terms = self.terms
        if self.drained:
            return ""
        if terms.until and now >= terms.until:
            return "its time is over"
        if terms.back_at and self.outcomes.failed >= terms.back_at:
            return f"{self.outcomes.failed:.0f}% of its last calls failed"
        return ""

    def drain(self, reason: str) -> None:
        """Take no new objects from now on. The first reason stays."""
        self.drained = self.drained or reason

    def renew(self, terms: Terms) -> None:
        """Take new objects, by other terms, and be judged anew."""
        self.terms, self.drained, self.since = terms, "", time.time()
        self.outcomes, self._shares = Outcomes(), Shares(terms.share)


def chosen(candidates: Sequence[Candidate], namespace: str) -> Candidate | None:
    """Which of a route's candidates takes the next new object of ``namespace``; None: home does. The one that was added
    last is asked first, so an earlier one gets a share of what that leaves.
    """
    for candidate in reversed(candidates):
        if candidate.wants(namespace):
            return candidate
    return None


def capabilities(home: Sequence[str], candidates: Sequence[Candidate]) -> tuple[str, ...]:
    """What clients may use of a snapshotter's route: what home and all candidates that take new objects have.

    Not ``rebase`` where one of several may be chosen: layers that were prepared apart could lie in different backends.
    """
    standing = [each for each in candidates if not each.drained]
    whole = next((each for each in reversed(standing) if each.whole), None)
    if whole is not None and whole is standing[-1]:
        return tuple(whole.terms.capabilities)
    return tuple(
        each
        for each in home
        if not standing or (each != "rebase" and all(each in one.terms.capabilities for one in standing))
    )
