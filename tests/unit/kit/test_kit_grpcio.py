"""kit.grpcio: what is made of the ways in which grpcio says that a call has failed."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from services.kit import errors
from services.kit.grpcio import GrpcioCarrier, _Stream


class Ended:
    """A grpc.aio call that ended while a message was being sent; ``left`` is what its deadline leaves, None if it has none."""

    def __init__(self, left: float | None) -> None:
        self._left = left

    async def write(self, message: bytes) -> None:
        raise grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata(), "Internal error from Core")

    async def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.INTERNAL

    async def details(self) -> str:
        return "Internal error from Core"

    async def trailing_metadata(self) -> Any:
        return None

    def time_remaining(self) -> float | None:
        return self._left


@pytest.mark.parametrize(("left", "wanted"), [(None, errors.Disconnected), (2.0, errors.Disconnected), (0.0, errors.DeadlineExceeded)])
async def test_a_call_that_ends_while_a_message_is_sent(left: float | None, wanted: type[errors.NodeError]) -> None:
    """grpcio calls both an internal error: that the peer went away, and that the time is over; only of the first may the call be made again."""
    carrier = GrpcioCarrier("/nobody.sock", "content", "never")
    with pytest.raises(errors.NodeError) as caught:
        await _Stream(Ended(left), carrier).send(b"message")
    assert type(caught.value) is wanted
    await carrier.close()
