"""``python -m bench --erofs``: a node whose layers the kernel mounts (``--snapshotter erofs``), beside containerd 2:
with overlayfs and its defaults, with overlayfs and tuned, and with its own snapshotter erofs.

Pulls, the time from nothing to the first line of a container, and what readers and writers of the files see. The layers
of all lie on xfs.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bench import measures, peers, pulls
from bench.measures import ctr
from bench.peers import Peer
from bench.pulls import Row
from deploy.samples import Registry

EROFS = "erofs"
_OWN = ((EROFS, 0.25),)
"""The aim to containerd's own snapshotter erofs."""
PULLS = (
    Row("erofs: pull, bench image", "bench", 0.33, more=_OWN),
    Row("erofs: pull, 60,000 tiny files", "tiny-files", 0.28),
    Row("erofs: pull, one layer of 1 GiB", "one-layer", 0.42),
)
RUNS = (
    Row("erofs: pull and run to the first line, bench image", "bench", 0.33, more=_OWN),
    Row("erofs: pull and run to the first line, 60,000 tiny files", "tiny-files", 0.28),
    Row("erofs: pull and run to the first line, one layer of 1 GiB", "one-layer-run", 0.42),
)
LARGE = "opt/model.bin"
"""A file of 200 MiB in the bench image."""
_TUNED = {"max_concurrent_downloads": "16", "max_concurrent_unpacks": "8", "concurrent_layer_fetch_buffer": "33554432"}
_TRIES = 3
"""Runs until one says its line: on a busy machine a ctr may end before it has copied the output."""
_TRANSFER = 'plugins."io.containerd.transfer.v1.local"'


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """A row about the files of the bench image. ``aim`` is the ratio to overlayfs; 0: none."""

    name: str
    work: Callable[..., float]
    aim: float = 0.0
    digits: int = 2


def compare(stack: ExitStack, registry: Registry, mounts: Path, options: argparse.Namespace) -> list[dict[str, object]]:
    """Start all below ``mounts``, until ``stack`` ends, and measure what ``options`` want."""
    programs: Path | None = options.containerd2 or peers.containerd_2()
    if programs is None:
        raise RuntimeError("no containerd 2 with its ctr in PATH, and no --containerd2 DIR")

    def disk(name: str) -> Path:
        return stack.enter_context(peers.xfs(options.scratch / f"{name}.xfs", mounts / name))

    version = "{}.{}".format(*(peers.version(programs) or ("?", "?")))
    theirs = [
        _named(stack.enter_context(peers.containerd(disk("o"), programs)), f"containerd {version}"),
        _named(stack.enter_context(peers.containerd(disk("t"), programs, tuned(programs))), f"{version} tuned"),
    ]
    utils, why = mkfs(options.erofs_utils, mounts)
    if utils is None:
        print(f"containerd {version} with its own snapshotter erofs is not measured: {why}", flush=True)
    else:
        daemon = peers.containerd(disk("e"), programs, own_erofs(), str(utils))
        theirs.append(_named(stack.enter_context(daemon), f"{version} erofs", EROFS))
    ours = stack.enter_context(peers.splitd(disk("s")))
    ours = dataclasses.replace(ours, ctr=theirs[0].ctr, snapshotter=EROFS)
    found: list[dict[str, object]] = []
    pulls.heading([*theirs, ours])
    for row in PULLS:
        if options.only in row.name:
            reference = pulls.pushed(registry, row.image, options.scratch)
            record = pulls.measure(row, theirs, ours, registry, reference, options.rounds)
            found.append({**record, "worse": record.get("missed", False)})
    for row in RUNS:
        if options.only in row.name:
            reference = pulls.pushed(registry, row.image, options.scratch)
            work = partial(first_line, reference=reference)
            found.append(_measured(row, work, theirs, ours, options.rounds))
    readings = [row for row in READINGS if options.only in row.name]
    if readings:
        reference = pulls.pushed(registry, "bench", options.scratch)
        for peer in (*theirs, ours):
            ctr(peer, "images", "pull", "--plain-http", *peer.chosen, reference)
        for reading in readings:
            work = partial(reading.work, reference=reference)
            row = Row(f"erofs: {reading.name}", "bench", reading.aim)
            found.append(_measured(row, work, theirs, ours, options.rounds, reading.digits))
    return found


