"""Layers that would take hours or gigabytes: a name may have two thousand components, and links lead to links."""

from __future__ import annotations

import errno
import os
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.kit.tar import Reader, Stream
from services.snapshots.diff.extract import EntryError, Extractor
from services.snapshots.diff.inherit import Unnamed, alike, inherit, lookups
from services.snapshots.diff.paths import Resolver, Steps, TooManyLinksError
from services.snapshots.erofs.layer import LayerTree
from tests.suites.diff_tars import directory, link, pax, reg, symlink, tar

pytestmark = pytest.mark.root  # owners are set
DEEP = b"/d" * 60
CHAIN = 20
"""Links that lead to one another, at the end of a deep directory."""


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A directory, also open, with links ``0``, ``1`` and so on at the end of a deep one; the last leads to ``end``."""
    deep = tmp_path / os.fsdecode(DEEP[1:])
    (deep / "end").mkdir(parents=True)
    for number in range(CHAIN):
        (deep / str(number)).symlink_to(str(number + 1) if number < CHAIN - 1 else "end")
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    try:
        yield tmp_path, fd
    finally:
        os.close(fd)


def layer(*members: bytes) -> Reader:
    return Reader(Stream([tar(*members)]))


def named(name: bytes, entry: bytes) -> bytes:
    """An entry with a long name."""
    return pax({b"path": name}) + entry


def test_links_are_followed_for_so_many_steps(chain: tuple[Path, int]) -> None:
    """All resolvers share these, and each path brings some: those of usual layers never run out."""
    _, fd = chain
    first, end = DEEP + b"/0/x", DEEP + b"/end/x"
    assert Resolver(fd).resolve(first) == end
    steps = Steps(20_000, more=0)
    with pytest.raises(TooManyLinksError) as raised:
        Resolver(fd, steps).resolve(first)
    assert raised.value.errno == errno.ELOOP
    with pytest.raises(TooManyLinksError):
        Resolver(fd, steps).resolve(b"/x")
    usual = Steps(0, more=1000)
    for _ in range(50):
        assert Resolver(fd, usual).resolve(b"/d/d/d/d/d/d/d/x") == b"/d/d/d/d/d/d/d/x"


def test_a_layer_of_chains_of_links_is_refused() -> None:
    """With the entry at which it took too long. One chain is no attack."""
    top = b"/t"
    entries = [
        named((top + DEEP)[1:], directory(b"d")),
        *(named((top + DEEP + b"/%d" % n)[1:], symlink(b"l", b"%d" % (n + 1))) for n in range(CHAIN)),
        named((top + DEEP + b"/%d" % CHAIN)[1:], directory(b"d")),
    ]
    through = named((top + DEEP + b"/0/file")[1:], reg(b"f"))
    LayerTree().read(layer(*entries, through))
    with pytest.raises(EntryError, match=r"/0/file\": too many levels of symbolic links$"):
        LayerTree(steps=Steps(20_000)).read(layer(*entries, through))
    hard = [pax({b"linkpath": (top + DEEP + b"/0/file")[1:]}) + link(b"%d" % n, b"") for n in range(100)]
    with pytest.raises(EntryError, match=r'^"[0-9]+": too many levels of symbolic links$'):
        LayerTree(steps=Steps(300_000)).read(layer(*entries, through, *hard))


@pytest.mark.parametrize("way", ["extractor", "tree"])
def test_unnamed_directories_are_bounded(way: str, tmp_path: Path) -> None:
    """One entry can make two thousand, with four megabytes of paths; others are told of them, and keep them."""
    top = os.fsencode(tmp_path)[1:]
    words = r"the layer leaves more than 250000 directories unnamed, or 32 MiB of their paths \(at "
    if way == "extractor":
        Extractor(paths=30_000).extract(layer(named(top + DEEP + b"/f", reg(b"f"))))
        with pytest.raises(EntryError, match=words):
            Extractor(paths=30_000).extract(layer(named(top + b"/e" * 1000 + b"/f", reg(b"f"))))
        return
    entries = [named(b"%02d" % number + b"/d" * 2000 + b"/f", reg(b"f")) for number in range(9)]
    LayerTree().read(layer(*entries[:8]))
    with pytest.raises(EntryError, match=words):
        LayerTree().read(layer(*entries))


def test_what_the_extractor_remembers_is_bounded(tmp_path: Path) -> None:
    """Directories whose times are set last; on a plain tree, also what was unpacked. What repeats counts once."""
    top = os.fsencode(tmp_path)[1:]
    directories = [directory(top + b"/%d" % number) for number in range(30)]
    Extractor(kept=10_000, overlay="trusted.overlay.").extract(layer(*directories[:10] * 10))
    with pytest.raises(EntryError, match="the layer has too many directories and files to remember them"):
        Extractor(kept=10_000, overlay="trusted.overlay.").extract(layer(*directories))
    files = [reg(top + b"/%d/f" % number) for number in range(10)]
    Extractor(kept=10_000).extract(layer(*files[:5] * 10))
    with pytest.raises(EntryError, match="too many directories and files"):
        Extractor(kept=10_000).extract(layer(*files * 3, *directories))


def peak(work: Callable[[Reader], None], reader: Reader) -> int:
    """Bytes of memory that it needs."""
    tracemalloc.start()
    try:
        work(reader)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def many(top: bytes, count: int) -> list[bytes]:
    """Many files with short names in a directory with a long one, which is then removed."""
    long = top + (b"/" + b"n" * 250) * 14
    return [
        named(long + b"/first", reg(b"f")),
        pax({b"linkpath": b"/" + long}) + symlink(top + b"/l", b""),
        *(reg(top + b"/l/%d" % number) for number in range(count)),
        named(top + b"/" + b"n" * 250, reg(b"f")),
    ]


@pytest.mark.parametrize("way", ["extractor", "tree"])
def test_removing_a_directory_takes_no_memory(way: str, tmp_path: Path) -> None:
    """Its files' paths would be four thousand bytes each, however short the names of the entries are."""
    top = os.fsencode(tmp_path)[1:]
    few, more = (
        peak(Extractor().extract if way == "extractor" else LayerTree().read, layer(*many(top + b"/%d" % n, n)))
        for n in (10, 510)
    )
    assert (more - few) / 500 < 2000


