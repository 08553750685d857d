"""A node between honest and hostile clients (client.py, inputs.py): honest calls are answered in time; no process grows
without bound, hangs or dies.

``make hostile`` runs it for five minutes with a random seed, and judges the times too. Here it runs for some seconds,
with the seed that it prints, and judges only what does not depend on the machine's other users: answers, memory,
restarts, and the time of a processor that one turn of a process's loop takes (docs/adr/0014).

Where times are judged, the hostile programs have only what others leave of the processors (:func:`groups`). A hostile
client that computes beside the node would take them from any node; what the node does for it is what is judged.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from api.containerd.services.images.v1 import images_pb2, images_stubs
from services.kit import errors, rpc, turns
from services.kit.rpc import Channel
from tests.fake_registry import FakeRegistry
from tests.hostile import watched
from tests.hostile.honest import HEADERS, PATIENCE
from tests.pulls import Client, made
from tests.support import TOP, Node, eventually, eventually_async, short_directory

pytestmark = [
    pytest.mark.node,
    pytest.mark.root,
    pytest.mark.skipif(rpc.transport() != "wire", reason="the bounds are the wire's; grpcio has its own"),
]

SECONDS = float(os.environ.get("HOSTILE_SECONDS", "6"))
SEED = int(os.environ.get("HOSTILE_SEED", "1"))
JUDGED = "HOSTILE_SECONDS" in os.environ
"""Whether times are judged."""
QUIET_SECONDS = 2.0 if not JUDGED else 20.0
CONNECTIONS = 8
KINDS = os.environ.get("HOSTILE_KINDS", "").split()
"""Only these kinds of client.py's; an empty list means all."""
P99 = 0.1
TIMES = 3.0
GROWTH, KEPT = 256, 32
"""MiB by which a process may grow meanwhile, and by which it may exceed its first size 30 s later."""
TURN = 0.25
"""Seconds of a processor that a turn of a process's loop may use. The longest known takes 20 to 40 ms (a large
expression is compiled, a module loaded), and twice that where others compete for the caches of the processors.
"""
TURNS = "turns"
GROUPS = ("/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup")
"""Where the cgroups of processors are: of v1, and of v2."""


@dataclass(frozen=True)
class Groups:
    """The cgroup of the node and its honest client, and that of what has what they leave. None where times are not
    judged.
    """

    node: Path | None = None
    aside: Path | None = None


@pytest.fixture(scope="module")
def groups() -> Iterator[Groups]:
    """Two cgroups side by side, for the node with its honest client, and for the hostile ones: what is in the second
    runs while nothing in the first wants a processor, and is interrupted as soon as anything does. Both are below a
    third, so that another program of the machine takes from both.

    Where times are not judged, there are none: other tests are on the machine.
    """
    if not JUDGED:
        yield Groups()
        return
    both = cgroup()
    node, aside = both / "node", both / "aside"
    try:
        for group in node, aside:
            group.mkdir()
        (aside / "cpu.idle").write_text("1")
        yield Groups(node, aside)
    finally:

        def removed() -> bool:
            with contextlib.suppress(OSError):  # its last program is still ending
                for group in aside, node, both:
                    if group.exists():
                        group.rmdir()
            return not both.exists()

        eventually(removed, f"{both} cannot be removed", 15)


def cgroup() -> Path:
    """Make a cgroup that shares out processor time below it."""
    for top in filter(os.path.ismount, GROUPS):
        group = Path(top, f"splitd-hostile-{os.getpid()}")
        with contextlib.suppress(OSError):
            group.mkdir()
            if (control := group / "cgroup.subtree_control").exists():
                control.write_text("+cpu")
            if (group / "cpu.idle").exists():
                return group
            group.rmdir()
    pytest.fail(f"no cgroup with cpu.idle (Linux 5.15) can be made in any of {', '.join(GROUPS)}")


@pytest.fixture(scope="module")
def node(groups: Groups) -> Iterator[Node]:
    with short_directory() as directory:  # in memory (conftest.py), so that a Write is not the disk's
        (directory / TURNS).mkdir()
        # the look at each turn is a thousand looks a second, so it is not made while times are judged
        running = Node(directory, env={} if JUDGED else {turns.VARIABLE: str(directory / TURNS)})
        try:
            running.up()
            if groups.node is not None:
                for pid in watched.family({"supervisord": running.supervisord()}):
                    (groups.node / "cgroup.procs").write_text(str(pid))
            yield running
        finally:
            running.clear()


def joining(group: Path | None) -> list[str]:
    """The words to put before a command so that it runs in the cgroup."""
    return [] if group is None else ["/bin/sh", "-c", f'echo 0 > {group}/cgroup.procs; exec "$@"', "sh"]


