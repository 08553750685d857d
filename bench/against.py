"""Measures this build beside an older one, the *old*: what has become slower?

Three nodes run at once: one of this build and two of the old. In each round every row is measured on each of them in
turn, and the first one changes from round to round. A row is *worse* if this build's median is worse than the old one's
by more than :data:`BOUND`, and by more than the old build differs from itself: from node to node, and, for the figures
of both its nodes, from one half to the other (in 99 of 100 ways to halve them).

With ``--tracing`` all three are of this build. The first traces as it does by default, the others do not: what does
tracing cost? The bounds are then those of docs/adr/0015. What it costs a pull by the node is less than nodes and their
disks differ from each other, so that is measured in another way (bench/switched.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench import measures, peers, switched
from bench.image import bench_image
from bench.peers import Peer
from deploy.samples import Registry, busybox_image

ROUNDS = 7
BOUND = 0.03
NAMES = ("new", "old", "old-again")
TRACING = ("on", "off", "off-again")
UNTRACED = "[tracing]\nenabled = false\n"
TRACED_BOUND = 0.10
"""That of short calls and of runs with tracing on; a pull has the usual one."""
HALVINGS = 2000
NODE_PULL = "pull by the node, bench image"


@dataclass(frozen=True, slots=True)
class Row:
    """What is measured, in which unit, and whether more is better."""

    name: str
    unit: str
    work: Callable[[Peer], float]
    more: bool = False
    needs: str = ""
    """The image that ``work`` pulls, or that must have been pulled before."""
    times: int = 1
    """How often in a round: short work is measured more often."""
    bound: float = BOUND


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on a row: the ratio of this build's median to the old one's; how much worse that is; and how much the
    old build differs from itself. The latter two are fractions of 1.
    """

    ratio: float
    worse_by: float
    noise: float
    bound: float = BOUND

    @property
    def worse(self) -> bool:
        return self.worse_by > self.bound and self.worse_by > self.noise


def verdict(
    new: Sequence[float], old: Sequence[float], again: Sequence[float], *, more: bool = False, bound: float = BOUND
) -> Verdict:
    """Judge the figures of a row. ``more``: larger ones are better."""
    ratio = statistics.median(new) / statistics.median([*old, *again])
    return Verdict(ratio, (1 / ratio if more else ratio) - 1, max(_apart(old, again), _halves([*old, *again])), bound)


def _apart(one: Sequence[float], other: Sequence[float]) -> float:
    a, b = statistics.median(one), statistics.median(other)
    return max(a, b) / min(a, b) - 1


