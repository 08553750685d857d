"""A call: its method, its headers, its namespace, and its deadline. Handlers see nothing else of the transport."""

from __future__ import annotations

import contextvars
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from services.kit import errors, identifiers

Headers = Mapping[str, str | bytes]
Metadata = tuple[tuple[str, str | bytes], ...]

NAMESPACE = "containerd-namespace"
LEASE = "containerd-lease"
RAW = "splitd-raw"
"""Header of metadata's calls to a raw backend through the gateway; its value names the backend."""

CLIENT = "splitd-client"
"""Header of calls that a gateway relays: a number that tells its clients apart, for a service that has one connection
for all of them. The number has no meaning outside of that connection.
"""

VERIFY = "splitd-verify"
"""Header of a Transfer, with any value: a pull checks all bytes of blobs that the node has already
(``ImageStore.verify``).
"""
ONLY_WANTED = "splitd-only-wanted"
"""Header of a Transfer, with any value: of the images of an archive, only those for the wanted platforms become records
(``ImageStore.only_wanted``). containerd's API cannot say this.
"""

HOPS = "splitd-hops"
"""Header of calls that leave a gateway: through how many gateways they have come. It shows a forwarder that leads back
to one, if that passes headers on.
"""
MOST_HOPS = 8
"""A call that has come through so many goes no further. An operation of the node's own passes its gateway three times.
"""

STOPPING = "splitd-stopping"
"""Trailer of calls that a service ended because it was told to stop. A relay repeats the call on the service's
successor.
"""

TOLD = "splitd-trace-bin"
"""Trailer of calls between the node's own processes: attributes for the root of the trace (``tracing.operation``)."""
TRACE = "splitd-trace"
"""Trailer of a Transfer that failed: the id of its trace."""

MESSAGE_LIMIT = 16 << 20
ERROR_LIMIT = 32 << 10
"""Bytes of an error's message that are sent. Clients of grpc-go refuse header lists that are much longer."""

STALL = "splitd-stall"
"""Header of calls between the node's own processes: seconds for which the call may make no progress. Its handler's
process keeps this limit (``kit.progress``).
"""

UNARY_STALL = 10.0
"""The stall of a unary call whose caller sets no limit."""

LONG = frozenset({"Wait", "Subscribe", "Watch"})


class Arity(NamedTuple):
    """Whether the request and the response of a method are streams."""

    client_stream: bool
    server_stream: bool


UNARY = Arity(False, False)
STREAMS = Arity(True, True)
"""The arity that a relay assumes for an unknown method. The wire is the same for all four."""


@dataclass(slots=True)
class Call:
    """One call as its handler sees it."""

    method: str
    """``/containerd.services.content.v1.Content/Info``"""
    headers: Headers
    """By lower-case name; values of ``*-bin`` headers are bytes. If a header is repeated, the first counts, as in
    containerd: Go's clients put a nested context's namespace before the outer one's.
    """
    deadline: float | None = None
    """On the clock of ``time.monotonic``, in seconds; None if the client set none."""
    leading: list[tuple[str, str | bytes]] = field(default_factory=list)
    """Metadata to send before the first response. Metadata that is added later is not sent."""
    trailing: list[tuple[str, str | bytes]] = field(default_factory=list)
    """Metadata to send with the status."""
    size: int = 0
    """Bytes of its messages so far, in both directions, if its transport sees them."""
    elsewhere: int = 0
    """Calls to other processes that its handler waits for, and its waits for the client."""
    outer: Call | None = None
    """The call whose handler made this one a part of its own work."""

    @property
    def namespace(self) -> str:
        """The caller's containerd namespace. FailedPrecondition if there is none, InvalidArgument if it is invalid, in
        containerd's words.
        """
        value = self.optional_namespace
        if not value:
            raise errors.FailedPrecondition("namespace is required")
        try:
            identifiers.validate(value)
        except errors.InvalidArgument as error:
            raise errors.InvalidArgument(f"namespace validation: {error}") from None
        return value

    @property
    def optional_namespace(self) -> str:
        """The caller's namespace, or an empty string."""
        return str(self.headers.get(NAMESPACE, ""))

    @property
    def lease(self) -> str:
        """The id of the caller's lease, or an empty string."""
        return str(self.headers.get(LEASE, ""))

    def remaining(self) -> float | None:
        """Seconds until the deadline, not below zero; None if there is none."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def waits(self, change: int) -> None:
        """Count a wait for another process that begins (1) or has ended (-1), here and for the outer calls."""
        call: Call | None = self
        while call is not None:
            call.elsewhere += change
            call = call.outer

    def passed_on(self) -> dict[str, str | bytes]:
        """The headers to send with a call on this caller's behalf: all except those of one hop."""
        return {k: v for k, v in self.headers.items() if k not in HOP_HEADERS}


HOP_HEADERS = frozenset(
    {
        "user-agent",
        "content-type",
        "te",
        "grpc-timeout",
        "grpc-encoding",
        "grpc-accept-encoding",
        "accept-encoding",
        "traceparent",
        "tracestate",
        CLIENT,
        STALL,
    }
)
"""Headers of one hop. The next hop has its own."""

CURRENT: contextvars.ContextVar[Call | None] = contextvars.ContextVar("splitd_call", default=None)
"""The call on whose behalf the current task works."""

TOGETHER: contextvars.ContextVar[bool] = contextvars.ContextVar("splitd_together", default=False)
"""Whether calls of the current task, and the calls that follow from them, are sent together with those of other such
tasks in the same turn of the loop (``kit.many``).
"""


def caller() -> str:
    """The namespace of the current call, or an empty string. It tells callers apart."""
    call = CURRENT.get()
    return "" if call is None else call.optional_namespace


def on_own_behalf() -> None:
    """The current task works for no call from now on: it outlives the one in which it was begun, whose deadline is not
    its own.
    """
    CURRENT.set(None)


class Servicer(Protocol):
    """An object whose methods answer a service's RPCs."""

    @property
    def SERVICE(self) -> ServiceDescriptor: ...


class Pieces(tuple[bytes, ...]):
    """A serialized message that a handler answers unchanged, in pieces, if building one message would only copy a
    megabyte twice, or block for a hundred milliseconds.
    """

    __slots__ = ()


def method_path(method: MethodDescriptor) -> str:
    """``/package.Service/Method``"""
    return f"/{method.containing_service.full_name}/{method.name}"


def limits(timeout: float | None, stall: float | None) -> tuple[float | None, float | None]:
    """The timeout and the stall of a unary call, in seconds; None for no limit. A ``timeout`` below zero stands for
    what is left of the current call's time, with the usual stall if ``stall`` is None.
    """
    if timeout is None or timeout >= 0:
        return timeout, stall
    call = CURRENT.get()
    return call.remaining() if call else None, UNARY_STALL if stall is None else stall


def shorter(a: float | None, b: float | None) -> float | None:
    """The smaller of two limits; None is no limit."""
    return b if a is None else a if b is None else min(a, b)
