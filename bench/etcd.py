"""``python -m bench --etcd``: a node whose records are in etcd, on the same machine and the same disk, beside one whose
records are in SQLite; the same work in turn. And what only the first one has: a start with many records, and an etcd
that is away.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import statistics
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from api.containerd.services.containers.v1 import containers_pb2, containers_stubs
from bench import measures, peers, usage
from bench.measures import ctr
from bench.peers import Peer
from bench.trials import Row
from deploy.samples import Registry, busybox_image
from services.kit import errors
from services.kit.rpc import NAMESPACE, Channel

UNARY, RUN, START, LISTED, AWAY = "unary: ", "ctr run", "start, its mirror is there", "start, no mirror", "etcd away"
ROWS = (
    *(Row(f"{UNARY}{name}, ms", 1.05) for name in measures.UNARY if name != "Version"),
    Row(f"{RUN} --rm true, ms", 1.3),
    Row(f"{START}, s", 2.0),
    Row(f"{LISTED}, s", 2.0),
    Row(f"{AWAY}: all processes together, % of a core", 1.0),
)
RECORDS = 10_000
AT_ONCE = 32
CALLS = 2_000
RUNS = 15
"""Calls, and runs, of each node in a round."""
HEADERS = {NAMESPACE: "many"}
CONFIG = """
[metadata]
store = "etcd"
[metadata.etcd]
endpoints = ["127.0.0.1:{}"]
prefix = "/bench"
"""


class Etcd:
    """One member, with what Debian's package has as defaults."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        with socket.socket() as one, socket.socket() as two:
            for each in (one, two):
                each.bind(("127.0.0.1", 0))
            self.port, self._peer = one.getsockname()[1], two.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return once it answers."""
        program = shutil.which("etcd")
        if program is None:
            raise RuntimeError("apt-get install etcd-server")
        own, peer = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{self._peer}"
        self._process = subprocess.Popen(
            [program, "--name", "b", "--data-dir", str(self._directory), "--listen-client-urls", own,
             "--advertise-client-urls", own, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
             "--initial-cluster", f"b={peer}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        end = time.monotonic() + 30
        while True:
            try:
                with urllib.request.urlopen(f"{own}/health", timeout=2) as answer:
                    if b'"true"' in answer.read():
                        return
            except OSError as error:
                if self._process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"etcd does not start: {error}") from None
            time.sleep(0.05)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def _member(directory: Path) -> Iterator[Etcd]:
    member = Etcd(directory)
    try:
        member.start()
        yield member
    finally:
        member.stop()


def rows(stack: ExitStack, scratch: Path, rounds: int, only: str, away: float) -> list[dict[str, object]]:
    """Measure and print the wanted rows; ``away`` is in seconds. Each result has all figures."""
    directory = scratch / "etcd"
    shutil.rmtree(directory, ignore_errors=True)
    for name in ("s", "e"):
        (directory / name).mkdir(parents=True)
    stack.callback(shutil.rmtree, directory, ignore_errors=True)
    etcd = stack.enter_context(_member(directory / "data"))
    sqlite = stack.enter_context(peers.splitd(directory / "s"))
    ours = stack.enter_context(peers.splitd(directory / "e", config=CONFIG.format(etcd.port)))
    found: list[dict[str, object]] = []

    def told(row: Row, pairs: Sequence[tuple[float, float]], *, absolute: bool = False) -> None:
        one, none = (statistics.median(each) for each in zip(*pairs, strict=True))
        ratio = one if absolute else statistics.median(a / b for a, b in pairs)
        worse = ratio > row.bound
        print(
            f"{row.name:56}{one:12.3f}{none:12.3f}{ratio:9.3f}   bound {row.bound:g}" + ("   not met" if worse else ""),
            flush=True,
        )
        found.append({"name": row.name, "pairs": list(pairs), "ratio": ratio, "worse": worse})

    print(f"{'median of ' + str(rounds) + ' rounds':56}{'etcd':>12}{'SQLite':>12}{'ratio':>9}")
    for row in ROWS:
        if only not in row.name:
            continue
        if row.name.startswith(UNARY):
            which = row.name.removeprefix(UNARY).removesuffix(", ms")
            for peer in (ours, sqlite):
                measures.unary_p50(peer, which, 200)
            told(row, _in_turn(rounds, ours, sqlite, lambda peer, w=which: measures.unary_p50(peer, w, CALLS)))
        elif row.name.startswith(RUN):
            told(row, _runs(stack, directory, rounds, ours, sqlite))
        elif row.name.startswith((START, LISTED)):
            for peer in (ours, sqlite):
                asyncio.run(_filled(peer))
            anew = row.name.startswith(LISTED)
            told(row, _in_turn(rounds, ours, sqlite, lambda peer, a=anew: _started(peer, anew=a)), absolute=True)
        else:
            told(row, [_without(etcd, ours, sqlite, away)], absolute=True)
    return found


def _in_turn(rounds: int, one: Peer, other: Peer, measure: object) -> list[tuple[float, float]]:
    assert callable(measure)
    pairs = []
    for number in range(rounds):
        figures = {peer.socket: measure(peer) for peer in ((one, other) if number % 2 else (other, one))}
        pairs.append((figures[one.socket], figures[other.socket]))
    return pairs


def _runs(stack: ExitStack, directory: Path, rounds: int, one: Peer, other: Peer) -> list[tuple[float, float]]:
    registry = stack.enter_context(Registry(directory / "registry"))
    reference = registry.push(busybox_image(), "tried:1")
    for peer in (one, other):
        ctr(peer, "images", "pull", "--plain-http", reference)

    def run(peer: Peer) -> float:
        times = []
        for number in range(RUNS):
            start = time.perf_counter()
            ctr(peer, "run", "--rm", reference, f"r{number}", "true")
            times.append((time.perf_counter() - start) * 1e3)
        return statistics.median(times)

    return _in_turn(rounds, one, other, run)


async def _filled(peer: Peer) -> None:
    """Make containers until there are :data:`RECORDS`."""
    async with Channel(peer.socket) as channel:
        client = channel.client(containers_stubs.CONTAINERS)
        numbers = iter(range(RECORDS))

        async def some() -> None:
            for number in numbers:
                container = containers_pb2.Container(id=f"c{number}", image="bench")
                container.runtime.name = "io.containerd.runc.v2"
                container.spec.type_url, container.spec.value = "x", b'{"ociVersion":"1.0.2"}' * 100
                with contextlib.suppress(errors.AlreadyExists):
                    await client.Create(containers_pb2.CreateContainerRequest(container=container), headers=HEADERS)

        await asyncio.gather(*(some() for _ in range(AT_ONCE)))


def _started(peer: Peer, *, anew: bool) -> float:
    """s: from the death of metadata to its first answer of a new process. ``anew``: it has no mirror."""
    state = peer.socket.parent
    [pid] = [each for each in peer.pids() if "services.metadata" in _words(each)]
    if anew:
        for path in (state / "metadata").glob("mirror.db*"):
            path.unlink()
    os.kill(pid, signal.SIGKILL)
    start = time.perf_counter()

    async def answered() -> float:
        async with Channel(state / "metadata.sock", "metadata") as channel:
            client = channel.client(containers_stubs.CONTAINERS)
            while True:
                try:
                    await client.Get(containers_pb2.GetContainerRequest(id="c77"), headers=HEADERS, timeout=1)
                except (errors.Unavailable, errors.DeadlineExceeded):
                    await asyncio.sleep(0.01)
                else:
                    return time.perf_counter() - start

    return asyncio.run(answered())


def _words(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().replace("\0", " ")


def _without(etcd: Etcd, ours: Peer, sqlite: Peer, seconds: float) -> tuple[float, float]:
    """% of a core that all processes of each node take while etcd is away."""
    etcd.stop()
    time.sleep(5.0)  # that it is away has been noticed, which is no load that lasts
    spent = [usage.Spent(peer) for peer in (ours, sqlite)]
    begun = time.monotonic()
    time.sleep(seconds)
    passed = time.monotonic() - begun
    one, other = (sum(each.since().values()) / passed * 100 for each in spent)
    etcd.start()
    return one, other
