"""Unpacking onto a directory of this machine, by paths: without a process and without a root directory of its own."""

from __future__ import annotations

import itertools
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.kit.tar import Reader, Stream
from services.snapshots.diff.extract import EntryError, Extractor
from tests.suites.diff_tars import directory, opaque, pax, reg, tar, whiteout

pytestmark = pytest.mark.root  # owners are set


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Count the directories that are searched."""
    looked: list[object] = []
    scandir: Callable[..., Any] = os.scandir

    def noted(path: object) -> Any:
        looked.append(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", noted)
    return looked


def unpack(*entries: bytes) -> None:
    Extractor().extract(Reader(Stream([tar(*entries)])))


def test_an_opaque_marker_does_its_work_once(tmp_path: Path, counted: list[object]) -> None:
    """A layer that repeats it, or that marks entries of a directory and then the directory, causes one search of each
    directory; the layer's own entries stay.
    """
    top = os.fsencode(tmp_path)[1:]
    for name in ("old", "a/old", "a/b/old", "a/b/c/old", "gone/old"):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_bytes(b"old")
    mine = [reg(top + name) for name in (b"/d/new", b"/d/a/b/c/new")]
    markers = [opaque(top + name) for name in (b"/d/a/b/c", b"/d/a/b/c", b"/d/a/b", b"/d/a", b"/d", b"/d/a", b"/d")]
    unpack(
        *itertools.chain(
            mine, markers * 100, [reg(top + b"/d/gone/new"), opaque(top + b"/d/gone"), opaque(top + b"/d")]
        )
    )
    looked = counted[:]
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == [
        "d/a/b/c/new",
        "d/gone/new",
        "d/new",
    ]
    assert len(looked) == len(set(looked)) == 5


def test_what_is_removed_is_no_directory_that_the_layer_left_out(tmp_path: Path) -> None:
    """The layer makes many directories without an entry: one gets an entry in the end, others are removed."""
    top = os.fsencode(tmp_path)[1:]
    extractor = Extractor()
    entries = (
        [reg(top + b"/%d/x" % n) for n in range(50)]
        + [whiteout(top + b"/%d" % n) for n in range(0, 50, 2)]
        + [directory(top + b"/1")]
    )
    extractor.extract(Reader(Stream([tar(*entries)])))
    assert [(each.path, each.named) for each in extractor.unnamed] == [
        (b"/%s/%d" % (top, n), n == 1) for n in range(1, 50, 2)
    ]


def test_a_directory_that_is_named_again_has_the_times_of_its_last_entry(tmp_path: Path) -> None:
    """This holds for each name of the directory; however often it is named, it is remembered once."""
    top = os.fsencode(tmp_path)[1:]
    (tmp_path / "link").symlink_to("d")
    extractor = Extractor()
    entries = [
        directory(top + b"/d", mtime=1),
        directory(top + b"/link/x", mtime=5),
        directory(top + b"/d/x", mtime=6),
        directory(top + b"/link/x", mtime=7),
        directory(top + b"/d", mtime=2),
    ]
    extractor.extract(Reader(Stream([tar(*entries * 50)])))
    assert [(tmp_path / name).stat().st_mtime for name in ("d", "d/x")] == [2, 7]
    assert len(extractor._directories) == 3


def test_a_long_path_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not looked up again for each directory at its end: a name may have two thousand components, and a lookup
    takes as many steps.
    """
    deep = os.fsencode(tmp_path)[1:] + b"/x" * 300
    lstat, looks = os.lstat, [0]

    def counted(path: Any, **where: Any) -> os.stat_result:
        looks[0] += 1
        return lstat(path, **where)

    monkeypatch.setattr(os, "lstat", counted)
    unpack(
        *(
            pax({b"path": deep + b"/%d/f" % n}) + reg(b"f", b"f") + pax({b"path": deep + b"/%d" % n}) + directory(b"d")
            for n in range(100)
        )
    )
    assert looks[0] < 3000
    assert len(os.listdir(b"/" + deep)) == 100


def test_a_path_that_is_too_long_for_the_kernel_takes_no_memory(tmp_path: Path) -> None:
    """The prefixes of the path would be as many as it has components, and a gigabyte together."""
    layer = [pax({b"path": os.fsencode(tmp_path)[1:] + (b"/" + b"n" * 255) * 3000 + b"/f"}) + reg(b"f", b"f")]
    tracemalloc.start()
    try:
        with pytest.raises(EntryError, match="file name too long"):
            unpack(*layer)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
    assert os.listdir(tmp_path) == []
