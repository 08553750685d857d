"""A trial as an operator makes it, under a load of pulls and runs: a snapshotter that takes half, a content store that
gets copies, faults, the candidate's death and its hanging, and the way back.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from api.containerd.services.content.v1 import content_pb2 as pb
from api.containerd.services.content.v1 import content_stubs
from api.containerd.services.leases.v1 import leases_pb2, leases_stubs
from deploy.samples import Registry
from services.kit.rpc import LEASE, NAMESPACE, Channel
from tests.support import TOP, Node, OwnService, eventually, short_directory

pytestmark = [pytest.mark.node, pytest.mark.root, pytest.mark.timeout(300)]

FAULT = "injected by splitd fault"
AWAY = 5.0
"""Seconds that the candidate is dead, and then stopped: less than its calls are held."""
CALLS = 20
DIFFERING = Path(__file__).with_name("differing_blobs.py")
HEADERS = {NAMESPACE: "calls", LEASE: "calls"}


class Load:
    """Clients that pull and run, one after the other, until told to stop."""

    def __init__(self, node: Node, reference: str) -> None:
        self._node = node
        self._reference = reference
        self._stop = threading.Event()
        self.done: list[str] = []
        self.failed: list[str] = []
        """What the failing commands said."""
        self._threads = [threading.Thread(target=self._repeat, args=(work,)) for work in (self._pull, self._run)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _repeat(self, work: Callable[[int], None]) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            work(number)

    def _pull(self, number: int) -> None:
        """Into another namespace each time, so that it is unpacked each time."""
        self._ctr("-n", f"pull{number}", "images", "pull", "--plain-http", self._reference)

    def _run(self, number: int) -> None:
        self._ctr("run", "--rm", self._reference, f"run{number}", "true")

    def _ctr(self, *words: str) -> None:
        command = ["ctr", "-a", str(self._node.socket), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        (self.failed if done.returncode else self.done).append(f"{' '.join(words)}: {done.stderr.strip()}")


def is_used(node: Node) -> bool:
    """Whether the candidate is there."""
    (candidate,) = [
        each for route in json.loads(node.splitd("routes", "--json").stdout) for each in route["candidates"]
    ]
    assert candidate["state"] != "down", candidate
    return True


async def calls(node: Node) -> None:
    """So many Writes, of even and of odd sizes, each with a Status in its midst, and Reads of what was written."""
    async with Channel(node.socket, "gateway") as channel:
        content = channel.client(content_stubs.CONTENT)
        await channel.client(leases_stubs.LEASES).Create(leases_pb2.CreateRequest(id="calls"), headers=HEADERS)
        for number in range(CALLS):
            ref, data = f"ref{number}", os.urandom(100 + number)
            digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
            async with content.Write(headers=HEADERS) as stream:
                await stream.send(pb.WriteContentRequest(action=pb.WRITE, ref=ref, total=len(data), data=data[:50]))
                assert await stream.receive() is not None
            await content.Status(pb.StatusRequest(ref=ref), headers=HEADERS)
            async with content.Write(headers=HEADERS) as stream:
                await stream.send(
                    pb.WriteContentRequest(
                        action=pb.COMMIT, ref=ref, total=len(data), expected=digest, offset=50, data=data[50:]
                    )
                )
                while await stream.receive() is not None:
                    pass
            request = pb.ReadContentRequest(digest=digest)
            assert b"".join([each.data async for each in content.Read(request, headers=HEADERS)]) == data


def compared(node: Node) -> dict[str, list[str]]:
    """The fields that differ, by method, once the copies of :func:`calls` are compared."""

    def methods() -> dict[str, list[str]]:
        (report,) = json.loads(node.splitd("shadow", "report", "content", "--json").stdout)
        found = {each["method"]: each for each in report["methods"]}
        assert {"Content/Read", "Content/Status", "Content/Write"} <= found.keys(), found
        assert found["Content/Status"]["different"] >= CALLS, found
        assert found["Content/Read"]["different"] >= CALLS // 2, found
        assert found["Content/Write"]["different"] >= CALLS // 2, found
        return {
            name: [each["name"] for each in method["differences"]]
            for name, method in found.items()
            if method["differences"]
        }

    return eventually(methods, "not all copies are compared", 30.0)


async def test_a_trial_under_load(node: Node, registry: Registry) -> None:
    """Only what the fault hits fails, and says so; nothing is lost; the report has the three differences."""
    reference = f"{registry.host}/box:1"
    node.ctr("images", "pull", "--plain-http", reference)
    with (
        short_directory() as one,
        short_directory() as two,
        OwnService(TOP / "examples/overlay.py", one) as theirs,
        OwnService(DIFFERING, two, env={"PYTHONPATH": str(TOP)}) as differing,
    ):
        with Load(node, reference) as load:
            node.splitd("replace", "snapshots.overlayfs", "--address", str(theirs.sockets[0]), "--share", "50%")
            node.splitd("shadow", "content", "--address", str(differing.sockets[0]), "--store", str(two / "r"))
            eventually(lambda: len(load.done) > 4, "nothing works")
            assert load.failed == []
            lasting = ("--share", "1%", "--seed", "7", "--for", f"{2 * AWAY:g}s")
            node.splitd("fault", "metadata.*", "--error", "UNAVAILABLE", *lasting)
            theirs.kill()
            back = threading.Timer(AWAY, theirs.start)
            back.start()
            back.join()
            eventually(lambda: is_used(node), "it is not used again")
            os.kill(theirs.pid, signal.SIGSTOP)
            time.sleep(AWAY)  # the length of the hang is what is tried
            os.kill(theirs.pid, signal.SIGCONT)
            node.splitd("restore", "snapshots.overlayfs")
            eventually(lambda: "no fault" in node.splitd("fault", "--list").stdout, "the fault does not end")
            done = len(load.done)
            eventually(lambda: len(load.done) > done + 4, "nothing works any more")
            await calls(node)
            found = compared(node)
        assert load.failed, "no call was hit"
        assert [words for words in load.failed if FAULT not in words] == []
        assert found == {"Content/Read": ["data"], "Content/Status": ["status.total"], "Content/Write": ["code"]}
        assert any((one / "r/snapshots").iterdir())
        for words in load.done:  # nothing is lost, wherever it is
            if words.startswith("-n pull"):
                namespace = words.split()[1]
                assert node.out("run", "--rm", reference, "x", "echo", "there", namespace=namespace) == "there\n"
        node.clear()  # while the candidate is there to remove what it has
