"""Layers that were unpacked alone get what the layers below have, as if they had been unpacked on these."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import stat
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from services.kit import errors
from services.oci.digests import digest_of
from services.snapshots.diff.extract import EntryError
from services.snapshots.erofs import below, chaining, mounting, place
from services.snapshots.erofs.below import Attributes, Below, Index
from tests.suites.diff_chains import Entry, chains, layers
from tests.suites.diff_tars import directory, opaque, pax, reg, symlink, whiteout
from tests.suites.diff_tars import tar as tar_of
from tests.support import eventually, short_directory

CHAINS = int(os.environ.get("LAYER_CHAINS", "50"))
USER = pax({b"SCHILY.xattr.user.one": b"1"})


def alone(stream: bytes, at: Path, *, lowest: bool = False) -> str:
    """Unpack a layer without looking at others. Returns its directory."""
    (at / "fs").mkdir(parents=True)
    (at / "fs").chmod(0o755)
    (layer := at / place.LAYER).mkdir()
    place.unpack([stream], str(at / "fs"), (), str(layer), lowest=lowest, digest=lambda: digest_of(stream))
    return str(layer)


def upper_of(layer: str) -> str:
    return f"{os.path.dirname(layer)}/fs"


@contextlib.contextmanager
def indices(lowers: Sequence[str]) -> Iterator[Below]:
    """What is below, of layers' directories."""
    with contextlib.ExitStack() as opened:
        yield below.of_layers([opened.enter_context(contextlib.closing(Index(f"{each}/index"))) for each in lowers])


def made_again(layer: str, lowers: Sequence[str]) -> bytes:
    """The index, made from the layer's tar on top of others."""
    with indices(lowers) as known:
        place.remake(layer, upper_of(layer), known if lowers else None)
    return Path(layer, place.INDEX).read_bytes()


def chained(layer: str, lowers: Sequence[str]) -> tuple[bytes, bool]:
    """The index of a layer that was unpacked alone, and whether it had to be made again."""
    if chaining.chained(layer, [f"{each}/index" for each in lowers], fixed=False):
        return Path(layer, place.INDEX).read_bytes(), False
    return made_again(layer, lowers), True


