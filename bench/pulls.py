"""Pulls: the time of a cold ``ctr images pull`` on each daemon, from one registry on loopback.

splitd and containerd 2 pull themselves, asked by the same ctr (Transfer). With Debian's containerd 1.6 its ctr fetches.
Each row is an image and a way to it. In each round every daemon in turn pulls once and removes what it pulled; anything
left after that is an error. Elapsed time and processor time are of the same pulls. Memory is of further pulls, since
reading it takes processor time too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import distant, image, usage
from bench.measures import command, ctr
from bench.peers import Peer
from bench.usage import Process
from deploy.samples import Image, Registry

OURS = "splitd"
GONE = 30.0
"""Seconds within which everything pulled must be gone after its removal."""
FAILED = float("nan")


@dataclass(frozen=True, slots=True)
class Row:
    """A pull: the image's name, whether it is far away, and how many clients pull at once. ``aim`` is the ratio, ours
    to theirs, 0 if there is none; ``more`` are those to further daemons, by the last words of their names. ``after``
    names an image that is pulled before, and not measured.
    """

    name: str
    image: str
    aim: float
    far: bool = False
    clients: int = 1
    after: str = ""
    more: tuple[tuple[str, float], ...] = ()

    @property
    def aims(self) -> str:
        """What is printed of them."""
        if not self.aim:
            return "no bound"
        return ", ".join([f"<= {self.aim}", *(f"to {who} <= {aim}" for who, aim in self.more)])

    def missed(self, ratios: Mapping[str, float], first: str) -> bool:
        """Whether an aim is not met. ``ratios`` are ours to the others', by name; ``aim`` is that to the ``first``."""
        aims = {first: self.aim} | {who: aim for who in ratios for last, aim in self.more if who.split()[-1] == last}
        return any(ratio > aims[who] for who, ratio in ratios.items() if aims.get(who))


ROWS = (
    Row("pull, bench image", "bench", 0.5),
    Row("pull, one layer of 1 GiB", "one-layer", 0.7),
    Row("pull, 60 layers of 1 MiB", "many-layers", 0.7),
    Row("pull, zstd layers", "zstd", 0.7),
    Row("pull, 20 ms away, 100 MB/s", "bench", 0.7, far=True),
    Row("pull, 10 clients at once", "bench", 0.7, clients=10),
    Row("pull, second image, all but the lowest layer are there", "rebased", 0.3, after="bench"),
)
MEMORY_AIM = 250


@dataclass(frozen=True, slots=True)
class Pull:
    """A measured pull: elapsed seconds, and processor seconds by process: the daemon's, the registry's, ctr's."""

    seconds: float
    parts: Mapping[str, float]

    @property
    def processor(self) -> float:
        """Processor seconds of the daemon and its client."""
        return sum(seconds for who, seconds in self.parts.items() if not who.startswith("docker-registry"))


def wanted(only: str) -> list[Row]:
    """The rows whose name contains ``only``."""
    return [row for row in ROWS if only in row.name]


def rows(peers: Sequence[Peer], registry: Registry, scratch: Path, only: str, rounds: int) -> list[dict[str, object]]:
    """Measure and print the rows; ours is the last of ``peers``. The result is all figures. A figure that could not be
    measured is None, with the reason in ``failed``.
    """
    *others, ours = peers
    heading(peers)
    found = []
    for row in wanted(only):
        reference = pushed(registry, row.image, scratch)
        before = [pushed(registry, row.after, scratch)] if row.after else []
        with contextlib.ExitStack() as stack:
            if row.far:
                port = stack.enter_context(distant.distant(registry.port))
                reference = reference.replace(f":{registry.port}/", f":{port}/")
            found.append(measure(row, others, ours, registry, reference, rounds, before))
    return found


def heading(peers: Sequence[Peer]) -> None:
    """Print what the columns of :func:`measure` are; the last peer is ours."""
    print(
        f"{'':62}"
        + "".join(f"{peer.name:>16}" for peer in peers)
        + "".join(f"{'to ' + peer.name.split()[-1]:>9}" for peer in peers[:-1])
        + "   aim",
        flush=True,
    )


