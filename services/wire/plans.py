"""The decision of a relay about calls, made once for all those with the same head.

Heads that differ in the lease only have one plan, since each command has a lease of its own, and makes half of its
calls with it. The plan says whether the lease is passed on; it is added to each call.
"""

from __future__ import annotations

from typing import cast

from services.kit import errors
from services.kit.call import LEASE, NAMESPACE, STALL, UNARY, Arity, Call, Headers
from services.kit.relays import Relay, Route
from services.kit.transport import Method, Methods
from services.wire import headers
from services.wire.headers import Head
from services.wire.limits import configured
from services.wire.requests import request_block

_MORE = 4 << 10
"""Bytes that are left in a header list for what differs in each call: its timeout, its client's name and its trace."""
_OWN = frozenset({b"te", b"content-type", b"grpc-encoding", b"grpc-accept-encoding", b"user-agent"})
"""Headers of the transport that are passed on, since they describe the messages that are."""


class Plan:
    """The decision about all calls with one head. It is cached with the head, so that the next call costs nothing."""

    __slots__ = (
        "block",
        "counted",
        "leased",
        "limited",
        "long",
        "namespace",
        "question",
        "route",
        "single",
        "stalling",
        "unary",
    )

    def __init__(self, head: Head, route: Route, arity: Arity, *, long: bool) -> None:
        self.route = route
        self.leased = bool(head.lease) and route.headers.get(LEASE) == head.lease
        """Whether the calls' lease is passed on, which :attr:`block` does not have."""
        self.namespace = str(head.headers.get(NAMESPACE, ""))
        self.long = long
        self.single = not arity.client_stream
        """Whether it takes one request, which is bounded in time and size."""
        self.unary = arity == UNARY
        self.counted = self.unary and not long
        own = [pair for pair in head.pairs if pair[0] in _OWN]
        pseudo = [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", head.path.encode()),
            (b":authority", (head.authority or "localhost").encode()),
        ]
        passed = [*pseudo, *own, *headers.metadata(_unleased(head, route.headers).items())]
        # An upstream that met a longer list would close a connection that has others' calls, too.
        if sum(len(name) + len(value) + 32 for name, value in passed) > configured().header_list - _MORE:
            raise errors.ResourceExhausted("the call's headers are too long to be passed on")
        self.block = headers.block(passed)
        self.limited = self.block if route.timeout is None else self.block + headers.timeout(route.timeout)
        """The block with the route's own timeout, which most calls have."""
        stall = () if route.stall is None else ((STALL, f"{route.stall:g}"),)
        self.stalling = headers.block(headers.metadata(stall))
        """The field of the route's stall, for an upstream that keeps it."""
        question = route.question
        self.question = (
            b""
            if question is None
            else request_block(question.method, tuple(_unleased(head, question.headers).items()), question.timeout)
        )

    def passed_on(self, head: Head) -> Headers:
        """The route's headers, for a call with this head."""
        return {**self.route.headers, LEASE: head.lease} if self.leased else self.route.headers

    def along(self, head: Head) -> bytes:
        """What :attr:`block` lacks of them."""
        return headers.plain(((LEASE, head.lease),)) if self.leased else b""


def _unleased(head: Head, route: Headers) -> Headers:
    """The headers without the lease of the head, which is not that of the next one."""
    return {name: value for name, value in route.items() if name != LEASE} if head.lease else route


def planned(head: Head, relay: Relay, methods: Methods) -> Plan | Method:
    """The relay's decision about a head, or the handler that answers it message by message. An error from here is the
    answer.
    """
    plan = head.memory.get(relay)
    if plan is None:
        call = Call(head.path, head.headers)
        handler = relay.coordinated(call)
        if handler is not None:
            plan = methods.coordinated(head.path, handler)
        else:
            plan = Plan(head, relay.route(call), relay.arity(head.path), long=methods.is_long(head.path))
        head.memory[relay] = plan
    return cast("Plan | Method", plan)
