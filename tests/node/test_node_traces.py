"""The traces service of a node: it has a trace of each pull, and the node works without it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from deploy.samples import Registry, image, tar_of
from services.kit import rpc
from services.traces.remote import RemoteStore
from services.traces.store import Query, Summary
from tests.support import Node, eventually, eventually_async, freeze, health

pytestmark = [pytest.mark.node, pytest.mark.root, pytest.mark.timeout(180)]

SERVING = 1


@pytest.fixture
def pull(node: Node, registry: Registry) -> Callable[[str], str]:
    """Pull an image that the node does not have, and return its name."""

    def run(name: str) -> str:
        layers = [tar_of([(f"{name}-{number}", {"data": os.urandom(200_000)})]) for number in range(2)]
        reference = registry.push(image(layers), f"{name}:1")
        node.ctr("images", "pull", "--plain-http", reference)
        return reference

    return run


async def pulls(node: Node, reference: str) -> list[Summary]:
    async with rpc.Channel(node.state / "traces.sock", "traces") as channel:
        found = await RemoteStore(channel).traces(Query(operation="pull", image=reference))
    return [each for each in found if each.outcome]


async def test_a_pull_is_there_at_once(node: Node, pull: Callable[[str], str]) -> None:
    """With what it did, and the spans of all that took part. ``splitd status`` says how much there is."""
    reference = pull("once")

    async def one() -> Summary | None:
        found = await pulls(node, reference)
        return found[0] if found else None

    summary = await eventually_async(one, "the pull has no trace")
    assert (summary.image, summary.namespace, summary.outcome) == (reference, "default", "ok")

    async def complete() -> bool:
        async with rpc.Channel(node.state / "traces.sock", "traces") as channel:
            trace = await RemoteStore(channel).trace(summary.id[:12])
        there = {span.service for span in trace.spans}
        return {f"splitd-{name}" for name in ("gateway", "snapshots", "content")} <= there

    await eventually_async(complete, "spans are missing")
    said = node.status()["traces"]
    assert said["traces"] >= 1
    assert said["spans"] > said["traces"]
    assert said["bytes"] > 0

    def shown() -> bool:  # the next trace may come between the two
        number = node.status()["traces"]["traces"]
        return f"\ntraces: {number:,} of " in node.splitd("status").stdout

    eventually(shown, "splitd status does not say how many traces there are")


@contextlib.contextmanager
def killed(node: Node) -> Iterator[None]:
    """The traces process dies again and again."""
    ended = threading.Event()

    def strike() -> None:
        while not ended.wait(0.15):
            with contextlib.suppress(ProcessLookupError):
                if pid := node.pid("traces"):
                    os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=strike)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextlib.contextmanager
def frozen(node: Node) -> Iterator[None]:
    """It does not answer."""
    pid = node.pid("traces")
    freeze(pid)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def stopped(node: Node) -> Iterator[None]:
    """It was stopped on purpose."""
    node.splitd("down", "traces")
    try:
        yield
    finally:
        node.up()


@pytest.mark.parametrize("trouble", [killed, frozen, stopped])
async def test_the_node_works_without_it(
    trouble: Callable[[Node], contextlib.AbstractContextManager[None]], node: Node, box: str, pull: Callable[[str], str]
) -> None:
    """Pulls and containers work, the node's health is SERVING, and no other process ends. Afterwards there are traces
    again.
    """

    def others() -> dict[str, int]:
        return {name: pid for name, pid in node.pids().items() if name != "traces"}

    before = others()
    with trouble(node):
        for number in range(2):
            pull(f"{trouble.__name__}{number}")
        assert node.out("run", "--rm", box, f"{trouble.__name__}", "echo", "it works") == "it works\n"
        assert await health(node.socket) == SERVING
    assert others() == before
    eventually(lambda: node.status()["healthy"], "it does not come back")
    reference = pull(f"after-{trouble.__name__}")
    await eventually_async(lambda: pulls(node, reference), "there are no traces any longer")
