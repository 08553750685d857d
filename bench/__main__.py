"""``make bench``: daemons beside each other, the same work in turn, medians and ratios.

python -m bench [--only WORD] [--rounds N] [--scratch DIR] [--json FILE] [--containerd2 DIR] [--dockerd DIR]
python -m bench --pulls [--only WORD]    only the pulls by the daemons themselves (bench/pulls.py); half an hour
python -m bench --calls [--rounds N]     the calls of one ``ctr run`` and their times (docs/what-a-run-costs.md)
python -m bench --against CHECKOUT       this build beside an older one, and that beside itself (bench/against.py):
                                         what has become slower?
python -m bench --tracing                this build with tracing beside itself without: what does it cost?
python -m bench --trials                 a node with candidates, shadows and a snapshotter that hangs, and without them
python -m bench --etcd                   a node with its records in etcd beside one with its records in SQLite
python -m bench --erofs                  a node with --snapshotter erofs beside containerd 2 (bench/erofs.py)
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from bench import against, erofs, etcd, peers, pulls, side_by_side, trials
from deploy.samples import Registry
from services.kit import errors

NEEDED = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "mkfs.xfs": "xfsprogs",
    "docker-registry": "docker-registry",
    "debootstrap": "debootstrap",
    "pigz": "pigz",
    "busybox": "busybox-static",
}
ROUNDS = 5


def main() -> int:
    """Measure and print. The result is 0, unless something could not run, or is worse than the build that it was
    measured against.
    """
    parser = argparse.ArgumentParser(
        prog="bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="measure only rows whose name contains this")
    parser.add_argument(
        "--rounds", type=int, help=f"default: {ROUNDS}; with --against and --tracing {against.ROUNDS}, and no fewer"
    )
    parser.add_argument(
        "--scratch",
        type=Path,
        default=Path(os.environ.get("BENCH_DIR", "/var/tmp/splitd-bench")),
        help="a directory that is kept: the images are made in it once",
    )
    parser.add_argument("--json", type=Path, help="write all figures here")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--calls",
        action="store_true",
        help="measure only the calls of a run, one by one, and the processor time of each process",
    )
    mode.add_argument("--pulls", action="store_true", help="measure only the pulls by the daemons themselves")
    mode.add_argument(
        "--against",
        type=Path,
        metavar="CHECKOUT",
        help="measure this build beside that of another clone of this repository, with its .venv or, if it has none, "
        "with "
        "this one; exit code 1 if a row is worse by more than 3 %% and by more than the old build differs from itself",
    )
    mode.add_argument(
        "--tracing",
        action="store_true",
        help="measure this build with tracing on beside itself with tracing off; exit code 1 if a pull is worse by "
        "more than 3 %%, or a call or a run by more than 10 %%",
    )
    mode.add_argument(
        "--trials",
        action="store_true",
        help="measure what it costs to try a service on a live node (bench/trials.py); exit code 1 if a bound is "
        "not met",
    )
    mode.add_argument(
        "--etcd",
        action="store_true",
        help="measure a node whose records are in etcd (bench/etcd.py); exit code 1 if a bound is not met",
    )
    mode.add_argument(
        "--erofs",
        action="store_true",
        help="measure pulls onto the snapshotter erofs, and reading from it, beside containerd 2 (bench/erofs.py); "
        "exit code 1 if a bound is not met",
    )
    parser.add_argument(
        "--erofs-utils",
        type=Path,
        metavar="DIR",
        default=os.environ.get("BENCH_EROFS_UTILS") or None,
        help="with --erofs: where trixie's erofs-utils is unpacked, with the libraries that it needs "
        "(or BENCH_EROFS_UTILS), for containerd's own snapshotter erofs; default: mkfs.erofs in PATH",
    )
    parser.add_argument(
        "--away",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="with --etcd: for how long etcd is away in the row about that (default 60)",
    )
    parser.add_argument(
        "--containerd2",
        type=Path,
        metavar="DIR",
        default=os.environ.get("BENCH_CONTAINERD2") or None,
        help="the directory of containerd 2 and its ctr (or BENCH_CONTAINERD2); default: the first in PATH",
    )
    parser.add_argument(
        "--dockerd",
        type=Path,
        metavar="DIR",
        default=os.environ.get("BENCH_DOCKERD") or None,
        help="the directory of dockerd 24 or newer and its client (or BENCH_DOCKERD); default: the first in PATH",
    )
    options = parser.parse_args()
    missing = sorted({package for program, package in NEEDED.items() if not shutil.which(program)})
    if os.geteuid() or missing:
        print(
            "bench: must run as root" if os.geteuid() else f"bench: apt-get install {' '.join(missing)}",
            file=sys.stderr,
        )
        return 2
    beside_itself = options.against or options.tracing
    least = against.ROUNDS if beside_itself else 1
    options.rounds = options.rounds if options.rounds is not None else max(least, ROUNDS)
    if options.rounds < least:
        parser.error(f"--rounds {options.rounds}: at least {least}")
    if options.pulls and not pulls.wanted(options.only):
        parser.error(
            f"--only {options.only}: no pull is called so; there are: {'; '.join(row.name for row in pulls.ROWS)}"
        )
    if options.erofs and not erofs.wanted(options.only):
        parser.error(f"--only {options.only}: no row of --erofs is called so")
    if options.against and not (options.against / "deploy/__main__.py").exists():
        parser.error(f"--against {options.against}: no checkout of splitd")
    if options.containerd2 is not None and (
        (peers.version(options.containerd2) or (0, 0)) < (2, 0) or not (options.containerd2 / "ctr").exists()
    ):
        parser.error(f"--containerd2 {options.containerd2}: no containerd 2 with its ctr there")
    options.scratch.mkdir(parents=True, exist_ok=True)
    peers.run_in_memory()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    with ExitStack() as stack:
        lock = stack.enter_context((options.scratch / "lock").open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"{options.scratch}: another bench runs there; take another --scratch") from None
        if options.trials or options.etcd:
            rows = (
                trials.rows(stack, options.rounds, options.only)
                if options.trials
                else etcd.rows(stack, options.scratch, options.rounds, options.only, options.away)
            )
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1))
            return int(any(row["worse"] for row in rows))
        mounts = Path(tempfile.mkdtemp(prefix="bn", dir="/tmp"))  # short: sockets are below it
        stack.callback(shutil.rmtree, mounts, ignore_errors=True)
        registry = stack.enter_context(Registry(options.scratch / "registry"))
        rows = (against if beside_itself else erofs if options.erofs else side_by_side).compare(
            stack, registry, mounts, options
        )
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1))
        return int(any(row.get("failed") or row.get("worse") for row in rows))


def _end(number: int, _: object) -> None:
    """Exit as Ctrl-C does, so that the daemons are stopped and their mounts removed."""
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (errors.NodeError, RuntimeError, OSError, subprocess.CalledProcessError) as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(1)
