"""services.wire.blocking with a scripted peer on a socket pair: events on a connection between calls and in the middle
of one.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from services.kit import errors
from services.wire import answers, frames, headers, messages
from services.wire.blocking import BlockingClient
from services.wire.connection import Connection
from services.wire.events import Data, Event, Opened, Pong
from services.wire.limits import Limits
from services.wire.streams import Stream

GOAWAY_OF_ALL = frames.goaway(0, frames.Code.NO_ERROR, "restarting")


class Peer:
    """The server's side of one connection, driven by a script in a thread."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.connection = Connection(client=False, limits=Limits())
        self.events: list[Event] = []

    def flush(self) -> None:
        self.socket.sendall(b"".join(self.connection.take()))

    def until(self, kind: type[Event], *, end: bool = False) -> Event:
        """Wait for the next event of a kind."""
        while True:
            while self.events:
                event = self.events.pop(0)
                if isinstance(event, kind) and (not end or event.end):
                    return event
                if isinstance(event, Data):
                    self.connection.consumed(event.stream, len(event.chunk))
            self.flush()
            data = self.socket.recv(1 << 16)
            assert data, "the client hung up"
            self.events += self.connection.receive(data)

    def request(self) -> Stream:
        """Wait for a whole request."""
        stream: Stream = self.until(Data, end=True).stream
        return stream

    def answer(self, stream: Stream, message: bytes) -> None:
        self.connection.answer(stream, answers.HEAD, messages.prefix(message) + message, answers.OK)
        self.flush()


Script = Callable[[Peer], None]


class Scripts:
    """Each connection that is dialled gets the next script."""

    def __init__(self) -> None:
        self.scripts: list[Script] = []
        self.dialled = 0
        self.failures: list[BaseException] = []
        self.threads: list[threading.Thread] = []

    def dial(self, timeout: float) -> socket.socket:
        ours, theirs = socket.socketpair()
        script = self.scripts[self.dialled]
        self.dialled += 1

        def run() -> None:
            with theirs:
                theirs.settimeout(5)
                try:
                    script(Peer(theirs))
                except BaseException as error:
                    self.failures.append(error)

        thread = threading.Thread(target=run, daemon=True)
        self.threads.append(thread)
        thread.start()
        return ours


@pytest.fixture
def peers() -> Iterator[Scripts]:
    found = Scripts()
    yield found
    for thread in found.threads:
        thread.join(10)
    assert not found.failures


def client(peers: Scripts, *scripts: Script) -> BlockingClient:
    peers.scripts = list(scripts)
    return BlockingClient(peers.dial, "peer")


def test_a_ping_between_calls_is_answered_before_the_next(peers: Scripts) -> None:
    """Servers ping idle clients, and would end the connection of a client that never answers."""
    pinged = threading.Event()

    def script(peer: Peer) -> None:
        peer.answer(peer.request(), b"one")
        peer.connection.ping(b"12345678")
        peer.flush()
        pinged.set()
        peer.until(Pong)
        peer.answer(peer.request(), b"two")

    asking = client(peers, script)
    assert asking.unary("/a/B", b"x", (), 5) == b"one"
    assert pinged.wait(5)
    assert asking.unary("/a/B", b"y", (), 5) == b"two"
    assert peers.dialled == 1
    asking.close()


@pytest.mark.parametrize("goodbye", [b"", GOAWAY_OF_ALL])
def test_a_peer_that_left_meanwhile_is_dialled_again(goodbye: bytes, peers: Scripts) -> None:
    """The next call does not notice it, whether the peer announced its end or not."""
    gone = threading.Event()

    def leaves(peer: Peer) -> None:
        peer.answer(peer.request(), b"one")
        peer.socket.sendall(goodbye)
        if not goodbye:
            peer.socket.shutdown(socket.SHUT_RDWR)
        gone.set()
        if goodbye:
            while peer.socket.recv(1 << 16):
                pass

    def stays(peer: Peer) -> None:
        peer.answer(peer.request(), b"two")

    asking = client(peers, leaves, stays)
    assert asking.unary("/a/B", b"x", (), 5) == b"one"
    assert gone.wait(5)
    assert asking.unary("/a/B", b"x", (), 5) == b"two"
    assert peers.dialled == 2
    asking.close()


