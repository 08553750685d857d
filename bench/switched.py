"""What tracing costs a pull by the node: two nodes in turn, one of which traces. Halfway they change their parts, while
they run.

A node differs from another by more than tracing costs, and a disk from itself by much more. So the nodes and the
registry's files are in memory, each node is in both parts, and two pulls that follow each other make a pair: whatever
drifts weighs on both.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import random
import re
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from api.containerd.services.images.v1 import images_pb2, images_stubs
from bench import peers, usage
from client.transfers_remote import Transfers
from deploy.processes import PROCESSES
from deploy.samples import Image
from deploy.samples import Registry as Files
from services.images.transfer import ImageStore, Registry, Unpacking
from services.kit.rpc import Channel
from services.oci import platforms

PAIRS = 36
"""Of which each half of the measurement has one half."""
ROWS = ("pull by the node, in memory", "pull by the node, processor time")
_SETTLED = 1.5
"""Seconds after a pull and its removal until their last spans have been sent and written: that is part of what they
cost, and is no load on the next pull.
"""
_HEADERS = {"containerd-namespace": "bench"}
_FLIPS = 4000
_TOLD = re.compile(rb" tracing is (?:on|off): ")
_PATIENCE = 30.0
"""Seconds within which each process must have seen the change. They look each 5 s."""


@dataclass(frozen=True, slots=True)
class Paired:
    """The verdict on pairs of figures: the ratio of the first ones to the second ones, and the noise: how far from 1 it
    would be by chance, if they did not differ. In 99 of 100 cases it is less.
    """

    ratio: float
    noise: float


def paired(pairs: Sequence[tuple[float, float]]) -> Paired:
    """Judge pairs. Chance is tried: what would come out if each pair were as far from the usual one as it is, but in
    the direction that a coin says?
    """
    logarithms = [math.log(first / second) for first, second in pairs]
    middle = statistics.median(logarithms)
    coin = random.Random(1)
    by_chance = sorted(
        abs(statistics.median(coin.choice((middle - each, each - middle)) for each in logarithms))
        for _ in range(_FLIPS)
    )
    return Paired(math.exp(middle), math.exp(by_chance[_FLIPS * 99 // 100]) - 1)


class Node:
    """A node in ``directory``, which pulls ``reference``."""

    def __init__(self, stack: ExitStack, directory: Path, reference: str) -> None:
        directory.mkdir()
        self._config = directory / "config.toml"
        self._peer = stack.enter_context(peers.splitd(directory, config=_config(on=True)))
        self._logs = [directory / f"root/log/{process.name}.log" for process in PROCESSES if process.name != "traces"]
        self._reference = reference
        self._on = True

    def switch(self, *, on: bool) -> None:
        """Switch tracing, and wait until each process has seen it."""
        if on == self._on:
            return
        self._on = on
        before = self._told()
        new = self._config.with_suffix(".new")
        new.write_text(_config(on=on))
        new.replace(self._config)
        end = time.monotonic() + _PATIENCE
        while any(count == before[file] for file, count in self._told().items()):
            if time.monotonic() > end:
                raise RuntimeError("not all processes of the node have seen that tracing was switched")
            time.sleep(0.1)

    def _told(self) -> dict[Path, int]:
        return {file: len(_TOLD.findall(file.read_bytes())) for file in self._logs}

    def pull(self) -> tuple[float, float]:
        """The seconds of a pull, unpacked; and the processor time of the node for it, with its removal."""
        spent = usage.Spent(self._peer)
        seconds = asyncio.run(self._pulled())
        time.sleep(_SETTLED)
        return seconds, sum(spent.since().values())

    async def _pulled(self) -> float:
        here = platforms.default()
        store = ImageStore(self._reference, platforms=(here,), unpacks=(Unpacking(here),))
        async with Channel(self._peer.socket) as channel:
            start = time.perf_counter()
            await Transfers(channel, _HEADERS).transfer(Registry(self._reference, default_scheme="http"), store)
            seconds = time.perf_counter() - start
            await channel.client(images_stubs.IMAGES).Delete(
                images_pb2.DeleteImageRequest(name=self._reference, sync=True), headers=_HEADERS, timeout=60
            )
        return seconds


def _config(*, on: bool) -> str:
    return f"[tracing]\nenabled = {str(on).lower()}\n"


def rows(stack: ExitStack, image: Image, bound: float) -> list[dict[str, object]]:
    """Measure and print the rows. The result has all figures."""
    directory = stack.enter_context(peers.tmpfs())
    registry = stack.enter_context(Files(directory / "registry"))
    reference = registry.push(image, "switched:1")
    nodes = [Node(stack, directory / name, reference) for name in ("a", "b")]
    pulls = []
    for traced, other in (nodes, nodes[::-1]):
        for node in (traced, other):
            node.switch(on=node is traced)
            node.pull()  # the extra cost of the first time
        for number in range(PAIRS // 2):
            figures = {node: node.pull() for node in ((traced, other) if number % 2 else (other, traced))}
            pulls.append((figures[traced], figures[other]))
    found = []
    for which, name in enumerate(ROWS):
        pairs = [(on[which], off[which]) for on, off in pulls]
        verdict = paired(pairs)
        worse = verdict.ratio - 1 > max(bound, verdict.noise)
        one, none = (statistics.median(each) for each in zip(*pairs, strict=True))
        print(
            f"{name + ', s':42}{one:15.3f}{none:15.3f}{'':15}{verdict.ratio:9.3f}{verdict.noise:8.1%}"
            + (f"   worse by {verdict.ratio - 1:.1%}" if worse else ""),
            flush=True,
        )
        found.append({"name": name, "unit": "s", "pairs": pairs, **dataclasses.asdict(verdict), "worse": worse})
    return found