def wanted(only: str) -> bool:
    """Whether any row's name contains ``only``."""
    return any(only in row.name for row in (*PULLS, *RUNS)) or any(only in f"erofs: {row.name}" for row in READINGS)


def _named(peer: Peer, name: str, snapshotter: str = "") -> Peer:
    return dataclasses.replace(peer, name=name, snapshotter=snapshotter)


def _measured(
    row: Row, work: Callable[[Peer], float], theirs: Sequence[Peer], ours: Peer, rounds: int, digits: int = 2
) -> dict[str, object]:
    """Measure ``work`` on all in turn, print the row, and return its figures."""
    everybody = [*theirs, ours]
    figures: dict[str, list[float]] = {peer.name: [] for peer in everybody}
    for number in range(rounds):
        turn = number % len(everybody)
        for peer in everybody[turn:] + everybody[:turn]:
            figures[peer.name].append(work(peer))
    medians = {who: statistics.median(each) for who, each in figures.items()}
    ratios = {peer.name: medians[ours.name] / medians[peer.name] for peer in theirs}
    print(
        f"{row.name:62}"
        + "".join(f"{medians[peer.name]:16.{digits}f}" for peer in everybody)
        + "".join(f"{ratios[peer.name]:9.2f}" for peer in theirs)
        + f"   {row.aims}",
        flush=True,
    )
    return {
        "name": row.name,
        "rounds": rounds,
        "aim": row.aim,
        "figures": figures,
        "medians": medians,
        "ratios": ratios,
        "worse": row.missed(ratios, theirs[0].name),
    }


# ------------------------------------------------------------------------------------------ containerd


def tuned(programs: Path) -> str:
    """The configuration of a containerd whose pulls do more at once, as far as it knows the settings."""
    known = subprocess.run(
        [str(programs / "containerd"), "config", "default"], capture_output=True, text=True, check=True
    ).stdout
    lines = [f"{key} = {value}" for key, value in _TUNED.items() if key in known]
    return f"[{_TRANSFER}]\n" + "\n".join(lines) + "\n"


def own_erofs() -> str:
    """The configuration of a containerd that pulls onto its snapshotter erofs, with its differ of that name."""
    one = f'[[{_TRANSFER}.unpack_config]]\nplatform = "linux/amd64"\n'
    differ = '[plugins."io.containerd.service.v1.diff-service"]\ndefault = ["erofs", "walking"]\n'
    return f'{one}snapshotter = "erofs"\ndiffer = "erofs"\n{differ}'


def mkfs(given: Path | None, scratch: Path) -> tuple[Path | None, str]:
    """A directory with a mkfs.erofs that runs here, in which containerd looks for it; or None, and why there is none.

    ``given`` is where Debian trixie's erofs-utils is unpacked. It needs a newer C library than Debian 12 has; if that
    and the other libraries are unpacked there too, it is run with them.
    """
    if given is None:
        found = shutil.which("mkfs.erofs")
        return (
            (None, "no mkfs.erofs of erofs-utils 1.8 or newer: name the directory of trixie's in --erofs-utils")
            if found is None or (why := _runs([found]))
            else (Path(found).parent, why)
        )
    program, loader = given / "usr/bin/mkfs.erofs", given / "usr/lib64/ld-linux-x86-64.so.2"
    if not program.exists():
        return None, f"{given} has no usr/bin/mkfs.erofs"
    why = _runs([str(program)])
    if not why:
        return program.parent, ""
    libraries = given / "usr/lib/x86_64-linux-gnu"
    if not loader.exists():
        return None, f"{why} (unpack libc6 and the libraries of {program} into {given} as well)"
    command = [str(loader), "--library-path", str(libraries), str(program)]
    if why := _runs(command):
        return None, why
    wrapper = scratch / "bin" / "mkfs.erofs"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    wrapper.chmod(0o755)
    return wrapper.parent, ""


def _runs(command: list[str]) -> str:
    """Why a mkfs.erofs does not do; "" if it does."""
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    said = (done.stdout + done.stderr).strip()
    if done.returncode:
        return f"{command[-1]}: {said.splitlines()[0] if said else f'ends with {done.returncode}'}"
    numbers = [word for word in said.split() if word[:1].isdigit()]
    major, minor = [*map(int, numbers[0].split(".")[:2])] if numbers else (0, 0)
    return "" if (major, minor) >= (1, 8) else f"{command[-1]} is {said.splitlines()[0]}, older than 1.8"


