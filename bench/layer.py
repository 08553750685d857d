"""What a layer's entry costs in processor time: reading headers, the tree and the index of an EROFS layer, unpacking.

python -m bench.layer [--entries N] [--rounds N] [--directory DIR] [--only WORD] [--against CHECKOUT]

Each row is in microseconds for an entry, the median of the rounds; system time is in it, also that of making the files.
With ``--against``, the same is measured with the modules of another clone, in turn with this one's, round by round, so
that what else the machine does meets both; the ratio is the median of the rounds' ratios.

The layer has names like those of a Debian image. It is made once with ustar headers, as Docker and BuildKit write
nearly all of theirs, and once with a PAX header with times before each, as ``tar --format=posix`` does. Each clone has
one process, which runs this file and uses nothing but that clone's modules.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
CHUNK = 1 << 20
ENTRIES, ROUNDS = 20_000, 9
FORMS = ("ustar", "pax")
_LANGUAGES = (
    "ar bg ca cs da de el es et fi fr gl he hr hu id it ja ko lt nb nl pl pt ro ru sk sl sv tr uk vi zh".split()
)
_WORDS = (
    "abstract base client codec common core data decode error event file format http index list main net parse".split()
)


def layer(entries: int, *, pax: bool) -> bytes:
    """A layer, the same for the same arguments: of 19 entries 13 are files, 3 directories and 3 links. A file has 5 KiB
    on average; half of them have less than 2.
    """
    chance = random.Random(5)
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT if pax else tarfile.USTAR_FORMAT) as out:
        for number, (name, kind, target) in enumerate(_members(chance)):
            if number == entries:
                break
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o777 if target else chance.choice((0o644, 0o644, 0o755))
            info.mtime = 1_700_000_000 + chance.randrange(500)
            info.uname = info.gname = "root"
            if kind == tarfile.REGTYPE and number % 20:
                info.size = min(1 << 20, round(chance.lognormvariate(7.5, 1.5)))
            if pax:
                info.pax_headers = {
                    key: f"{info.mtime}.{chance.randrange(1_000_000_000):09}" for key in ("mtime", "atime", "ctime")
                }
            out.addfile(info, io.BytesIO(chance.randbytes(info.size)))
    return data.getvalue()


def _members(chance: random.Random) -> Iterator[tuple[str, bytes, str]]:
    """Name, type and link target of entries without end, each directory before what is in it."""
    made: set[str] = set()

    def directory(path: str) -> Iterator[tuple[str, bytes, str]]:
        parts = path.split("/")
        for end in range(1, len(parts) + 1):
            if (above := "/".join(parts[:end])) not in made:
                made.add(above)
                yield above, tarfile.DIRTYPE, ""

    for number in range(1 << 30):
        word, other = chance.choice(_WORDS), chance.choice(_WORDS)
        package = f"{word}-{other}{number}"
        module = f"usr/lib/python3/dist-packages/{word}{number}"
        library = f"lib{word}{number}.so.{number % 7}"
        places = {
            f"usr/share/doc/{package}": ["copyright", "changelog.Debian.gz"],
            module: ["__init__.py", f"{word}.py", f"_{other}_{number}.py"],
            f"{module}/tests": ["__init__.py", f"test_{other}.py"],
            "usr/lib/x86_64-linux-gnu": [f"{library}.{number}"],
            f"usr/share/locale/{chance.choice(_LANGUAGES)}/LC_MESSAGES": [f"{package}.mo"],
            "var/lib/dpkg/info": [f"{package}.list", f"{package}.md5sums", f"{package}:amd64.triggers"],
            "usr/bin": [package],
        }
        for place, names in places.items():
            yield from directory(place)
            for name in names:
                yield f"{place}/{name}", tarfile.REGTYPE, ""
        yield f"usr/lib/x86_64-linux-gnu/{library}", tarfile.SYMTYPE, f"{library}.{number}"
        yield f"usr/share/doc/{package}/README", tarfile.SYMTYPE, f"../{word}/README.{package}"
        yield f"usr/bin/{package}-{number}", tarfile.LNKTYPE, f"usr/bin/{package}"


# ---------------------------------------------------------------------------------------------- the measuring process


def work(directory: Path) -> None:
    """Measure what each line of standard input names, in the files ``ustar`` and ``pax`` of a directory; answer with
    microseconds for an entry.
    """
    sys.setrecursionlimit(20_000)
    gc.disable()  # as in a layer's worker
    for line in sys.stdin:
        form, row = line.rstrip("\n").split(" ", 1)
        data = (directory / form).read_bytes()
        print(json.dumps(ROWS[row](data, directory)), flush=True)


def _used() -> tuple[float, float]:
    """Seconds of processor time of this process, user's and system's."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime, used.ru_stime


def _spent() -> float:
    return sum(_used())


def _chunks(data: bytes) -> Iterator[bytes]:
    return (data[at : at + CHUNK] for at in range(0, len(data), CHUNK))


