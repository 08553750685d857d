"""``make bench``: both daemons, the same work in turn, medians and ratios.

    python -m bench [--only WORD] [--rounds N] [--scratch DIR] [--json FILE] [--containerd2 DIR]
    python -m bench --pulls [--only WORD]    only the pulls by the daemons themselves (bench/pulls.py), which take half an hour of the whole
    python -m bench --calls [--rounds N]     what one ``ctr run`` asks for, and what each call takes (docs/what-a-run-costs.md)
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from bench import calls, load, measures, peers, pulls
from bench.image import bench_image
from bench.peers import Peer
from deploy.images import Registry, busybox_image
from services.kit import errors

NEEDED = {"containerd": "containerd", "ctr": "containerd", "runc": "runc", "mkfs.xfs": "xfsprogs", "docker-registry": "docker-registry",
          "debootstrap": "debootstrap", "pigz": "pigz", "busybox": "busybox-static"}
CLIENT_PULL = "pull by the client, bench image"
P50_AIMS = {"Version": "<= 1.15", "Containers.Get": "<= 2.2"}


class Table:
    """Rows as they are measured: the medians of both and their ratio, ours to containerd's."""

    def __init__(self, both: list[Peer], only: str, rounds: int) -> None:
        self._both, self._only, self._rounds = both, only, rounds
        self.rows: list[dict[str, object]] = []
        print(f"{'':34}{both[0].name:>14}{both[1].name:>14}{'ratio':>9}   aim", flush=True)

    def wanted(self, name: str) -> bool:
        """Whether a row was asked for."""
        return self._only in name

    def measure(self, name: str, unit: str, work: Callable[[Peer], float], *, rounds: int | None = None, aim: str = "") -> None:
        """Run ``work`` on both in turn, ``rounds`` times; print the row."""
        if not self.wanted(name):
            return
        figures: dict[str, list[float]] = {peer.name: [] for peer in self._both}
        for i in range(rounds or self._rounds):
            for peer in self._both if i % 2 == 0 else reversed(self._both):
                figures[peer.name].append(work(peer))
        theirs, ours = (statistics.median(figures[peer.name]) for peer in self._both)
        print(f"{name + ', ' + unit:34}{theirs:14.2f}{ours:14.2f}{ours / theirs:9.2f}   {aim}", flush=True)
        self.rows.append({"name": name, "unit": unit, "containerd": figures["containerd"], "splitd": figures["splitd"], "ratio": ours / theirs, "aim": aim})


def _calls(both: list[Peer], box: str, scratch: Path, rounds: int) -> None:
    for peer in both:
        measures.ctr(peer, "images", "pull", "--plain-http", box)
        for _ in range(3):
            measures.run(peer, box)
    calls.calls(both, box, scratch, rounds)
    for peer in both:
        calls.processor_time(peer, box, rounds)


def _pulls(stack: ExitStack, both: list[Peer], registry: Registry, mounts: Path, options: argparse.Namespace) -> list[dict[str, object]]:
    """The rows of ``bench.pulls`` that are wanted."""
    if not pulls.wanted(options.only):
        return []
    theirs, ours = both
    programs: Path | None = options.containerd2 or peers.containerd_2()
    others = [dataclasses.replace(theirs, name=_named(peers.version()))]
    if programs is None:
        print("no containerd 2 with its ctr in PATH, and no --containerd2 DIR: it is not compared, and splitd's pulls are driven by the client, as ctr 1.6 does it", flush=True)
    else:
        second = stack.enter_context(peers.containerd(stack.enter_context(peers.xfs(options.scratch / "c2.xfs", mounts / "d")), programs))
        others.append(dataclasses.replace(second, name=_named(peers.version(programs))))
        ours = dataclasses.replace(ours, ctr=second.ctr)
    return pulls.rows([*others, ours], registry, options.scratch, options.only, options.rounds)


def _named(version: tuple[int, int] | None) -> str:
    return "containerd ?" if version is None else "containerd {}.{}".format(*version)


