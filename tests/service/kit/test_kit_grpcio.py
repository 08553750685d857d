"""kit.grpcio: a call that ends while a message is being sent has its own error, not grpcio's "Internal error from
Core".
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from services.kit import errors
from services.kit.grpcio import GrpcioCarrier

pytestmark = pytest.mark.once

PEER = """
import sys, grpc
from concurrent.futures import ThreadPoolExecutor
server = grpc.server(ThreadPoolExecutor(2))
reading = grpc.stream_stream_rpc_method_handler(lambda requests, context: iter(list(requests)))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("x", {"Read": reading}),))
server.add_insecure_port("unix:" + sys.argv[1])
server.start()
print("serving", flush=True)
server.wait_for_termination()
"""
"""The peer reads all of a call of ``/x/Read`` before it answers, and answers any other call with UNIMPLEMENTED at
once.
"""

Peer = tuple[str, subprocess.Popen[bytes]]


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    address = str(tmp_path / "peer.sock")
    with subprocess.Popen([sys.executable, "-c", PEER, address], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"serving\n"
        yield address, process
        process.kill()


@pytest.mark.parametrize(
    ("path", "timeout", "happens", "wanted"),
    [
        pytest.param("/x/Other", None, None, errors.Unimplemented, id="answered"),
        pytest.param("/x/Read", 0.1, None, errors.DeadlineExceeded, id="late"),
        pytest.param(
            "/x/Read", None, lambda process: process.send_signal(signal.SIGKILL), errors.Disconnected, id="killed"
        ),
    ],
)
async def test_a_call_that_ends_while_a_message_is_sent(
    peer: Peer,
    path: str,
    timeout: float | None,
    happens: Callable[[subprocess.Popen[bytes]], None] | None,
    wanted: type[errors.NodeError],
) -> None:
    """grpcio reports all three as an internal error. Only the last may be repeated; the first tells kit.many that the
    server does not know ``Many``.
    """
    address, process = peer
    carrier = GrpcioCarrier(address, "content", "never")
    try:
        await carrier._channel.channel_ready()  # on a busy machine the first attempt may be given up
        stream = carrier.stream(path, (), timeout)
        with contextlib.suppress(grpc.aio.AioRpcError):  # a quick peer has answered already
            await stream._call.wait_for_connection()  # its headers are sent
        if happens is not None:
            happens(process)
        time.sleep(0.3)  # the loop stands: the call ends, and nobody but grpcio's own thread has seen it yet
        with pytest.raises(errors.NodeError) as caught:
            await stream.send(b"message")
            while await stream.receive() is not None:
                pass
        assert type(caught.value) is wanted, caught.value
    finally:
        await carrier.close()


@pytest.mark.parametrize("killed", range(5))
async def test_a_call_that_lost_its_connection_is_not_repeated_on_it(peer: Peer, killed: int) -> None:
    """When the call has failed, the channel has noticed the loss too: a wait for the connection waits for the next
    one.
    """
    address, process = peer
    carrier = GrpcioCarrier(address, "content", "never")
    try:
        await carrier._channel.channel_ready()
        process.kill()
        with pytest.raises(errors.Disconnected):
            await carrier.unary("/x/Other", b"", (), 5)
        assert not carrier.connected()
    finally:
        await carrier.close()