# ------------------------------------------------------------------------------------------ work


def first_line(peer: Peer, reference: str) -> float:
    """s: from a pull's begin to the first line of output of a container; nothing is there before."""
    for left in reversed(range(_TRIES)):
        said, seconds = _first_line(peer, reference)
        if said == "line\n":
            return seconds
        if not left:
            raise RuntimeError(f"{peer.name}: ctr run said {said!r}")
    raise AssertionError


def _first_line(peer: Peer, reference: str) -> tuple[str, float]:
    with pulls.removed(peer, reference):
        start = time.perf_counter()
        ctr(peer, "images", "pull", "--plain-http", *peer.chosen, reference)
        words = measures.command(peer, "run", "--rm", *peer.chosen, reference, "bench-line", "/bin/echo", "line")
        with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            said = process.stdout.readline()
            seconds = time.perf_counter() - start
        if process.returncode:
            raise RuntimeError(f"{peer.name}: ctr run ended with {process.returncode}")
    return said, seconds


@contextlib.contextmanager
def _mounted(peer: Peer, reference: str, *flags: str) -> Iterator[Path]:
    """The files of an image, as a container sees them."""
    with tempfile.TemporaryDirectory(prefix="bi", dir="/tmp") as made:
        ctr(peer, "images", "mount", *flags, *peer.chosen, reference, made)
        try:
            yield Path(made)
        finally:
            ctr(peer, "images", "unmount", "--rm", *peer.chosen, made)


def _cold() -> None:
    """Forget what the machine has read."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def read_all(peer: Peer, reference: str) -> float:
    """s: read each file of the image once, when nothing of it is in memory."""
    with _mounted(peer, reference) as root:
        _cold()
        start = time.perf_counter()
        for directory, _, names in os.walk(root):
            for name in names:
                path = os.path.join(directory, name)
                if not os.path.islink(path) and os.path.isfile(path):
                    _read(path)
        return time.perf_counter() - start


def _read(path: str | Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        while os.read(fd, 1 << 17):
            pass
    finally:
        os.close(fd)


def stdio(peer: Peer, reference: str) -> float:
    """s: a program reads a file of 200 MiB, in memory, by the C library's streams: as much at once as st_blksize."""
    with _mounted(peer, reference) as root:
        _read(root / LARGE)
        start = time.perf_counter()
        subprocess.run(["sed", "-n", "$=", root / LARGE], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start


def python_lines(peer: Peer, reference: str) -> float:
    """s: Python reads a file of 200 MiB, in memory, in pieces of 100 bytes, buffered: as much at once as st_blksize."""
    code = "import sys\nwith open(sys.argv[1], 'rb') as file:\n  while file.read(100): pass"
    with _mounted(peer, reference) as root:
        _read(root / LARGE)
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code, root / LARGE], check=True)
        return time.perf_counter() - start


def chmod(peer: Peer, reference: str) -> float:
    """s: the first chmod of a file of 200 MiB, which overlayfs copies up."""
    with _mounted(peer, reference, "--rw") as root:
        _read(root / LARGE)
        start = time.perf_counter()
        os.chmod(root / LARGE, 0o600)
        return time.perf_counter() - start


def memory_of_two(peer: Peer, reference: str) -> float:
    """MB of the page cache, more than before, after two containers' views of a layer were read: a file of 200 MiB."""

    def cached() -> int:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return sum(int(lines[name].split()[0]) for name in ("Cached", "Buffers"))

    with _mounted(peer, reference, "--rw") as one, _mounted(peer, reference, "--rw") as other:
        _cold()
        before = cached()
        for root in (one, other):
            _read(root / LARGE)
        return (cached() - before) * 1024 / 1e6


READINGS = (
    Reading("read each file once, cold, s", read_all, 1.1),
    Reading("stdio reads 200 MiB, s", stdio),
    Reading("Python reads 200 MiB in small pieces, s", python_lines),
    Reading("chmod of a file of 200 MiB, s", chmod),
    Reading("two containers read 200 MiB of a layer, page cache, MB", memory_of_two, digits=0),
)
