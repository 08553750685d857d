"""How much others suffer from a client that does too much: Version's p99 under a load, as a multiple of its p99
without, for both daemons by the same client.

The loads are those of tests/node/test_node_under_load.py, which tells what happens to the clients that make them
(``bench.hostile``).
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import TYPE_CHECKING

from api.containerd.services.content.v1 import content_pb2
from api.containerd.services.tasks.v1 import tasks_pb2
from bench.hostile import VERSION, Raw, idle
from bench.measures import NAMESPACE, caller, command, ctr
from bench.peers import Peer
from services.kit import process
from services.wire.events import Ready

if TYPE_CHECKING:
    from bench.table import Table

WAIT = "/containerd.services.tasks.v1.Tasks/Wait"
READ = "/containerd.services.content.v1.Content/Read"
TASK = "bench-load"
_MIB = 1 << 20


def p99(peer: Peer, calls: int = 3000) -> float:
    """ms: the time that one Version in a hundred exceeds."""
    return caller(peer, "-method", VERSION, "-calls", str(calls))["p99_ms"]


def rows(table: Table, peers: list[Peer], box: str) -> None:
    """All wanted rows."""
    process.many_files()
    with ExitStack() as stack:
        for name, (prepare, load) in LOADS.items():
            if not table.wanted(name):
                continue
            for peer in peers:
                stack.enter_context(prepare(peer, box))
            table.measure(name, "x p99", partial(_loaded, load=load))


def _loaded(peer: Peer, load: Callable[[Peer], AbstractContextManager[object]]) -> float:
    alone = p99(peer)
    with load(peer):
        return p99(peer) / alone


# ------------------------------------------------------------------------------------------ prerequisites


@contextlib.contextmanager
def _nothing(_peer: Peer, _box: str) -> Iterator[None]:
    yield


@contextlib.contextmanager
def _task(peer: Peer, box: str) -> Iterator[None]:
    ctr(peer, "images", "pull", "--plain-http", box)
    ctr(peer, "run", "-d", box, TASK, "sleep", "100000")
    try:
        yield
    finally:
        ctr(peer, "tasks", "kill", "-s", "SIGKILL", TASK)
        ctr(peer, "tasks", "rm", "-f", TASK)
        ctr(peer, "containers", "rm", TASK)


_BLOB = b"".join(hashlib.sha256(i.to_bytes(4, "big")).digest() * (_MIB // 32) for i in range(64))
_DIGEST = f"sha256:{hashlib.sha256(_BLOB).hexdigest()}"


@contextlib.contextmanager
def _blob(peer: Peer, _box: str) -> Iterator[None]:
    subprocess.run(command(peer, "content", "ingest", "bench-load"), input=_BLOB, check=True)
    ctr(peer, "content", "label", _DIGEST, "containerd.io/gc.root=bench")
    try:
        yield
    finally:
        ctr(peer, "content", "rm", _DIGEST)


# ------------------------------------------------------------------------------------------ loads


def _connections(peer: Peer) -> ExitStack:
    return idle(peer.socket, 5000)


@contextlib.contextmanager
def _calls(peer: Peer, path: str, request: bytes, connections: int, each: int) -> Iterator[None]:
    """Calls that stay open, with their answers unread except for what arrives at once."""
    with ExitStack() as stack:
        for _ in range(connections):
            raw = stack.enter_context(Raw(peer.socket))
            raw.until(lambda raw: raw.of(Ready))
            for _ in range(each):
                raw.call(path, request, namespace=NAMESPACE)
            raw.flush()
        yield


def _waits(peer: Peer) -> AbstractContextManager[None]:
    return _calls(peer, WAIT, tasks_pb2.WaitRequest(container_id=TASK).SerializeToString(), 50, 20)


def _readers(peer: Peer) -> AbstractContextManager[None]:
    return _calls(peer, READ, content_pb2.ReadContentRequest(digest=_DIGEST).SerializeToString(), 4, 5)


@contextlib.contextmanager
def _flood(peer: Peer) -> Iterator[None]:
    """One client that opens and resets without end. When it is disconnected, it comes back."""
    data, stop = _resets(12_000), threading.Event()

    def again() -> None:
        while not stop.is_set():
            with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(OSError):
                connection.settimeout(5)
                connection.connect(str(peer.socket))
                connection.sendall(data)
                while (answer := connection.recv(1 << 20)) and b"the end!" not in answer:
                    pass

    thread = threading.Thread(target=again)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _resets(count: int) -> bytes:
    """Everything that such a client sends, once. The ping at its end is answered when the server has seen the rest."""
    with Raw(None) as raw:
        raw.resets(count, VERSION)
        raw.connection.ping(b"the end!")
        return b"".join(raw.connection.take())


LOADS: dict[
    str, tuple[Callable[[Peer, str], AbstractContextManager[None]], Callable[[Peer], AbstractContextManager[object]]]
] = {
    "with 5,000 idle connections": (_nothing, _connections),
    "with 1,000 open Waits": (_task, _waits),
    "with a flood of resets": (_nothing, _flood),
    "with 20 readers that stopped": (_blob, _readers),
}