@contextlib.asynccontextmanager
async def program(module: str, *arguments: object, group: Path | None) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a program of this directory, in a session and a cgroup of its own, until the block ends."""
    running = await asyncio.create_subprocess_exec(
        *joining(group),
        sys.executable,
        "-m",
        f"tests.hostile.{module}",
        *map(str, arguments),
        cwd=TOP,
        start_new_session=True,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 20,
        env={**os.environ, "PYTHONPATH": str(TOP)},
    )
    try:
        yield running
    finally:
        if running.returncode is None:
            running.kill()
            await running.wait()


async def told(running: asyncio.subprocess.Process, line: bytes = b"\n") -> Any:
    """Write a line to a program, if any, and return the object that it answers."""
    assert running.stdin is not None
    assert running.stdout is not None
    running.stdin.write(line)
    answer = await running.stdout.readline()
    assert answer, "a program has ended; its standard error has the reason"
    return json.loads(answer)


class Calls:
    """The honest client (honest.py)."""

    def __init__(self, running: asyncio.subprocess.Process) -> None:
        self.running = running
        self.took: dict[str, dict[str, float]] = {}
        """What was measured last."""

    @contextlib.asynccontextmanager
    async def made(self) -> AsyncIterator[None]:
        """Make honest calls while the block runs."""
        assert self.running.stdin is not None
        self.running.stdin.write(b"\n")
        yield
        self.took = await told(self.running)


async def warm(channel: Channel) -> None:
    """Make a pull and a List with an expression: modules that a process loads at the first use are no growth."""
    client = Client(channel, "honest")
    async with FakeRegistry() as registry:
        await client.pull(registry.add(made(), "warm:1"))
    with contextlib.suppress(errors.NodeError):
        await client.import_(b"no archive")
    for _ in range(20):
        await channel.client(images_stubs.IMAGES).List(
            images_pb2.ListImagesRequest(filters=["name~=a"]), headers=HEADERS, timeout=PATIENCE
        )


@contextlib.contextmanager
def busy(group: Path | None) -> Iterator[None]:
    """Keep all processors busy while the block runs, by as many computing programs as there are processors, which are
    what the hostile ones are.
    """
    loops = subprocess.Popen(
        [
            *joining(group),
            sys.executable,
            "-c",
            (
                "import os, sys\nfor _ in range(int(sys.argv[1]) - 1):\n    if not os.fork():\n        break\nwhile "
                "True:\n    pass"
            ),
            str(os.cpu_count() or 1),
        ],
        start_new_session=True,
    )
    try:
        yield
    finally:
        os.killpg(loops.pid, signal.SIGKILL)
        loops.wait()


def milliseconds(took: dict[str, dict[str, float]]) -> dict[str, tuple[float, ...]]:
    return {name: (round(each["p99"] * 1000, 1), round(each["median"] * 1000, 1)) for name, each in took.items()}


async def test_the_honest_beside_the_hostile(node: Node, groups: Groups) -> None:
    """Eight hostile connections make all inputs of inputs.py, beside one honest client."""
    async with Channel(node.socket) as channel, program("honest", node.socket, SEED, group=groups.node) as client:
        honest = Calls(client)
        await told(client, b"")
        await warm(channel)
        async with honest.made():
            await asyncio.sleep(QUIET_SECONDS)
        quiet = beside = honest.took
        if JUDGED:
            with busy(groups.aside):
                async with honest.made():
                    await asyncio.sleep(QUIET_SECONDS)
            beside = honest.took
        else:
            assert {"gateway", "metadata", "images"} <= turns.longest(node.root.parent / TURNS).keys()
            for each in (node.root.parent / TURNS).iterdir():  # what is loaded at the start is nobody's waiting
                each.unlink()
        pids = node.pids()
        first = await asyncio.to_thread(watched.memory, pids)
        used = watched.processor(pids)
        of_pids = [f"{name}={pid}" for name, pid in pids.items()]
        async with (
            program("watched", *of_pids, group=groups.aside) as watching,
            program("client", node.socket, SEED, CONNECTIONS, *KINDS, group=groups.aside) as hostile,
            honest.made(),
        ):
            await told(hostile, b"")
            await asyncio.wait(
                (asyncio.ensure_future(client.wait()), asyncio.ensure_future(hostile.wait())),
                timeout=SECONDS,
                return_when=asyncio.FIRST_COMPLETED,
            )
            said, _ = await hostile.communicate(b"")
            most, _ = await watching.communicate(b"")
        loud = honest.took
        came, peak = json.loads(said), json.loads(most)
        print(
            (
                f"seed {SEED}: p99 and median in ms, quiet, beside programs that only compute and beside {CONNECTIONS} "
                f"hostile connections, {sum(came['tried'].values()) / SECONDS:.0f} attacks a second:"
            ),
            [milliseconds(each) for each in (quiet, beside, loud)],
            "tried",
            came["tried"],
            "answered",
            came["answered"],
            "MiB at first and at most",
            {name: (first.get(name, 0), size) for name, size in peak.items()},
            "seconds that each had a processor, and waited for one",
            {
                name: tuple(round(now - then, 1) for now, then in zip(each, used[name], strict=True))
                for name, each in watched.processor(pids).items()
            },
        )
        assert came["tried"]
        assert came["faults"] == []
        assert node.pids() == pids, "a process was started anew"
        grown = {name: (first.get(name, 0), size) for name, size in peak.items() if size > first.get(name, 0) + GROWTH}
        assert not grown, f"MiB at first and at most: {grown}"

        async def back() -> bool:
            kept = {
                name: (first[name], size)
                for name, size in (await asyncio.to_thread(watched.memory, pids)).items()
                if name in first and size > first[name] + KEPT
            }
            assert not kept, f"MiB at first and now: {kept}"
            return True

        await eventually_async(back, "memory is not given back", 30)
        async with honest.made():
            await asyncio.sleep(1)
        took = turns.longest(node.root.parent / TURNS)
        print("ms of a processor that the longest turns took:", {name: round(s * 1000) for name, s in took.items()})
        long = {name: seconds for name, seconds in took.items() if seconds > TURN}
        assert not long, f"seconds of a processor that a turn of the loop took: {long}"
    if JUDGED:
        late = {
            name: f"{quiet[name]['p99'] * 1000:.1f} and {loud[name]['p99'] * 1000:.1f} ms"
            for name in quiet
            if loud[name]["p99"] > P99 or loud[name]["p99"] > quiet[name]["p99"] * TIMES
        }
        assert not late, f"p99 without and with hostile clients: {late}"