def main() -> int:
    """Measure, print; 0 unless something could not run."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scratch", type=Path, default=Path(os.environ.get("BENCH_DIR", "/var/tmp/splitd-bench")), help="kept: the images are made here once")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--calls", action="store_true", help="instead: the calls of a run, one by one, and the processor time of each process")
    parser.add_argument("--pulls", action="store_true", help="only the pulls by the daemons themselves")
    parser.add_argument("--containerd2", type=Path, metavar="DIR", default=os.environ.get("BENCH_CONTAINERD2") or None,
                        help="where containerd 2 and its ctr are (or BENCH_CONTAINERD2); default: the first in PATH")
    options = parser.parse_args()
    missing = sorted({package for program, package in NEEDED.items() if not shutil.which(program)})
    if os.geteuid() or missing:
        print("bench: must run as root" if os.geteuid() else f"bench: apt-get install {' '.join(missing)}", file=sys.stderr)
        return 2
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: at least 1")
    if options.pulls and not pulls.wanted(options.only):
        parser.error(f"--only {options.only}: no pull is called so; there are: {'; '.join(row.name for row in pulls.ROWS)}")
    if options.containerd2 is not None and ((peers.version(options.containerd2) or (0, 0)) < (2, 0) or not (options.containerd2 / "ctr").exists()):
        parser.error(f"--containerd2 {options.containerd2}: no containerd 2 with its ctr there")
    scratch = options.scratch
    scratch.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        lock = stack.enter_context((scratch / "lock").open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"{scratch}: another bench runs there; take another --scratch") from None
        image = None
        if options.only in CLIENT_PULL and not options.calls and not options.pulls:
            print("making the bench image, or taking the one made before", file=sys.stderr)
            image = bench_image(scratch / "image")
        mounts = Path(tempfile.mkdtemp(prefix="bn", dir="/tmp"))  # short: sockets are below it
        stack.callback(shutil.rmtree, mounts, ignore_errors=True)
        registry = stack.enter_context(Registry(scratch / "registry"))
        theirs = stack.enter_context(peers.containerd(stack.enter_context(peers.xfs(scratch / "c.xfs", mounts / "c"))))
        ours = stack.enter_context(peers.splitd(stack.enter_context(peers.xfs(scratch / "s.xfs", mounts / "s"))))
        time.sleep(5)  # not a wait for anything: memory is read from daemons that rest
        both = [theirs, ours]
        if options.calls:
            _calls(both, registry.push(busybox_image(), "bench-box:1"), mounts, max(options.rounds, 10))
            return 0
        if options.pulls:
            found = _pulls(stack, both, registry, mounts, options)
            if options.json:
                options.json.write_text(json.dumps(found, indent=1))
            return int(any(row["failed"] for row in found))
        table = Table(both, options.only, options.rounds)
        table.measure("idle memory", "MB PSS", Peer.pss_mb, rounds=1, aim="ours <= 160 MB")
        for which in measures.UNARY:
            table.measure(f"{which} p50", "ms", lambda p, w=which: measures.unary_p50(p, w), rounds=2 * options.rounds, aim=P50_AIMS.get(which, ""))
            table.measure(f"{which} x16", "calls/s", lambda p, w=which: measures.unary_rate(p, w), rounds=2 * options.rounds,
                          aim=">= 0.6" if which == "Version" else "")
        table.measure("content write", "MB/s", measures.content_write, rounds=3, aim=">= 0.5")
        table.measure("content read of 1 GiB", "MB/s", measures.content_read, aim=">= 0.9")
        table.measure("snapshot prepare+remove", "pairs/s", measures.snapshot_rate)
        box = registry.push(busybox_image(), "bench-box:1")
        if any(options.only in name for name in ("ctr run --rm true", "20 x ctr run at once")):
            for peer in both:
                measures.ctr(peer, "images", "pull", "--plain-http", box)
        table.measure("ctr run --rm true", "s", lambda p: measures.run(p, box), rounds=4 * options.rounds, aim="<= 1.15")
        table.measure("20 x ctr run at once", "s", lambda p: measures.run_many(p, box), aim="<= 1.25")
        load.rows(table, both, box)
        if image is not None:
            big = registry.push(image, "bench:1")
            table.measure(CLIENT_PULL, "s", lambda p: measures.pull(p, big), rounds=3, aim="<= 0.8")
        table.measure("memory after all that", "MB PSS", Peer.pss_mb, rounds=1)
        table.rows += _pulls(stack, both, registry, mounts, options)
        if options.json:
            options.json.write_text(json.dumps(table.rows, indent=1))
        return int(any(row.get("failed") for row in table.rows))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (errors.NodeError, RuntimeError, OSError, subprocess.CalledProcessError) as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(1)