def measure(
    row: Row,
    others: Sequence[Peer],
    ours: Peer,
    registry: Registry,
    reference: str,
    rounds: int,
    before: Sequence[str] = (),
) -> dict[str, object]:
    """Measure and print one row; the result is as that of :func:`rows`. The images ``before`` are pulled first."""
    peers = [*others, ours]
    pulled: dict[str, list[Pull]] = {peer.name: [] for peer in peers}
    peaks: dict[str, list[Mapping[str, float]]] = {peer.name: [] for peer in peers}
    failed: dict[str, str] = {}
    looks = (rounds + 1) // 2
    for number in range(rounds + looks):
        turn = number % len(peers)
        for peer in peers[turn:] + peers[:turn]:
            if peer.name in failed:
                continue
            try:
                with removed(peer, reference, *before):
                    for each in before:
                        _ctr(peer, each, 1)
                        os.sync()  # what containerd leaves to the kernel is not part of the next pull
                    if number < rounds:
                        pulled[peer.name].append(_pull(peer, registry, reference, row.clients))
                    else:
                        peaks[peer.name].append(_peak(peer, reference, row.clients))
            except RuntimeError as error:
                failed[peer.name] = str(error)
    medians = {peer.name: _medians(pulled[peer.name]) for peer in peers}
    record: dict[str, object] = {
        "name": row.name,
        "rounds": rounds,
        "aim": row.aim,
        "failed": failed,
        "pulls": {name: [dataclasses.asdict(pull) for pull in each] for name, each in pulled.items()},
        "peaks": peaks,
    }
    done = [peer for peer in peers if peer.name not in failed]

    def line(what: str, figures: Mapping[str, float], aim: str, digits: int = 2) -> None:
        cells = "".join(f"{figures[p.name]:16.{digits}f}" if p.name in figures else f"{'-':>16}" for p in peers)
        ratios = {
            p.name: figures[ours.name] / figures[p.name] for p in others if p.name in figures and ours.name in figures
        }
        print(
            f"{row.name + ', ' + what:62}{cells}"
            + "".join(f"{ratios[p.name]:9.2f}" if p.name in ratios else f"{'-':>9}" for p in others)
            + f"   {aim}",
            flush=True,
        )
        record[what] = {"medians": dict(figures), "ratios": ratios}
        if what == "s":
            record["missed"] = row.missed(ratios, others[0].name)

    line("s", {p.name: medians[p.name][0] for p in done}, row.aims)
    line("s of a processor", {p.name: medians[p.name][1] for p in done}, "")
    for group in dict.fromkeys(group for p in done for group in peaks[p.name][0]):
        line(
            f"{group}, peak MB",
            {p.name: max(each[group] for each in peaks[p.name]) for p in done if group in peaks[p.name][0]},
            f"< {MEMORY_AIM}" if group == IMAGES else "",
            digits=0,
        )
    for peer in done:
        print(
            f"  {peer.name}, s of a processor: "
            + ", ".join(f"{who} {seconds:.2f}" for who, seconds in medians[peer.name][2].items() if seconds >= 0.01),
            flush=True,
        )
    for name, why in failed.items():
        print(f"  {name} failed: {why}", flush=True)
    return record


def _medians(pulls: Sequence[Pull]) -> tuple[float, float, dict[str, float]]:
    """Medians of the elapsed time, of the processor time, and of its parts."""
    if not pulls:
        return FAILED, FAILED, {}
    parts = {who: statistics.median(pull.parts.get(who, 0.0) for pull in pulls) for pull in pulls for who in pull.parts}
    return (
        statistics.median(pull.seconds for pull in pulls),
        statistics.median(pull.processor for pull in pulls),
        dict(sorted(parts.items(), key=lambda part: -part[1])),
    )


# ------------------------------------------------------------------------------------------ one pull


def _pull(peer: Peer, registry: Registry, reference: str, clients: int) -> Pull:
    spent = [usage.Spent(peer), usage.Spent(Peer("registry", peer.socket, (str(registry.config),)))]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    _ctr(peer, reference, clients)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    client = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Pull(seconds, {**spent[0].since(), **spent[1].since(), "ctr": client})


