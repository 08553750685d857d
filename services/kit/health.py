"""grpc.health.v1.Health over a table of names and states.

"" is the process as a whole; every service that it serves has an entry under its full name.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import cast

from api.grpc.health.v1 import health_pb2 as pb
from services.kit import errors
from services.kit.rpc import Call

SERVING = pb.HealthCheckResponse.SERVING
NOT_SERVING = pb.HealthCheckResponse.NOT_SERVING


class HealthServicer:
    """Answers from ``table`` (name to ServingStatus), which its owner changes as things change."""

    SERVICE = pb.DESCRIPTOR.services_by_name["Health"]

    def __init__(self, table: Mapping[str, int], *, poll: float = 0.5) -> None:
        self._table = table
        self._poll = poll

    async def Check(self, request: pb.HealthCheckRequest, call: Call) -> pb.HealthCheckResponse:
        """The state of one service, or NOT_FOUND for a name that is not served here."""
        status = self._table.get(request.service)
        if status is None:
            raise errors.NotFound(f"service {request.service}")
        return pb.HealthCheckResponse(status=cast(pb.HealthCheckResponse.ServingStatus, status))

    async def Watch(self, request: pb.HealthCheckRequest, call: Call) -> AsyncIterator[pb.HealthCheckResponse]:
        """The state now and at each change; SERVICE_UNKNOWN for a name that is not served, as the protocol wants."""
        last = None
        while True:
            status = self._table.get(request.service, pb.HealthCheckResponse.SERVICE_UNKNOWN)
            if status != last:
                last = status
                yield pb.HealthCheckResponse(status=cast(pb.HealthCheckResponse.ServingStatus, status))
            await asyncio.sleep(self._poll)
