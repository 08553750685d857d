"""Lookups of one path after the other in the same layers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from services.snapshots.diff.inherit import Unnamed, inherit
from services.snapshots.diff.listings import Listings


class Counted(Listings):
    """Counts what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def _read(self, directory: str, *, whole: bool) -> dict[str, bool] | None:
        self.reads += 1
        return super()._read(directory, whole=whole)


def test_only_what_is_certainly_not_there_is_lacking(tmp_path: Path) -> None:
    """What is there, what is behind a link, and what is below a file is for those who look it up in the layer."""
    layer = tmp_path / "layer"
    (layer / "a/b").mkdir(parents=True)
    (layer / "a/file").touch()
    (layer / "link").symlink_to("a")
    (layer / os.fsdecode(b"\xff")).mkdir()
    listings = Listings()
    there = [b"/a", b"/a/b", b"/a/file", b"/a/file/x", b"/link", b"/link/x", b"/\xff"]
    lacking = [b"/b", b"/a/c", b"/\xff/x"]
    assert [path for path in (*there, *lacking) if listings.lacks(str(layer), path)] == lacking
    with pytest.raises(FileNotFoundError):
        listings.lacks(str(tmp_path / "absent"), b"/a")


def test_little_is_remembered(tmp_path: Path) -> None:
    """A directory may have a million names, and a layer as many directories."""
    (tmp_path / "many").mkdir()
    for number in range(5):
        (tmp_path / "many" / str(number)).mkdir()
    assert not Listings(names=4).lacks(str(tmp_path), b"/many/x")
    assert Listings(names=5).lacks(str(tmp_path), b"/many/x")
    listings = Listings(most=3)  # the root, and what is in it
    assert listings.lacks(str(tmp_path), b"/x")
    assert listings.lacks(str(tmp_path), b"/many/x")
    assert not listings.lacks(str(tmp_path), b"/many/0/x")
    assert listings.lacks(str(tmp_path), b"/y")


def test_a_link_in_the_place_of_a_directory_is_not_followed(tmp_path: Path) -> None:
    """Also if it was none a moment before: it may lead out of the layer."""
    (tmp_path / "layer/a").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    listings = Listings()
    assert listings.lacks(str(tmp_path / "layer"), b"/b")
    (tmp_path / "layer/a").rmdir()
    (tmp_path / "layer/a").symlink_to(tmp_path / "elsewhere")
    assert not listings.lacks(str(tmp_path / "layer"), b"/a/x")


def test_sixty_layers_are_read_once_each(tmp_path: Path) -> None:
    """Each has a directory of its own, below one that only the lowest names: that one has its attributes in all."""
    listings, below = Counted(), list[str]()
    for number in range(60):
        layer = tmp_path / str(number)
        (layer / f"srv/step{number}").mkdir(parents=True)
        if number == 0:
            os.chown(layer / "srv", 7, 8)
            os.chmod(layer / "srv", 0o2711)
        else:
            unnamed = [Unnamed(b"/srv"), Unnamed(b"/srv/step%d" % number, inside=True)]
            inherit(str(layer), below, unnamed, links=False, listings=listings)
            info = (layer / "srv").stat()
            assert (info.st_uid, info.st_gid, info.st_mode & 0o7777) == (7, 8, 0o2711)
            assert (layer / f"srv/step{number}").stat().st_gid == 8
        below.insert(0, str(layer))
    assert listings.reads == 2 * 59
