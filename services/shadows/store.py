"""The domain of a shadow: a service gets copies of the calls that another one answers, and its answers are compared.

Words:

ours        the service that answers the calls. Its answers are the clients'.
candidate   the service that gets the copies. Nobody but this comparison sees its answers.
copy        a live call, to be made to the candidate as well. The queue of copies is bounded; what does not fit is
            *dropped*. A copy that cannot be compared is *skipped*, with a reason, such as a parent that is older than
            the shadow.
answer      what a service answered: a code, and if that is OK, *fields*: names with values as text.
            :mod:`services.shadows.answers_convert` makes them of a message, and leaves out what differs by design.
difference  a field in which the two differ clearly more often than ours differs from itself. The rest is *noise*. Ours
            is asked a second time to learn it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

CODE = "code"
"""The field of every answer that has its gRPC code."""
ABSENT = "(absent)"
"""The value of a field that one of the two answers does not have."""
EXAMPLES = 3
"""So many examples are kept of each difference."""
FIELDS = 100
"""So many different fields of a method are told apart; further ones count as :data:`OTHER`. Their names come from
messages.
"""
OTHER = "other fields"


@dataclass(frozen=True, slots=True)
class Answer:
    """How a service answered a call."""

    code: str
    """The name of a gRPC code, such as ``NOT_FOUND``."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """By concrete paths, such as ``info[sha256:…].labels.x``; empty unless the code is ``OK``."""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Copy:
    """A live call, and how ours answered it."""

    path: str
    """``/package.Service/Method``."""
    requests: Sequence[bytes]
    """Serialized; several in a client's stream."""
    code: str = "OK"
    answers: Sequence[bytes] | None = None
    """Serialized. None if they were not kept: ours is then asked again."""
    seconds: float = 0.0
    """How long ours took."""
    trace: str = ""
    """The trace of the client's call; empty if it had none."""


class Service(Protocol):
    """One of the two services, as copies are made to it. All raise :mod:`services.kit.errors`."""

    async def call(self, path: str, requests: Sequence[bytes]) -> Sequence[bytes]:
        """Make a call of any arity: send the requests, each after the answer to the one before if there is one, and
        return all answers. It takes at most some seconds, and as many bytes as its implementation allows:
        ResourceExhausted beyond that.
        """
        ...

    async def copied(self, digest: str, size: int, ref: str, source: Service) -> Sequence[bytes]:
        """Write a blob that ``source`` has under ``ref``, and return the answers of that Write."""
        ...


@dataclass(frozen=True, slots=True)
class Example:
    """One call in which a field differed."""

    ours: str
    candidate: str
    where: str
    """The concrete path of the field."""
    request: str
    """The request, shortened."""
    trace: str = ""
    """The trace of the client's call; empty if it had none."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A field that the candidate answers otherwise."""

    name: str
    count: int
    """Calls in which it differed."""
    noise: int
    """Calls in which ours differed from itself."""
    asked: int
    """Calls in which ours was asked twice."""
    examples: Sequence[Example]


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds of one service's answers."""

    count: int = 0
    p50: float = 0.0
    p99: float = 0.0


@dataclass(frozen=True, slots=True)
class MethodReport:
    """The comparison of one method."""

    method: str
    calls: int
    """Live calls since the shadow began."""
    same: int
    different: int
    """Compared calls in which some field differed that is not noise."""
    dropped: int
    """Copies that did not fit into the queue."""
    skipped: Mapping[str, int]
    """Copies that could not be compared, by reason."""
    ours: Latency
    candidate: Latency
    differences: Sequence[Difference]
    """The most frequent first."""


@dataclass(frozen=True, slots=True)
class Shadow:
    """A candidate that gets copies of the calls of a route."""

    route: str
    address: str
    share: float
    """Percent of the reads."""
    writes: bool
    """Whether it has a store of its own, and so gets writes."""
    since: float
    """When it began, in seconds since 1970."""
    trouble: str
    """Why nothing is compared now; else empty."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a shadow found."""

    shadow: Shadow
    methods: Sequence[MethodReport]
