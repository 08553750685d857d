"""splitd.registries.v1: what the registry client remembers of registries and mirrors, for the operator."""

from __future__ import annotations

from api.splitd.registries.v1 import registries_pb2 as pb
from api.splitd.registries.v1 import registries_stubs
from services.images.registry.host_memory import HostMemory
from services.kit.rpc import Call


class RegistriesServicer:
    """Lists the hosts in ``memory``."""

    SERVICE = registries_stubs.REGISTRIES

    def __init__(self, memory: HostMemory) -> None:
        self._memory = memory

    async def List(self, request: pb.ListRequest, call: Call) -> pb.ListResponse:
        """All hosts."""
        return pb.ListResponse(
            hosts=[
                pb.Host(
                    address=host.host,
                    state=host.state,
                    since=host.since,
                    failures=host.failures,
                    last_error=host.last_error,
                    throughput=host.throughput,
                    rests_until=host.rests_until,
                    ranges_refused=host.ranges_refused,
                    ranges_refused_until=host.ranges_refused_until,
                )
                for host in self._memory.snapshot()
            ]
        )
