"""Layers as EROFS indices, mounted by the kernel, beside the same layers unpacked by the Extractor."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.kit import tar
from services.snapshots.diff.extract import EntryError, Extractor
from services.snapshots.erofs import layer
from services.snapshots.erofs.image import BLOCK, image
from services.snapshots.erofs.layer import LayerTree
from tests.suites import diff_layers, diff_sides
from tests.suites.diff_tars import Case, reg
from tests.suites.diff_tars import tar as tar_of

pytestmark = pytest.mark.root  # it mounts
_LIBC = ctypes.CDLL(None, use_errno=True)
_READ_ONLY = 1


def extracted(stream: bytes, place: Path) -> str:
    """Unpack a layer as an overlay's upper directory, in a process with another root; returns the error, if any."""
    place.mkdir()
    ours, theirs = os.pipe()
    if not (pid := os.fork()):
        try:
            os.umask(0)
            os.chroot(place)
            os.chdir("/")
            Extractor(overlay="trusted.overlay.").extract(tar.Reader(tar.Stream([stream])))
        except EntryError as error:
            os.write(theirs, str(error).encode("utf-8", "surrogateescape"))
        except BaseException as error:
            os.write(theirs, repr(error).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    said = b""
    while data := os.read(ours, 1 << 16):
        said += data
    os.close(ours)
    os.waitpid(pid, 0)
    return said.decode("utf-8", "surrogateescape")


def indexed(stream: bytes, place: Path) -> None:
    """Write a layer and its index below ``place``."""
    place.mkdir()
    tree = LayerTree()
    tree.read(tar.Reader(tar.Stream([stream])))
    blob = stream + bytes(-len(stream) % BLOCK)
    (place / "tar").write_bytes(blob)
    with (place / "index").open("wb") as file:
        file.writelines(image(tree.root, len(blob), lambda offset, length: stream[offset : offset + length]))


@contextlib.contextmanager
def mounted(place: Path) -> Iterator[Path]:
    """Mount such an index."""
    (place / "m").mkdir()
    options = f"device={place}/tar".encode()
    if _LIBC.mount(os.fsencode(place / "index"), os.fsencode(place / "m"), b"erofs", _READ_ONLY, options):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        yield place / "m"
    finally:
        subprocess.run(["umount", place / "m"], check=True)


@pytest.mark.parametrize("case", diff_layers.ALL, ids=lambda case: case.name)
def test_a_layer_is_what_the_extractor_makes_of_it(case: Case, tmp_path: Path) -> None:
    """The same files with the same attributes, or the same error."""
    said = extracted(case.layer, tmp_path / "tree")
    if said:
        with pytest.raises(EntryError) as error:
            indexed(case.layer, tmp_path / "image")
        assert str(error.value) == said
        return
    indexed(case.layer, tmp_path / "image")
    made = diff_sides.tree(tmp_path / "tree")
    with mounted(tmp_path / "image") as root:
        found = diff_sides.tree(root)
    for name, node in made.items():  # what the layer does not name has the time of its making there, and 1970 here
        if node.modified is None and name in found:
            assert found[name].modified == 0
            found[name] = dataclasses.replace(found[name], modified=None)
    assert found == made


@pytest.mark.parametrize(("limit", "value"), [("ENTRIES", 2), ("BYTES", 10)])
def test_a_layer_is_bounded(limit: str, value: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tree is in memory."""
    monkeypatch.setattr(layer, limit, value)
    with pytest.raises(EntryError, match=r"which an erofs layer cannot have: .* \(at \"three\"\)$"):
        indexed(tar_of(reg(b"one"), reg(b"two"), reg(b"three"), reg(b"four")), tmp_path / "image")


@pytest.mark.parametrize("count", [0, 1, *range(12, 18), 40])
def test_a_root_of_any_size_is_found(count: int, tmp_path: Path) -> None:
    """With 14 or 15 names it does not begin the image: it is moved, since its contents must lie within a block."""
    names = [b"a name of 20 bytes%02d" % number for number in range(count)]
    indexed(tar_of(*map(reg, names)), tmp_path / "image")
    with mounted(tmp_path / "image") as root:
        assert sorted(os.listdir(os.fsencode(root))) == names