def _ctr(peer: Peer, reference: str, clients: int) -> None:
    """Run ``clients`` times ``ctr images pull`` at once, until the last has ended."""
    each = [
        subprocess.Popen(
            command(peer, "images", "pull", "--plain-http", *peer.chosen, reference),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(clients)
    ]
    said = [process.communicate()[1] for process in each]
    wrong = [stderr.strip() for process, stderr in zip(each, said, strict=True) if process.returncode]
    if wrong:
        raise RuntimeError(f"{len(wrong)} of {clients} pulls: {wrong[0][-500:]}")


@contextlib.contextmanager
def removed(peer: Peer, *references: str) -> Iterator[None]:
    """Before the block nothing is there. After it, what it pulled is gone, also from the disk's queue."""
    _gone(peer)
    try:
        yield
    finally:
        if ctr(peer, "images", "ls", "-q").strip():
            ctr(peer, "images", "rm", "--sync", *references)
        _gone(peer)
        os.sync()


def _gone(peer: Peer) -> None:
    end = time.monotonic() + GONE
    while True:
        blobs = ctr(peer, "content", "ls", "-q").split()
        snapshots = ctr(peer, "snapshots", *peer.chosen, "ls").splitlines()[1:]
        if not blobs and not snapshots:
            return
        if time.monotonic() > end:
            raise RuntimeError(
                f"not cold: {len(blobs)} blobs and {len(snapshots)} snapshots still exist {GONE:.0f} s after the "
                "removal of the image"
            )
        time.sleep(0.2)


# ------------------------------------------------------------------------------------------ memory

WHOLE = "the daemon's processes"
IMAGES = "images and its workers"


def _peak(peer: Peer, reference: str, clients: int) -> Mapping[str, float]:
    """The largest memory of groups of its processes, in MB, during a pull. A node's workers are all processes except
    services (children of supervisord) and shims.
    """
    names = {pid: usage.name(pid) for pid in peer.pids()}
    supervisors = {pid for pid, name in names.items() if name == "deploy.inside"}

    def whole(there: Mapping[int, Process]) -> Collection[int]:
        return usage.below(names, there)

    def images(there: Mapping[int, Process]) -> Collection[int]:
        others = {
            pid
            for pid, process in there.items()
            if process.parent in supervisors and names.get(pid) != "services.images"
        }
        return usage.below(names, there) - others - supervisors

    with usage.Peak({WHOLE: whole} | ({IMAGES: images} if peer.name == OURS else {})) as peak:
        _ctr(peer, reference, clients)
    return peak.mb


# ------------------------------------------------------------------------------------------ images


def pushed(registry: Registry, name: str, scratch: Path) -> str:
    """The reference of an image in the registry. It is pushed if the registry does not have it yet."""
    reference = f"{name}-image:1"
    kept = scratch / ("image" if name == "bench" else name)
    # a tag is pushed last
    if not (kept / "image.json").exists() or registry.http("GET", f"/v2/{name}-image/tags/list")[0] != 200:
        print(f"  making the image {name}, or taking the one made before, for the registry", flush=True)
        registry.push(IMAGE[name](scratch), reference)
    return f"{registry.host}/{reference}"


def _bench(scratch: Path) -> Image:
    return image.bench_image(scratch / "image")


IMAGE: dict[str, Callable[[Path], Image]] = {
    "bench": _bench,
    "one-layer": lambda scratch: image.one_layer(scratch / "one-layer"),
    "many-layers": lambda scratch: image.many_layers(scratch / "many-layers"),
    "zstd": lambda scratch: image.zstd_image(scratch / "zstd", _bench(scratch)),
    "rebased": lambda scratch: image.rebased(scratch / "rebased", _bench(scratch)),
    "tiny-files": lambda scratch: image.tiny_files(scratch / "tiny-files"),
    "one-layer-run": lambda scratch: image.runnable(scratch / "one-layer-run", image.one_layer(scratch / "one-layer")),
}
