"""A node on a disk of its own, a registry, and pulls whose traces are judged."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from deploy.samples import Image
from deploy.traces import judged
from services.kit.rpc import Channel
from services.traces.remote import RemoteStore
from services.traces.store import Query, Trace
from services.traces.verdict import Verdict
from tests.fake_registry import FakeRegistry
from tests.support import Node, loop_disk

T = TypeVar("T")

NAME = "box:1"
PATIENCE = 20.0
"""Seconds until all processes have sent their spans."""


@dataclass
class Scene:
    """What an injection can change, and the pulls that show it."""

    node: Node
    registry: FakeRegistry
    disk: Path
    """Where the node's disk is mounted."""
    hosts: Path
    """A directory for hosts.toml files; empty between injections."""
    faults: Path
    """Where ``services.kit.faults`` of the node's processes looks."""
    verifiers: Path
    """Where the node looks for image verifiers; absent between injections."""
    threads: ThreadPoolExecutor
    named: str = ""
    """What the sentence must name, if the injection knows only now."""
    pulls: Callable[[str], Awaitable[None]] | None = None
    """Another way to pull a reference than ``splitd pull``."""
    medians: dict[str, float] = field(default_factory=dict)

    async def command(self, run: Callable[..., T], *arguments: object, **options: Any) -> T:
        """Run a command of the node (:class:`Node`'s ``splitd`` or ``ctr``) while this process serves."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, partial(run, *arguments, **options))

    async def judged(self, image: Image, name: str = NAME) -> Verdict:
        """Pull an image that the node does not have, and judge it."""
        await self.forgotten(name)
        return await self.pulled_and_judged(image, name)

    async def pulled_and_judged(self, image: Image, name: str = NAME) -> Verdict:
        """Pull an image, and judge that."""
        since = time.time_ns()
        await self.pulled(self.registry.add(image, name))
        return await self.verdict(name, since)

    async def pulled(self, reference: str) -> None:
        """``splitd pull``, as a user does it, unless the injection pulls otherwise."""
        if self.pulls is not None:
            await self.pulls(reference)
            return
        hosts = ["--hosts-dir", str(self.hosts)] if any(self.hosts.iterdir()) else []
        await self.command(self.node.splitd, "pull", reference, "--plain-http", *hosts, seconds=300)

    async def forgotten(self, name: str = NAME) -> None:
        """Remove an image with everything that is only its own."""
        reference = f"{self.registry.host}/{name}"
        await self.command(self.node.ctr, "images", "rm", "--sync", reference, ok=None)

    async def verdict(self, name: str, since: int) -> Verdict:
        """Judge the newest pull of an image after ``since``, once its trace is there as a whole."""
        reference = f"{self.registry.host}/{name}"
        async with Channel(self.node.state / "traces.sock") as channel:
            store = RemoteStore(channel)
            return await judged(store, await self._newest(store, reference, since))

    @staticmethod
    async def _newest(store: RemoteStore, reference: str, since: int) -> Trace:
        """The newest pull of a reference. It is there as a whole when its root has arrived, and no more spans do."""
        before = -1
        async with asyncio.timeout(PATIENCE):
            while True:
                for summary in (await store.traces(Query(operation="pull", image=reference, since=since, limit=1)))[:1]:
                    if summary.outcome and summary.spans == before:
                        return await store.trace(summary.id)
                    before = summary.spans
                await asyncio.sleep(0.3)


@contextlib.asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    """A node with everything on a loop device, so that its disk can be slowed down alone. The registry, which is in
    this process, comes before the node: it stands for another machine, which has its own processors.
    """
    with loop_disk("ext4") as disk, _directories(disk) as (hosts, faults):
        verifiers = disk / "verifiers"
        config = f'[images.verifier]\nbin_dir = "{verifiers}"\n'
        node = Node(disk, config=config, env={"SPLITD_FAULTS": str(faults)})
        try:
            node.up()
            async with FakeRegistry() as registry:
                with _first() as threads:
                    yield Scene(node, registry, disk, hosts, faults, verifiers, threads)
        finally:
            node.clear()


@contextlib.contextmanager
def _first() -> Iterator[ThreadPoolExecutor]:
    """This thread goes before others; those that start programs do not, so neither do the programs."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, 0, -15)
    try:
        with ThreadPoolExecutor(4, initializer=partial(os.setpriority, os.PRIO_PROCESS, 0, before)) as threads:
            yield threads
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, before)


@contextlib.contextmanager
def _directories(disk: Path) -> Iterator[tuple[Path, Path]]:
    made = disk / "hosts", disk / "faults"
    for path in made:
        path.mkdir()
    yield made
