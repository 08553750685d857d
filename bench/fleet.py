"""A fleet of three nodes on one machine (tests/fleets): a pull on all at once beside a pull on one, and pulls and runs
of a node whose fleet's etcd is down beside those of a node without a fleet.

    python -m bench.fleet [--rounds N] [--rate MB] [--share PROCESSORS] [--scratch DIR] [--no-unpack]
                          [--only pulls|etcd]

The registry's link has ``--rate`` MB/s (50), by tc tbf, and the image is that of ``make bench``. All nodes are on this
machine, so one that pulls alone has three times the processors that each of three has, which real ones do not. Hence
the pulls are measured twice: with all processors for whoever is there, and with ``--share`` processors for each node,
alone or not, by cgroups (tests/fleets/processors.py); by default nine tenths of the machine's for the three together,
since the registry and etcd need some. The aim holds for the latter, and for the former where there are no such cgroups.
``--no-unpack`` leaves out what nodes unpack. A node's processor time is that of all its processes, ``splitd pull`` too.

Files are in memory (SPLITD_TEST_DIR names another place), so that three nodes do not share one disk. Each row has
medians, the ratio and its aim; the exit code is 1 if an aim is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import image
from deploy.samples import Image
from services.kit import errors
from tests.fleets import processors
from tests.fleets.nodes import Fleet, FleetMember, fleet, made, size_of
from tests.support import eventually

SECONDS = 600.0
TIMES, BYTES, DOWN = 1.3, 1.2, 1.03
"""The aims: three at once to one in time and in the registry's bytes, etcd down to no fleet."""
NODES = 3
SHARE = 0.9 * len(os.sched_getaffinity(0)) / NODES
"""Processors of a node that has a share."""
RUNS = 5
"""Runs that are measured together: one takes a fifth of a second."""