def _headers(data: bytes, _: Path) -> float:
    from services.kit import tar

    begun = _spent()
    reader = tar.Reader(tar.Stream(_chunks(data)))
    count = 0
    while reader.next() is not None:
        count += 1
    return 1e6 * (_spent() - begun) / count


def _tree(data: bytes, _: Path) -> float:
    """With the headers."""
    from services.kit import tar
    from services.snapshots.erofs.layer import LayerTree

    begun = _spent()
    tree = LayerTree(lowest=True)
    tree.read(tar.Reader(tar.Stream(_chunks(data))))
    return 1e6 * (_spent() - begun) / tree._entries


def _index(data: bytes, _: Path) -> float:
    from services.kit import tar
    from services.snapshots.erofs.image import BLOCK, image
    from services.snapshots.erofs.layer import LayerTree

    tree = LayerTree(lowest=True)
    tree.read(tar.Reader(tar.Stream(_chunks(data))))
    size = len(data) + -len(data) % BLOCK
    begun = _spent()
    with open(os.devnull, "wb") as file:
        file.writelines(image(tree.root, size, lambda offset, length: data[offset : offset + length]))
    return 1e6 * (_spent() - begun) / tree._entries


def _unpacked(data: bytes, directory: Path, *, only_user: bool = False) -> float:
    from services.kit import tar
    from services.snapshots.diff.extract import Extractor

    target = Path(tempfile.mkdtemp(dir=directory))
    ours, theirs = os.pipe()
    if not (pid := os.fork()):
        os.umask(0)
        os.chroot(target)
        os.chdir("/")
        begun = _used()
        Extractor(overlay="trusted.overlay.").extract(tar.Reader(tar.Stream(_chunks(data))))
        os.write(theirs, " ".join(str(now - then) for now, then in zip(_used(), begun, strict=True)).encode())
        os._exit(0)
    os.close(theirs)
    said = os.read(ours, 100)
    os.close(ours)
    os.waitpid(pid, 0)
    shutil.rmtree(target)
    reader, count = tar.Reader(tar.Stream(_chunks(data))), 0
    while reader.next() is not None:
        count += 1
    user, system = map(float, said.split())
    return 1e6 * (user if only_user else user + system) / count


ROWS: dict[str, Callable[[bytes, Path], float]] = {
    "headers": _headers,
    "headers-and-tree": _tree,
    "index": _index,
    "unpack": _unpacked,
    "unpack, user time": lambda data, directory: _unpacked(data, directory, only_user=True),
}


# ---------------------------------------------------------------------------------------------- the bench


class Worker:
    """A process that measures with the modules of a clone; a context manager."""

    def __init__(self, clone: Path, directory: Path) -> None:
        python = clone / ".venv/bin/python"
        self._process = subprocess.Popen(
            [str(python if python.exists() else sys.executable), "-P", __file__, "--work", str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=clone,
            env={**os.environ, "PYTHONPATH": str(clone)},
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def measured(self, form: str, row: str) -> float:
        """Microseconds for an entry."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(form, row, file=self._process.stdin, flush=True)
        if not (line := self._process.stdout.readline()):
            raise RuntimeError(f"{row} could not be measured, see above")
        return float(json.loads(line))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="bench.layer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entries", type=int, default=ENTRIES, help=f"default: {ENTRIES}")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default: {ROUNDS}")
    parser.add_argument("--directory", type=Path, default="/dev/shm", help="where to unpack; default: a tmpfs")
    parser.add_argument("--only", default="", help="measure only rows whose name contains this")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another clone of this repository")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work)
        return
    if options.against and not (options.against / "services/snapshots/erofs/image.py").exists():
        parser.error(f"--against {options.against}: no checkout of splitd with erofs layers")
    rows = [(form, row) for form in FORMS for row in ROWS if options.only in f"{form} {row}"]
    if not rows:
        parser.error(
            f"--only {options.only}: there are: {'; '.join(f'{form} {row}' for form in FORMS for row in ROWS)}"
        )
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="bench-layer-") as place:
        for form in FORMS:
            Path(place, form).write_bytes(layer(options.entries, pax=form == "pax"))
        clones = [TOP, *([options.against.resolve()] if options.against else [])]
        with Worker(clones[0], Path(place)) as new, Worker(clones[-1], Path(place)) as old:
            for form, row in rows:
                workers = [new, old] if options.against else [new]
                print(f"{form + ' ' + row:24}{_figures(workers, form, row, options.rounds)}", flush=True)


def _figures(workers: list[Worker], form: str, row: str, rounds: int) -> str:
    found: list[list[float]] = []
    for number in range(rounds):
        order = workers if number % 2 else workers[::-1]
        figures = {id(worker): worker.measured(form, row) for worker in order}
        found.append([figures[id(worker)] for worker in workers])
    cells = "".join(f"{statistics.median(column):9.1f}" for column in zip(*found, strict=True))
    ratio = f"{statistics.median(new / old for new, old in found):9.2f}" if len(workers) > 1 else ""
    return f"{cells}{ratio}"


if __name__ == "__main__":
    main()