def test_every_layer_of_random_chains() -> None:
    """The index is the same to the byte, or both ways refuse the layer; mostly it need not be made again."""
    ways = {"patched": 0, "made again": 0, "refused": 0}

    @settings(
        max_examples=CHAINS,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(chains())
    def check(chain: list[list[Entry]]) -> None:
        with short_directory() as directory:
            compare(chain, directory)

    def compare(chain: list[list[Entry]], directory: Path) -> None:
        lowers: list[str] = []
        for number, stream in enumerate(layers(chain)):
            try:
                layer = alone(stream, directory / str(number))
            except EntryError:
                break  # in either way
            shutil.copytree(directory / str(number), directory / f"{number} other")
            other = str(directory / f"{number} other" / place.LAYER)
            try:
                right = made_again(other, lowers)
            except EntryError:
                with pytest.raises((errors.Unknown, EntryError)):
                    chained(layer, lowers)
                ways["refused"] += 1
                break
            found, again = chained(layer, lowers)
            assert found == right
            if place.about(layer).made:
                ways["made again" if again else "patched"] += 1
            lowers.insert(0, layer)

    check()
    assert all(ways.values()), ways
    assert ways["patched"] > ways["made again"], ways


BASE = tar_of(
    directory(b"d/", mode=0o2770, uid=7, gid=50, mtime=1_500_000_000),
    directory(b"d/e/", mode=0o700, gid=9),
    symlink(b"to", b"d"),
    reg(b"file"),
)


def attributes(layer: str, path: bytes) -> Attributes:
    with contextlib.closing(Index(f"{layer}/index")) as index:
        number = index.directory(path)
        assert number is not None
        return index.attributes(number)


def test_an_index_can_be_moved_onto_others(tmp_path: Path) -> None:
    """Also one that was on others before: what those said is gone. A file that another snapshot uses as well is left
    as it is.
    """
    base, other = alone(BASE, tmp_path / "base"), alone(tar_of(reg(b"x")), tmp_path / "other")
    layer = alone(tar_of(reg(b"d/new/file"), reg(b"d/e/f")), tmp_path / "layer")
    fresh, _ = chained(layer, [other])
    os.link(f"{layer}/index", tmp_path / "shared")
    assert chained(layer, [other, base])[1] is False
    assert (tmp_path / "shared").read_bytes() == fresh
    assert attributes(layer, b"/d")[:4] == (stat.S_IFDIR | 0o2770, 7, 50, 1_500_000_000 * 10**9)
    assert attributes(layer, b"/d/e")[:3] == (stat.S_IFDIR | 0o700, 0, 9)
    assert attributes(layer, b"/d/new")[:3] == (stat.S_IFDIR | 0o755, 0, 50), "handed down"
    assert chained(layer, [other]) == (fresh, False)
    assert not list(Path(layer).glob("*.new"))


@pytest.mark.parametrize("mark", [b".wh.gone", b"d/.wh..wh..opq"])
def test_nothing_is_left_of_whiteouts_in_the_lowest_layer(tmp_path: Path, mark: bytes) -> None:
    """And they are there again on top of another one, however the index was made first."""
    entry = opaque(b"d") if mark.endswith(b"opq") else whiteout(b"gone")
    stream = tar_of(directory(b"d/"), entry)
    base, layer = alone(BASE, tmp_path / "base"), alone(stream, tmp_path / "layer")
    lowest = alone(stream, tmp_path / "lowest", lowest=True)
    upper, again = chained(layer, [base])
    assert not again
    assert chained(lowest, []) == (dropped := Path(lowest, "index").read_bytes(), False)
    assert dropped != upper
    assert chained(layer, []) == (dropped, True)
    assert chained(lowest, [base]) == (upper, True)
    assert chained(lowest, []) == (dropped, True)


def test_files_inherit_what_the_layers_below_hand_down(tmp_path: Path) -> None:
    """Then the index is made again: extended attributes change places of inodes, and access control lists the files."""
    base = alone(tar_of(USER + directory(b"d/", mode=0o700)), tmp_path / "base")
    layer = alone(tar_of(reg(b"d/f")), tmp_path / "layer")
    _, again = chained(layer, [base])
    assert again
    assert attributes(layer, b"/d") == attributes(base, b"/d")
    assert attributes(layer, b"/d").xattrs == {b"user.one": b"1"}
    assert chained(layer, [base])[1], "it is not known any more what it was made for"
    assert chaining.chained(layer, [f"{base}/index"], fixed=True)


def test_a_cut_off_making_is_repeated(tmp_path: Path) -> None:
    """Without an index, it is made again from the tar."""
    base = alone(BASE, tmp_path / "base")
    layer = alone(tar_of(reg(b"d/f")), tmp_path / "layer")
    right, _ = chained(layer, [base])
    Path(layer, place.INDEX).unlink()
    assert chained(layer, [base]) == (right, True)


def test_what_is_no_directory_below_is_named(tmp_path: Path) -> None:
    """As for overlayfs."""
    base = alone(BASE, tmp_path / "base")
    layer = alone(tar_of(reg(b"file/d/f")), tmp_path / "layer")
    with pytest.raises(errors.Unknown, match='^directory "file/d": not a directory$'):
        chained(layer, [base])


def test_a_damaged_index_is_an_error(tmp_path: Path) -> None:
    """It is named."""
    base, layer = alone(BASE, tmp_path / "base"), alone(tar_of(reg(b"d/f")), tmp_path / "layer")
    Path(base, "index").write_bytes(bytes(4000))
    with pytest.raises((errors.Unknown, OSError), match=r"structure needs cleaning|/base/erofs/index"):
        chained(layer, [base])


@pytest.mark.root
def test_an_index_says_what_its_mount_says(tmp_path: Path) -> None:
    """Directories of several blocks, names of all lengths, links of all kinds, attributes."""
    names = [f"{number:03}{'x' * (number % 80)}".encode() for number in range(400)]
    layer = alone(
        tar_of(
            *(directory(b"many/" + name + b"/", mode=0o700, uid=number) for number, name in enumerate(names)),
            USER + directory(b"attributes/", mode=0o1777, mtime=5),
            reg(b"many/file"),
            pax({b"linkpath": b"many/" + b"./" * 400 + names[7]}) + symlink(b"long", b""),
            symlink(b"up", b"../../many/../" + names[3] + b"/../many"),
            symlink(b"many/absolute", b"/many"),
            symlink(b"loop", b"loop"),
            symlink(b"nowhere", b"nothing"),
            directory(b"empty/"),
        ),
        tmp_path / "layer",
    )
    way = mounting.tried(tmp_path)
    assert isinstance(way, mounting.Way)
    (point := tmp_path / "point").mkdir()
    mounting.mount(way, Path(layer), point)
    try:
        fd = os.open(point, os.O_PATH | os.O_DIRECTORY)
        paths = [
            *(b"/many/" + name for name in names),
            *(b"/many/" + name + b"z" for name in names[::20]),
            *(b"/attributes", b"/empty", b"/empty/x", b"/many/file", b"/many/file/x", b"/many/file/x/y"),
            *(b"/long", b"/long/x", b"/up", b"/up/" + names[9], b"/many/absolute/absolute/" + names[5]),
            *(b"/loop", b"/loop/x", b"/nowhere", b"/nowhere/x", b"/zzz", b"/0"),
        ]
        with indices([layer]) as read:
            for path in paths:
                assert said(read, path) == said(below.of_layers([below.Mounted(fd)]), path), path
        os.close(fd)
    finally:
        assert mounting.unmount(point)


def said(known: Below, path: bytes) -> object:
    """An answer, or the number of the error."""
    try:
        return known(path)
    except OSError as error:
        return error.errno


def test_what_takes_long_is_left_to_another_process(tmp_path: Path) -> None:
    """Many lookups, or links that lead to links. It makes the same index."""
    base = alone(BASE, tmp_path / "base")
    for name, stream, enough in (("many", tar_of(reg(b"d/e/f")), 3), ("links", tar_of(reg(b"to/f")), 2)):
        layer = alone(stream, tmp_path / name)
        assert not chaining.chained(layer, [f"{base}/index"], fixed=False, most=enough - 1)
        assert chaining.chained(layer, [f"{base}/index"], fixed=False, most=enough)
        assert Path(layer, place.INDEX).read_bytes() == made_again(layer, [base])


def test_damage_of_an_index_is_never_more_than_an_error(tmp_path: Path) -> None:
    """Whatever its bytes say, no more is read than there is."""
    layer = alone(
        tar_of(
            USER + directory(b"d/", mode=0o700),
            symlink(b"to", b"d"),
            pax({b"linkpath": b"./" * 400 + b"d"}) + symlink(b"long", b""),
            *(reg(b"d/%040d" % number) for number in range(12)),
        ),
        tmp_path / "layer",
    )
    right = Path(layer, place.INDEX).read_bytes()
    refused = 0
    for at in range(1024, len(right), 3):
        Path(layer, place.INDEX).write_bytes(right[:at] + bytes([right[at] ^ 0xFF]) + right[at + 1 :])
        try:
            with indices([layer]) as read:
                for path in (b"/d", b"/to", b"/long", b"/d/%040d" % 7, b"/x"):
                    read(path)
        except OSError:
            refused += 1
    assert refused > 20


def test_a_layer_is_on_its_way_to_the_disk_before_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tar is synced while its index is made, so that the commit's sync finds little left."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(os.fstat(fd).st_ino))
    small = alone(tar_of(reg(b"file", b"small")), tmp_path / "small")
    large = alone(tar_of(reg(b"file", bytes(2 << 20))), tmp_path / "large")
    eventually(lambda: bool(synced), "no sync")
    assert synced == [os.stat(f"{large}/{place.DATA}").st_ino]
    assert os.stat(f"{small}/{place.DATA}").st_size == 2048


def test_a_layers_tree_goes_without_a_collection(tmp_path: Path) -> None:
    """Workers collect no garbage, and unpack a hundred layers."""
    (layer := tmp_path / place.LAYER).mkdir()
    (upper := tmp_path / "fs").mkdir()
    stream = tar_of(directory(b"a/"), symlink(b"b", b"a"), reg(b"b/file", b"1"))
    gc.disable()
    try:
        tree = weakref.ref(place.unpack([stream], str(upper), (), str(layer), lowest=True))
        assert tree() is None
    finally:
        gc.enable()


def test_directories_that_lie_together_take_few_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer may leave a thousand unnamed, as npm's packages, and its commit waits for their attributes."""
    lower = alone(tar_of(directory(b"srv/"), reg(b"srv/other", b"1")), tmp_path / "lower", lowest=True)
    names = [b"srv/app/modules/p%03d/lib/f" % number for number in range(400)]
    layer = alone(tar_of(*(reg(name, b"1") for name in names)), tmp_path / "layer")
    reads, read = list[int](), os.pread

    def counted(fd: int, count: int, at: int) -> bytes:
        reads.append(at)
        return read(fd, count, at)

    monkeypatch.setattr(os, "pread", counted)
    found, again = chained(layer, [lower])
    assert not again
    assert len(reads) < 3 * len(names)  # each of the 800 directories has an inode, and names, of its own
    assert found == made_again(layer, [lower])
