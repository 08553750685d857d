"""The rows of a node beside Debian's containerd, and for pulls beside a containerd 2 too."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bench import beside, calls, collecting, docker, load, measures, peers, pulls
from bench.image import bench_image
from bench.peers import Peer
from bench.table import Table
from deploy.samples import Registry, busybox_image

CLIENT_PULL = "pull by the client, bench image"
P50_AIMS = {
    "Version": "<= 1.15",
    "Containers.Get": "<= 1.6",
    "content read of 32 KiB": "<= 2.5",
    "Images.List of 100": "<= 1.5",
}


def compare(stack: ExitStack, registry: Registry, mounts: Path, options: argparse.Namespace) -> list[dict[str, object]]:
    """Start both below ``mounts``, until ``stack`` ends, and measure what ``options`` want."""
    image = None
    if options.only in CLIENT_PULL and not options.calls and not options.pulls:
        print("making the bench image, or taking the one made before", file=sys.stderr)
        image = bench_image(options.scratch / "image")
    theirs = stack.enter_context(
        peers.containerd(stack.enter_context(peers.xfs(options.scratch / "c.xfs", mounts / "c")))
    )
    ours = stack.enter_context(peers.splitd(stack.enter_context(peers.xfs(options.scratch / "s.xfs", mounts / "s"))))
    time.sleep(5)  # this does not wait for anything: memory is read from daemons at rest
    both = [theirs, ours]
    if options.calls:
        _calls(both, registry.push(busybox_image(), "bench-box:1"), mounts, max(options.rounds, 10))
        return []
    if options.pulls:
        return _pulls(stack, both, registry, mounts, options)
    table = Table(both, options.only, options.rounds)
    table.measure("idle memory", "MB PSS", Peer.pss_mb, rounds=1, aim="ours <= 135 MB")
    for which in measures.UNARY:
        table.measure(
            f"{which} p50",
            "ms",
            partial(measures.unary_p50, which=which),
            rounds=2 * options.rounds,
            aim=P50_AIMS.get(which, ""),
        )
        table.measure(
            f"{which} x16",
            "calls/s",
            partial(measures.unary_rate, which=which),
            rounds=2 * options.rounds,
            aim=">= 0.6" if which == "Version" else "",
        )
    table.measure("content write", "MB/s", measures.content_write, rounds=3, aim=">= 0.5")
    table.measure("content read of 1 GiB", "MB/s", measures.content_read, aim=">= 0.9")
    table.measure("snapshot prepare+remove", "pairs/s", measures.snapshot_rate)
    box = registry.push(busybox_image(), "bench-box:1")
    if any(options.only in name for name in ("ctr run --rm true", "20 x ctr run at once")):
        for peer in both:
            measures.ctr(peer, "images", "pull", "--plain-http", box)
    table.measure("ctr run --rm true", "s", lambda p: measures.run(p, box), rounds=4 * options.rounds, aim="<= 1.15")
    table.measure("20 x ctr run at once", "s", lambda p: measures.run_many(p, box), aim="<= 1.25")
    _docker(stack, table, both, options)
    load.rows(table, both, box)
    beside.rows(table, both)
    collecting.rows(table, both)
    if image is not None:
        big = registry.push(image, "bench:1")
        table.measure(CLIENT_PULL, "s", lambda p: measures.pull(p, big), rounds=3, aim="<= 0.8")
    table.measure("memory after all that", "MB PSS", Peer.pss_mb, rounds=1)
    return table.rows + _pulls(stack, both, registry, mounts, options)


def _calls(both: list[Peer], box: str, scratch: Path, rounds: int) -> None:
    for peer in both:
        measures.ctr(peer, "images", "pull", "--plain-http", box)
        for _ in range(3):
            measures.run(peer, box)
    calls.calls(both, box, scratch, rounds)
    for peer in both:
        calls.processor_time(peer, box, rounds)


def _docker(stack: ExitStack, table: Table, both: list[Peer], options: argparse.Namespace) -> None:
    """The row of ``bench.docker``, if it is wanted and there is a dockerd."""
    if not table.wanted(docker.SAVE):
        return
    found = docker.programs(options.dockerd)
    if found is None:
        print(
            "no dockerd of 24 or newer with its client in PATH, and no --dockerd DIR: docker save is not measured",
            flush=True,
        )
        return
    over = {
        peer.name: stack.enter_context(docker.dockerd(peer, found, peer.socket.parent.parent / "docker"))
        for peer in both
    }
    table.measure(docker.SAVE, "s", lambda p: docker.save(over[p.name]), aim="<= 1.3")


def _pulls(
    stack: ExitStack, both: list[Peer], registry: Registry, mounts: Path, options: argparse.Namespace
) -> list[dict[str, object]]:
    """The wanted rows of ``bench.pulls``."""
    if not pulls.wanted(options.only):
        return []
    theirs, ours = both
    programs: Path | None = options.containerd2 or peers.containerd_2()
    others = [dataclasses.replace(theirs, name=_named(peers.version()))]
    if programs is None:
        print(
            (
                "no containerd 2 with its ctr in PATH, and no --containerd2 DIR: it is not compared, and splitd's "
                "client pulls, as ctr 1.6 does"
            ),
            flush=True,
        )
    else:
        second = stack.enter_context(
            peers.containerd(stack.enter_context(peers.xfs(options.scratch / "c2.xfs", mounts / "d")), programs)
        )
        others.append(dataclasses.replace(second, name=_named(peers.version(programs))))
        ours = dataclasses.replace(ours, ctr=second.ctr)
    return pulls.rows([*others, ours], registry, options.scratch, options.only, options.rounds)


def _named(version: tuple[int, int] | None) -> str:
    return "containerd ?" if version is None else "containerd {}.{}".format(*version)
