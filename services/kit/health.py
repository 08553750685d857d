"""grpc.health.v1.Health over a table of names and states.

"" is the process as a whole. Every service that it serves has an entry under its full name. If a service does not
serve, and waiting does not help, a trailing header of the answer tells why.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import cast

from api.grpc.health.v1 import health_pb2 as pb
from api.grpc.health.v1 import health_stubs
from services.kit import errors
from services.kit.call import Call
from services.kit.channel import Channel

SERVING = pb.HealthCheckResponse.SERVING
NOT_SERVING = pb.HealthCheckResponse.NOT_SERVING

_TROUBLE = "splitd-trouble-bin"
_LONGEST = 2000
"""Bytes of the reason that are sent."""


class HealthServicer:
    """Answers from ``table`` (name to ServingStatus), which its owner updates."""

    SERVICE = health_stubs.HEALTH

    def __init__(self, table: Mapping[str, int], *, poll: float = 0.5, trouble: Callable[[], str] = str) -> None:
        """``trouble`` returns the reason if waiting does not help; else ""."""
        self._table = table
        self._trouble = trouble
        self._poll = poll

    async def Check(self, request: pb.HealthCheckRequest, call: Call) -> pb.HealthCheckResponse:
        """The state of one service. NOT_FOUND for a name that is not served here."""
        status = self._table.get(request.service)
        if status is None:
            raise errors.NotFound(f"service {request.service}")
        if status != SERVING and (trouble := self._trouble()):
            call.trailing.append((_TROUBLE, trouble.encode()[:_LONGEST]))
        return pb.HealthCheckResponse(status=cast(pb.HealthCheckResponse.ServingStatus, status))

    async def Watch(self, request: pb.HealthCheckRequest, call: Call) -> AsyncIterator[pb.HealthCheckResponse]:
        """The state now and at each change. SERVICE_UNKNOWN for a name that is not served, as the protocol requires."""
        last = None
        while True:
            status = self._table.get(request.service, pb.HealthCheckResponse.SERVICE_UNKNOWN)
            if status != last:
                last = status
                yield pb.HealthCheckResponse(status=cast(pb.HealthCheckResponse.ServingStatus, status))
            await asyncio.sleep(self._poll)


async def check(channel: Channel, service: str, seconds: float) -> tuple[bool, str]:
    """Whether a service in another process serves, and, if not, the reason if waiting does not help ("" otherwise).
    Raises the errors of any call.
    """
    path = f"/{HealthServicer.SERVICE.full_name}/Check"
    # a stream gives access to the trailing headers
    async with channel.stream(
        path, {}, seconds, pb.HealthCheckRequest.SerializeToString, pb.HealthCheckResponse.FromString
    ) as asked:
        await asked.send(pb.HealthCheckRequest(service=service))
        await asked.done_sending()
        answer = await asked.receive()
        await asked.receive()
        told = asked.trailing().get(_TROUBLE, b"")
    return answer is not None and answer.status == SERVING, told.decode(errors="replace") if isinstance(
        told, bytes
    ) else ""
