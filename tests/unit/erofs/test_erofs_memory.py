"""What is read of a layer is in memory once, in whichever way layers are mounted here."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import pytest

from services.snapshots.erofs import mounting, place
from tests.suites.diff_tars import reg
from tests.suites.diff_tars import tar as tar_of

pytestmark = pytest.mark.root  # it mounts
_LIBC = ctypes.CDLL(None, use_errno=True)
SIZE = 8 << 20


def in_memory(path: Path) -> int:
    """Bytes of a file that are in the page cache."""
    size = path.stat().st_size
    with path.open("r+b") as file, mmap.mmap(file.fileno(), size) as mapped:
        pages = (ctypes.c_ubyte * (-(-size // mmap.PAGESIZE)))()
        if _LIBC.mincore(ctypes.byref(ctypes.c_char.from_buffer(mapped)), ctypes.c_size_t(size), pages):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return sum(page & 1 for page in pages) * mmap.PAGESIZE


def forget(path: Path) -> None:
    """Take a file out of the page cache."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def test_what_is_read_of_a_layer_is_in_memory_once(tmp_path: Path) -> None:
    """The kernel keeps the pages of the file, and none of the tar."""
    way = mounting.tried(tmp_path)
    assert isinstance(way, mounting.Way)
    if not way.direct:
        pytest.skip("this disk cannot be read directly in pieces of 512 bytes")
    upper, layer, mounted = tmp_path / "fs", tmp_path / place.LAYER, tmp_path / "mounted"
    for each in (upper, layer, mounted):
        each.mkdir()
    data = os.urandom(SIZE)
    place.unpack([tar_of(reg(b"file", data))], str(upper), (), str(layer), lowest=True)
    assert in_memory(layer / place.DATA) >= SIZE
    forget(layer / place.DATA)
    assert in_memory(layer / place.DATA) < SIZE // 8
    mounting.mount(way, layer, mounted)
    try:
        assert (mounted / "file").read_bytes() == data
        assert in_memory(layer / place.DATA) < SIZE // 8
    finally:
        assert mounting.unmount(mounted)
