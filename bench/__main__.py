"""``make bench``: both daemons, the same work in turn, medians and ratios.

    python -m bench [--only WORD] [--rounds N] [--scratch DIR] [--json FILE]
    python -m bench --calls [--rounds N]     what one ``ctr run`` asks for, and what each call takes (docs/what-a-run-costs.md)
"""

from __future__ import annotations

import argparse
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

from bench import calls, load, measures, peers
from bench.image import bench_image
from bench.peers import Peer
from deploy.images import Registry, busybox_image
from services.kit import errors

NEEDED = {"containerd": "containerd", "ctr": "containerd", "runc": "runc", "mkfs.xfs": "xfsprogs", "docker-registry": "docker-registry",
          "debootstrap": "debootstrap", "pigz": "pigz", "busybox": "busybox-static"}
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


def main() -> int:
    """Measure, print; 0 unless something could not run."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scratch", type=Path, default=Path(os.environ.get("BENCH_DIR", "/var/tmp/splitd-bench")), help="kept: the bench image is made here once")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--calls", action="store_true", help="instead: the calls of a run, one by one, and the processor time of each process")
    options = parser.parse_args()
    missing = sorted({package for program, package in NEEDED.items() if not shutil.which(program)})
    if os.geteuid() or missing:
        print("bench: must run as root" if os.geteuid() else f"bench: apt-get install {' '.join(missing)}", file=sys.stderr)
        return 2
    scratch = options.scratch
    with ExitStack() as stack:
        image = None
        if options.only in "pull of the bench image" and not options.calls:
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
            table.measure("pull of the bench image", "s", lambda p: measures.pull(p, big), rounds=3, aim="<= 0.8")
        table.measure("memory after all that", "MB PSS", Peer.pss_mb, rounds=1)
        if options.json:
            options.json.write_text(json.dumps(table.rows, indent=1))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (errors.NodeError, RuntimeError, OSError, subprocess.CalledProcessError) as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(1)