def _halves(figures: Sequence[float]) -> float:
    """The difference between the medians of two halves of the figures that is not exceeded in 99 of 100 ways to halve
    them.
    """
    chance, half = random.Random(1), len(figures) // 2  # the same answer for the same figures
    apart = []
    for _ in range(HALVINGS):
        mixed = chance.sample(figures, len(figures))
        apart.append(_apart(mixed[:half], mixed[half:]))
    return sorted(apart)[HALVINGS * 99 // 100]


def compare(stack: ExitStack, registry: Registry, mounts: Path, options: argparse.Namespace) -> list[dict[str, object]]:
    """Start the three nodes below ``mounts``, until ``stack`` ends; measure and print the wanted rows. ``worse`` in a
    row of the result says whether the new build is worse.
    """
    box = f"{registry.host}/bench-box:1"
    big = f"{registry.host}/bench:1"
    programs = options.containerd2 or peers.containerd_2()
    there = _of_tracing(_rows(box, big, programs)) if options.tracing else _rows(box, big, programs)
    names = [row.name for row in there] + [*(switched.ROWS if options.tracing else ())]
    if not any(options.only in name for name in names):
        raise RuntimeError(f"--only {options.only}: no row is called so; there are: {'; '.join(names)}")
    rows = [row for row in there if options.only in row.name]
    if programs is None and not options.tracing and options.only in NODE_PULL:
        print(
            (
                "no containerd 2 with its ctr in PATH, and no --containerd2 DIR: the client pulls, as ctr 1.6 does, "
                "not the node"
            ),
            flush=True,
        )
    if any(row.needs == big for row in rows):
        print("making the bench image, or taking the one made before", file=sys.stderr)
        registry.push(bench_image(options.scratch / "image"), "bench:1")
    old, off = (peers.TOP, UNTRACED) if options.tracing else (options.against, "")
    called = TRACING if options.tracing else NAMES
    nodes = [
        _node(stack, name, checkout, config, options.scratch / f"{short}.xfs", mounts / short)
        for name, checkout, config, short in zip(
            called, (peers.TOP, old, old), ("", off, off), ("n", "o", "a"), strict=True
        )
        if rows
    ]
    if any(row.needs == box for row in rows):
        registry.push(busybox_image(), "bench-box:1")
        for node in nodes:
            measures.ctr(node, "images", "pull", "--plain-http", box)
    print(
        f"{_commit(peers.TOP)}, tracing on and off; medians of {options.rounds}"
        if options.tracing
        else f"new: {_commit(peers.TOP)}; old: {_commit(old)} of {old}; medians of {options.rounds}"
    )
    print(f"{'':42}" + "".join(f"{name:>15}" for name in called) + f"{'ratio':>9}{'noise':>9}", flush=True)
    found = [_measured(row, nodes, options.rounds) for row in rows]
    if options.tracing and any(options.only in name for name in switched.ROWS):
        found += switched.rows(stack, bench_image(options.scratch / "image"), BOUND)
    return found


def _rows(box: str, big: str, programs: Path | None) -> list[Row]:
    found = []
    for which in measures.UNARY:
        found += [
            Row(f"{which} p50", "ms", partial(measures.unary_p50, which=which), times=3),
            Row(f"{which} x16", "calls/s", partial(measures.unary_rate, which=which), more=True, times=3),
        ]
    found += [
        Row("ctr run --rm true", "s", lambda p: measures.run(p, box), needs=box, times=4),
        Row("20 x ctr run at once", "s", lambda p: measures.run_many(p, box), needs=box),
        Row("pull by the client, bench image", "s", lambda p: measures.pull(p, big), needs=big),
        Row("pull by the client, beside 100 MB/s", "s", lambda p: measures.pull_beside_writer(p, big), needs=big),
    ]
    if programs is not None:
        ctr = str(programs / "ctr")
        found += [
            Row(
                "pull by the node, processor time",
                "s",
                lambda p: measures.pull_processor(dataclasses.replace(p, ctr=ctr), big),
                needs=big,
            ),
            Row(NODE_PULL, "s", lambda p: measures.pull(dataclasses.replace(p, ctr=ctr), big), needs=big),
            Row(
                "pull by the node onto erofs",
                "s",
                lambda p: measures.pull(dataclasses.replace(p, ctr=ctr, snapshotter="erofs"), big),
                needs=big,
            ),
            Row(
                "pull by the node, beside 100 MB/s",
                "s",
                lambda p: measures.pull_beside_writer(dataclasses.replace(p, ctr=ctr), big),
                needs=big,
            ),
        ]
    return found


def _of_tracing(rows: Sequence[Row]) -> list[Row]:
    """The same with the bounds of tracing, without those in which much else works at once, or which are measured
    otherwise."""
    return [
        row if "pull" in row.name else dataclasses.replace(row, bound=TRACED_BOUND)
        for row in rows
        if not any(each in row.name for each in ("beside", "at once", "by the node"))
    ]


def _node(stack: ExitStack, name: str, checkout: Path, config: str, image: Path, mount_point: Path) -> Peer:
    directory = stack.enter_context(peers.xfs(image, mount_point))
    return dataclasses.replace(stack.enter_context(peers.splitd(directory, checkout, config)), name=name)


def _measured(row: Row, nodes: Sequence[Peer], rounds: int) -> dict[str, object]:
    figures: dict[str, list[float]] = {node.name: [] for node in nodes}
    for node in nodes:
        row.work(node)  # the extra cost of the first time
    for number in range(rounds * row.times):
        first = number % len(nodes)
        for node in [*nodes[first:], *nodes[:first]]:
            figures[node.name].append(row.work(node))
    new, old, again = figures.values()
    found = verdict(new, old, again, more=row.more, bound=row.bound)
    cells = "".join(f"{statistics.median(figures[node.name]):15.3f}" for node in nodes)
    print(
        f"{row.name + ', ' + row.unit:42}{cells}{found.ratio:9.3f}{found.noise:8.1%}"
        + (f"   worse by {found.worse_by:.1%}" if found.worse else ""),
        flush=True,
    )
    return {"name": row.name, "unit": row.unit, "figures": figures, **dataclasses.asdict(found), "worse": found.worse}


def _commit(checkout: Path) -> str:
    said = subprocess.run(
        ["git", "-C", str(checkout), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return said.stdout.strip() or "no commit"
