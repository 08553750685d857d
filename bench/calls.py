"""The calls of ``ctr run --rm IMAGE true``, and the time of each: ``python -m bench --calls``.

A relay stands between ctr and the daemon. It notes each call, in order, and the time to its answer. It adds the same
time (a millisecond or so) to each call of either daemon. So the sums are not the time of a run, but the differences are
the daemons'. Beside this it prints the processor time of a run in each process, without the relay.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

from bench import measures
from bench.peers import Peer
from services.kit import rpc
from services.kit.rpc import STREAMS, Arity, Call, Channel, Coordinated, Route

Key = tuple[str, int]
"""A call of a run: ``Service/Method``, and its number among those of the same name."""

_TICK = 1000 / os.sysconf("SC_CLK_TCK")


class _Notes:
    """A relay to ``channel`` that measures the time of every call."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._count: Counter[str] = Counter()
        self.times: dict[Key, float] = {}

    def arity(self, method: str) -> Arity:
        return STREAMS

    def coordinated(self, call: Call) -> Coordinated | None:
        return self._pass

    def route(self, call: Call) -> Route:
        raise NotImplementedError

    async def _pass(self, requests: AsyncIterator[bytes], call: Call) -> AsyncIterator[bytes]:
        name = call.method.rpartition(".")[2]
        key = name, self._count[name]
        self._count[name] += 1
        self.times[key] = 0.0  # keeps its place
        start = time.perf_counter()
        try:
            async with self._channel.stream(call.method, call.passed_on()) as stream:
                async for request in requests:
                    await stream.send(request)
                await stream.done_sending()
                while (message := await stream.receive()) is not None:
                    yield message
        finally:
            self.times[key] = (time.perf_counter() - start) * 1000


async def _run(peer: Peer, reference: str, scratch: Path) -> dict[Key, float]:
    async with Channel(peer.socket) as channel:
        notes = _Notes(channel)
        relay = scratch / f"{peer.name}.sock"
        async with rpc.serving(relay, [], relay=notes):
            await asyncio.to_thread(measures.run, Peer(peer.name, relay, peer.marks), reference)
    return notes.times


def calls(both: list[Peer], reference: str, scratch: Path, rounds: int) -> None:
    """Print the calls of a run in order, with the medians of both daemons and the difference."""
    taken: dict[str, list[dict[Key, float]]] = {peer.name: [] for peer in both}
    for _ in range(rounds):
        for peer in both:
            taken[peer.name].append(asyncio.run(_run(peer, reference, scratch)))
    print(f"{'call':34}" + "".join(f"{peer.name:>14}" for peer in both) + f"{'more':>9}   ms, medians of {rounds}")
    sums = [0.0, 0.0]
    for key in taken[both[-1].name][0]:
        medians = [statistics.median([run[key] for run in taken[peer.name] if key in run] or [0.0]) for peer in both]
        sums = [a + b for a, b in zip(sums, medians, strict=True)]
        print(f"{key[0]:34}" + "".join(f"{m:14.2f}" for m in medians) + f"{medians[1] - medians[0]:9.2f}")
    print(f"{'all of them':34}" + "".join(f"{s:14.2f}" for s in sums) + f"{sums[1] - sums[0]:9.2f}")


def processor_time(peer: Peer, reference: str, rounds: int) -> None:
    """Print the processor time of a run in each of the daemon's processes, one run after another and 20 at once."""
    for name, count, work in (
        ("one by one", rounds, lambda: [measures.run(peer, reference) for _ in range(rounds)]),
        ("20 at once", 20, lambda: measures.run_many(peer, reference)),
    ):
        before = {pid: _used(pid) for pid in peer.pids()}
        work()
        # this does not wait for anything: work that a run leaves behind, such as a collection, is its cost too
        time.sleep(2)
        print(f"{peer.name}, {name}, ms of processor time a run:")
        for pid, start in before.items():
            spent = (_used(pid) - start) * _TICK / count
            if spent >= 0.05:
                print(f"  {_name(pid):32}{spent:8.1f}")


def _used(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _name(pid: int) -> str:
    arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    return arguments[arguments.index("-m") + 1] if "-m" in arguments else Path(arguments[0]).name