def test_layers_are_compared_in_few_steps(tmp_path: Path) -> None:
    """What would take longer is not shared, but unpacked: long paths in many layers, and chains of links."""
    one, other = (tmp_path / name for name in ("one", "other"))
    for each in (one, other):
        (each / "a/b").mkdir(parents=True)
    assert alike([Unnamed(b"/a/b")], [str(one)], [str(one)])
    long = [Unnamed(b"/a" * 2000)] * 60
    assert lookups(long, 2) == 240_000
    assert not alike(long, [str(one)], [str(other)])
    os.symlink("end", one / "d")
    deep = one / "end" / os.fsdecode(DEEP[3:])
    (deep / "end").mkdir(parents=True)
    for number in range(CHAIN):
        (deep / str(number)).symlink_to(str(number + 1) if number < CHAIN - 1 else "end")
    assert not alike([Unnamed(DEEP + b"/0")] * 60, [str(one)], [str(one)])


def test_attributes_come_through_a_chain_of_links(
    chain: tuple[Path, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One chain is no attack."""
    below, _ = chain
    upper = tmp_path_factory.mktemp("upper")
    os.chown(below / os.fsdecode(DEEP[1:]) / "end", 7, 8)
    (upper / os.fsdecode(DEEP[1:]) / "0").mkdir(parents=True)
    inherit(str(upper), [str(below)], [Unnamed(DEEP + b"/0")])
    assert os.stat(upper / os.fsdecode(DEEP[1:]) / "0").st_uid == 7