def test_a_call_that_the_peer_refuses_as_it_leaves_is_disconnected(peers: Scripts) -> None:
    """The caller repeats it; the connection is not used again."""

    def script(peer: Peer) -> None:
        peer.request()
        peer.socket.sendall(GOAWAY_OF_ALL)
        while peer.socket.recv(1 << 16):
            pass

    asking = client(peers, script, lambda peer: peer.answer(peer.request(), b"two"))
    with pytest.raises(errors.Disconnected, match=r"^service peer is not reachable \(GOAWAY restarting\)"):
        asking.unary("/a/B", b"x", (), 5)
    assert asking.unary("/a/B", b"x", (), 5) == b"two"
    asking.close()


def test_a_call_that_is_under_way_when_the_peer_leaves_ends_well(peers: Scripts) -> None:
    """GOAWAY has the stream's number, so the stream will still be answered."""

    def script(peer: Peer) -> None:
        stream = peer.request()
        peer.connection.drain("restarting")
        peer.connection.ping(b"8 bytes!")
        peer.until(Pong)  # so it has read that the peer leaves
        peer.answer(stream, b"one")

    asking = client(peers, script, lambda peer: peer.answer(peer.request(), b"two"))
    assert asking.unary("/a/B", b"x", (), 5) == b"one"
    assert asking.unary("/a/B", b"x", (), 5) == b"two"
    asking.close()


def test_an_answer_may_come_before_the_request_is_complete(peers: Scripts) -> None:
    """The answer refuses a message that is larger than the windows: the rest is not sent, and the connection goes
    on.
    """

    def script(peer: Peer) -> None:
        stream = peer.until(Opened).stream
        peer.connection.send_tail(stream, answers.HEAD + headers.status(8, "too large"))
        peer.flush()
        peer.answer(peer.request(), b"two")

    asking = client(peers, script)
    with pytest.raises(errors.ResourceExhausted, match="^too large$"):
        asking.unary("/a/B", b"x" * (1 << 20), (), 5)
    assert asking.unary("/a/B", b"x", (), 5) == b"two"
    asking.close()


def test_an_answer_counts_though_the_peer_hung_up_behind_it(peers: Scripts) -> None:
    """The answer has been sent and is read, even if the peer does not read the rest of the request."""

    def script(peer: Peer) -> None:
        stream = peer.until(Opened).stream
        peer.connection.send_tail(stream, answers.HEAD + headers.status(8, "too large"))
        peer.flush()

    with pytest.raises(errors.ResourceExhausted, match="^too large$"):
        client(peers, script).unary("/a/B", b"x" * (1 << 20), (), 5)


@pytest.mark.parametrize("count", [0, 2])
def test_an_answer_has_one_message(count: int, peers: Scripts) -> None:
    """Another number is a defect of the peer."""

    def script(peer: Peer) -> None:
        stream = peer.request()
        peer.connection.answer(stream, answers.HEAD, (messages.prefix(b"m") + b"m") * count, answers.OK)
        peer.flush()

    with pytest.raises(errors.Internal, match=f"^a unary call was answered with {count} messages$"):
        client(peers, script).unary("/a/B", b"x", (), 5)


def test_a_reset_is_what_grpc_says_it_means(peers: Scripts) -> None:
    """REFUSED_STREAM is UNAVAILABLE."""

    def script(peer: Peer) -> None:
        peer.connection.reset(peer.request(), frames.Code.REFUSED_STREAM)
        peer.flush()

    with pytest.raises(errors.Unavailable, match="REFUSED_STREAM"):
        client(peers, script).unary("/a/B", b"x", (), 5)
