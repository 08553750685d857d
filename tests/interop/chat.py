"""The modes of tests/interop/peers/chat with grpcio's client: ``python -m tests.interop.chat ADDRESS MODE COUNT SIZE``.
It ends with a traceback at the first failed call, or if another call of its connection, which is open meanwhile, fails.

It uses grpcio's own API, not ours: an honest client as others write them.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import sys
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from tests.interop import testing_pb2 as pb

ENDLESS = 20_000
"""Messages of a client that does not wait for answers."""


class Chat:
    """One channel, as :func:`main` uses it; ``size`` is that of each message."""

    def __init__(self, channel: grpc.Channel, size: int) -> None:
        self._channel = channel
        self._size = size

    def _method(self, name: str, *, client_stream: bool, server_stream: bool, answer: Any) -> Callable[..., Any]:
        make = getattr(
            self._channel, f"{'stream' if client_stream else 'unary'}_{'stream' if server_stream else 'unary'}"
        )
        method: Callable[..., Any] = make(
            f"/grpc.testing.TestService/{name}", lambda message: message.SerializeToString(), answer.FromString
        )
        return method

    def _duplex(self, requests: Any) -> Any:
        return self._method(
            "FullDuplexCall", client_stream=True, server_stream=True, answer=pb.StreamingOutputCallResponse
        )(requests)

    def _payload(self) -> pb.Payload:
        return pb.Payload(body=bytes(self._size))

    def _asked(self, count: int) -> list[pb.ResponseParameters]:
        return [pb.ResponseParameters(size=self._size)] * count

    def pingpong(self, count: int) -> None:
        """A message, its answer, and so on."""
        with self.exchanging() as exchange:
            for _ in range(count):
                exchange()

    @contextlib.contextmanager
    def exchanging(self) -> Iterator[Callable[[], None]]:
        """A call that is open until the block ends: each time that it is told to, it sends a message and receives the
        answer.
        """
        requests: queue.SimpleQueue[pb.StreamingOutputCallRequest | None] = queue.SimpleQueue()
        answers = self._duplex(iter(requests.get, None))

        def exchange() -> None:
            requests.put(pb.StreamingOutputCallRequest(response_parameters=self._asked(1), payload=self._payload()))
            next(answers)

        try:
            yield exchange
        finally:
            requests.put(None)
        assert not list(answers)

    def answers(self, count: int) -> None:
        """One call, many answers."""
        output = self._method(
            "StreamingOutputCall", client_stream=False, server_stream=True, answer=pb.StreamingOutputCallResponse
        )
        assert len(list(output(pb.StreamingOutputCallRequest(response_parameters=self._asked(count))))) == count

    def cancels(self, count: int) -> None:
        """Calls that are cancelled at once."""
        unary = self._method("UnaryCall", client_stream=False, server_stream=False, answer=pb.SimpleResponse)
        for _ in range(count):
            unary.future(pb.SimpleRequest()).cancel()  # type: ignore[attr-defined]

    def late(self, count: int) -> None:
        """Messages after an error that is still on its way."""
        refused = pb.StreamingOutputCallRequest(
            response_status=pb.EchoStatus(code=grpc.StatusCode.FAILED_PRECONDITION.value[0])
        )
        for _ in range(count):
            more = itertools.repeat(pb.StreamingOutputCallRequest(payload=self._payload()), ENDLESS)
            try:
                next(self._duplex(itertools.chain([refused], more)))
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
            else:
                raise AssertionError("it was not refused")


def main(address: str, mode: str, count: int, size: int) -> None:
    with grpc.insecure_channel(address) as channel:
        chat = Chat(channel, size)
        with chat.exchanging() as exchange:
            exchange()
            {"pingpong": chat.pingpong, "answers": chat.answers, "cancels": chat.cancels, "late": chat.late}[mode](
                count
            )
            exchange()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