class Table:
    """Rows of medians."""

    def __init__(self) -> None:
        self.missed = False

    def row(self, name: str, one: Sequence[float], other: Sequence[float], aim: float | None) -> None:
        """Print the medians of ``other`` and ``one``, and their ratio; without an aim it is not judged."""
        base, found = statistics.median(one), statistics.median(other)
        self.missed |= aim is not None and found > aim * base
        aimed = "" if aim is None else f"   <= {aim}"
        print(f"{name:70}{base:12.2f}{found:12.2f}{found / base:8.3f}{aimed}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="bench.fleet", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=50.0, help="MB/s of the registry's link")
    parser.add_argument(
        "--share", type=float, default=SHARE, help="processors of each node (%(default).2g); 0: no such rows"
    )
    parser.add_argument("--scratch", type=Path, default=Path(os.environ.get("BENCH_DIR", "/var/tmp/splitd-bench")))
    parser.add_argument("--no-unpack", action="store_true", help="do not unpack what is pulled")
    parser.add_argument("--only", choices=("pulls", "etcd"))
    options = parser.parse_args()
    if options.share and options.share < processors.LEAST:
        parser.error(f"--share {options.share:g}: at least {processors.LEAST:g}, or 0")
    os.environ.setdefault("SPLITD_TEST_DIR", "/dev/shm")
    table = Table()
    words = ("--no-unpack",) if options.no_unpack else ()
    with fleet() as whole, tempfile.TemporaryDirectory() as nodes:
        os.environ["SPLITD_NODES"] = nodes
        if options.only != "etcd":
            box = image.bench_image(options.scratch / "image")
            pulls(table, whole, box, options.rounds, options.rate, options.share, words)
        if options.only != "pulls":
            down(table, whole, options.rounds)
    return int(table.missed)


@dataclass
class _Took:
    """What pulls took, by the number of nodes that pulled at once."""

    seconds: dict[int, list[float]] = field(default_factory=lambda: {1: [], NODES: []})
    sent: dict[int, list[float]] = field(default_factory=lambda: {1: [], NODES: []})
    """MB that the registry has sent."""
    busy: dict[int, list[float]] = field(default_factory=lambda: {1: [], NODES: []})
    """Seconds of a processor, of the mean node."""
    busiest: dict[int, list[float]] = field(default_factory=lambda: {1: [], NODES: []})
    """The same of the node that took most."""
    gave: list[float] = field(default_factory=list)
    """MB that one of three nodes sent, at most."""


def pulls(
    table: Table, whole: Fleet, box: Image, rounds: int, rate: float, share: float, words: Sequence[str] = ()
) -> None:
    """One node alone and three at once, in turn; with a share of the processors for each, and without."""
    nodes = [whole.node(f"n{number}") for number in range(1, NODES + 1)]
    try:
        for node in nodes:
            node.host.share(None)
    except errors.FailedPrecondition as error:
        print(f"nodes without a share only: {error}", flush=True)
        share = 0
    whole.up(*nodes)
    reference = whole.registry.push(box, "bench:1")
    whole.registry.host.limit(int(rate * 1e6))
    eventually(lambda: all(len(node.known()) == len(nodes) for node in nodes), "they do not know each other", 60)
    took: dict[float, _Took] = {each: _Took() for each in dict.fromkeys((0.0, share))}
    for number in range(rounds):
        for each, count in itertools.product(took, (1, NODES)):
            chosen = [nodes[(number + place) % NODES] for place in range(count)]
            with _sharing(nodes, each):
                before, used, begun = whole.registry.host.sent(), _used(chosen), time.perf_counter()
                given = [node.host.sent() for node in chosen]
                _pull(chosen, reference, words)
                took[each].seconds[count].append(time.perf_counter() - begun)
                took_each = [now - then for now, then in zip(_used(chosen), used, strict=True)]
                took[each].busy[count].append(statistics.mean(took_each))
                took[each].busiest[count].append(max(took_each))
                if count == NODES:
                    sent = [node.host.sent() - then for node, then in zip(chosen, given, strict=True)]
                    took[each].gave.append(max(sent) / 1e6)
                took[each].sent[count].append((whole.registry.host.sent() - before) / 1e6)
            assert all(node.has(box) for node in chosen), "an image is not complete"
            for node in chosen:
                node.ctr("images", "rm", "--sync", reference)
            _gone(nodes, box)
    print(f"{'':70}{'one node':>12}{'three':>12}{'ratio':>8}   aim")
    for each, found in took.items():
        name = f"bench image, {size_of(box) / 1e6:.0f} MB, {rate:g} MB/s" + (", not unpacked" if words else "")
        if each:
            name += f", {each:.2g} processors each"
        table.row(f"{name}, s", found.seconds[1], found.seconds[NODES], TIMES if each == share else None)
        table.row("  from the registry, MB", found.sent[1], found.sent[NODES], BYTES)
        if any(found.busy[1]):
            table.row("  a node's processor time, s", found.busy[1], found.busy[NODES], None)
            table.row("  the busiest node's, s", found.busiest[1], found.busiest[NODES], None)
        print(f"{'  sent by the node that sent most, MB':70}{'':12}{statistics.median(found.gave):12.2f}", flush=True)
    whole.registry.host.limit(None)
    for node in nodes:
        node.down()


@contextlib.contextmanager
def _sharing(nodes: Sequence[FleetMember], share: float) -> Iterator[None]:
    """Each node has so many processors during the block; 0: all that are free."""
    if not share:
        yield
        return
    for node in nodes:
        node.host.share(share)
    try:
        yield
    finally:
        for node in nodes:
            node.host.share(None)


def _used(nodes: Sequence[FleetMember]) -> list[float]:
    """Seconds of a processor that each node has taken so far."""
    return [node.host.used() for node in nodes]


def _gone(nodes: Sequence[FleetMember], box: Image) -> None:
    """Wait until no node has anything of the image, and none says so."""

    def gone() -> bool:
        return not any(node.blob(digest).exists() for node in nodes for digest in box.blobs)

    eventually(gone, "the image is not collected", 60)
    eventually(lambda: not any(nodes[0].why(digest) for digest in box.blobs), "the fleet still tells of it", 120)


def _pull(nodes: Sequence[FleetMember], reference: str, words: Sequence[str] = ()) -> None:
    for pull in [node.begin(reference, *words) for node in nodes]:
        if said := pull.end(SECONDS):
            raise RuntimeError(f"{pull.node.host.name}: {said}")


def down(table: Table, whole: Fleet, rounds: int) -> None:
    """Pulls and runs of a node without a fleet, and of one whose etcd is down, in turn."""
    plain, member = whole.node("plain", fleet=False), whole.node("member")
    whole.up(plain, member)
    eventually(lambda: member.known() == {"member"}, "the node is not in the fleet", 60)
    whole.etcd.stop()
    eventually(lambda: "etcd" in member.splitd("status", ok=None).stdout, "the node does not see it", 60)
    box = made(2)
    reference = whole.registry.push(box, "down:1")
    took: dict[str, dict[str, list[float]]] = {what: {"plain": [], "member": []} for what in ("pull", "run")}

    def measured(what: str, node: FleetMember, work: Callable[..., object], *words: object) -> None:
        begun = time.perf_counter()
        work(*words)
        took[what][node.host.name].append(time.perf_counter() - begun)

    for number in range(5 * rounds):
        turn = [plain, member] if number % 2 else [member, plain]
        for node in turn:
            measured("pull", node, _pull, [node], reference)
        for node in turn:
            measured("run", node, _run, node, reference, number)
        for node in turn:
            node.ctr("images", "rm", "--sync", reference)
    print(f"{'':70}{'no fleet':>12}{'etcd down':>12}{'ratio':>8}   aim")
    table.row(f"pull of {size_of(box) / 1e6:.0f} MB, ms", *_ms(took["pull"]), DOWN)
    table.row(f"{RUNS} runs, ms", *_ms(took["run"]), DOWN)
    whole.etcd.heal()


def _ms(took: dict[str, list[float]]) -> tuple[list[float], list[float]]:
    one, other = ([1000 * each for each in took[name]] for name in ("plain", "member"))
    return one, other


def _run(node: FleetMember, reference: str, number: int) -> None:
    for each in range(RUNS):
        node.ctr("run", "--rm", reference, f"{node.host.name}-{number}-{each}", "true")


if __name__ == "__main__":
    sys.exit(main())
