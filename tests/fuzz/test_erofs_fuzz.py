"""Layers that are nearly right, unpacked by the Extractor and read as an index of the snapshotter erofs: both make the
same tree, or both refuse, nearly always with the same words. The index is right in each byte, and made within bounded memory.

``make fuzz`` runs it for a tenth of its time, from a random seed; here some hundred layers are read, from the seed that
a failure prints.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import os
import pickle
import resource
import shutil
import socket
import stat
import struct
import subprocess
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from services.kit import tar
from services.snapshots.diff.extract import EntryError, Extractor
from services.snapshots.erofs.below import Mounted, of_layers
from services.snapshots.erofs.image import BLOCK, ImageError, image
from services.snapshots.erofs.layer import LayerTree
from tests.fuzz.layer_mutations import Author
from tests.suites import diff_layers, diff_sides, erofs_images
from tests.suites.diff_sides import Node
from tests.support import directory_with_attributes
from tests.unit.erofs.test_erofs_layers import extracted as unpacked

pytestmark = pytest.mark.root  # it changes its root directory

AT_ONCE = 100
"""Layers from one seed."""
MEMORY = 400 << 20
"""Bytes of address space that a process may take more than it has, to read any of them."""
CHUNK = 1000
"""Bytes that the streams give at once."""
DEEP = 10_000
"""Calls in one another: the helpers follow directories, of which a path can have 2,000."""
Outcome = tuple[str, str | dict[bytes, Node]]
"""What became of a layer: "tree" with it, "refused" with the words, "limit" with the reason why it is no erofs layer, or
"failed" with what nobody expects.
"""
WAYS = ("lowest", "alone", "above")
"""Without layers below, as nothing is known of them, and upon one."""


def streamed(layer: bytes) -> Iterator[bytes]:
    return (layer[at : at + CHUNK] for at in range(0, len(layer), CHUNK))


def read(layer: bytes, way: str, lowers: Sequence[int]) -> Outcome:
    """As the snapshotter erofs reads a layer."""
    tree = LayerTree(lowest=way == "lowest", below=of_layers(list(map(Mounted, lowers))) if way == "above" else None)
    try:
        tree.read(tar.Reader(tar.Stream(streamed(layer))))
    except EntryError as error:
        return ("limit" if "which an erofs layer cannot have" in str(error) else "refused"), str(error)
    size = max(BLOCK, len(layer) + -len(layer) % BLOCK)
    blob = layer.ljust(size, b"\0")
    try:
        made = b"".join(image(tree.root, size, lambda at, length: blob[at : at + length]))
    except ImageError as error:
        return "limit", str(error)
    return "tree", erofs_images.Image(made, size).tree(lambda at, length: blob[at : at + length])


def extracted(layer: bytes, way: str, lowers: Sequence[int], place: Path, root: int) -> Outcome:
    """As an overlay's upper directory, or a plain one, gets it."""
    place.mkdir()
    os.chroot(place)
    os.chdir("/")
    try:
        Extractor(
            overlay=None if way == "lowest" else "trusted.overlay.", lowers=lowers if way == "above" else ()
        ).extract(tar.Reader(tar.Stream(streamed(layer))))
        return "tree", tree(Path("/"))
    except EntryError as error:
        return "refused", str(error)
    finally:
        os.fchdir(root)
        os.chroot(".")
        _removed(place)


def _removed(place: Path) -> None:
    """Remove a tree, however deep."""
    try:
        shutil.rmtree(place)
    except OSError:  # each level takes a file descriptor
        subprocess.run(["rm", "-rf", place], check=True)


def tree(root: Path) -> dict[bytes, Node]:
    """As ``diff_sides.tree``, with contents of which holes are no part."""

    def pieces(file: int) -> Iterator[tuple[int, bytes]]:
        at, size = 0, os.fstat(file).st_size
        while at < size:
            try:
                begin = os.lseek(file, at, os.SEEK_DATA)
            except OSError:  # only a hole is left
                return
            at = os.lseek(file, begin, os.SEEK_HOLE)
            yield begin, os.pread(file, at - begin, begin)

    def content(path: bytes) -> str:
        with open(path, "rb") as file:
            return erofs_images.content(list(pieces(file.fileno())))

    return diff_sides.tree(root, content)


class Worker:
    """A forked process that reads layers, one after the other, each in the given way."""

    def __init__(self, work: Callable[[int, str, bytes], Outcome]) -> None:
        self._line, theirs = socket.socketpair()
        self._pid = os.fork()
        if not self._pid:
            try:
                self._line.close()
                os.umask(0)
                sys.setrecursionlimit(DEEP)
                with theirs.makefile("rwb") as stream:
                    while head := stream.read(16):
                        number, length = struct.unpack("<QQ", head)
                        way, layer = pickle.loads(stream.read(length))
                        try:
                            answer = work(number, way, layer)
                        except BaseException:
                            answer = "failed", traceback.format_exc()
                        data = pickle.dumps(answer)
                        stream.write(struct.pack("<Q", len(data)) + data)
                        stream.flush()
            finally:
                os._exit(0)
        theirs.close()
        self._stream = self._line.makefile("rwb")

    def ask(self, number: int, way: str, layer: bytes) -> None:
        data = pickle.dumps((way, layer))
        self._stream.write(struct.pack("<QQ", number, len(data)) + data)
        self._stream.flush()

    def answer(self) -> Outcome:
        head = self._stream.read(8)
        if not head:
            return "failed", "the process has died"
        answer: Outcome = pickle.loads(self._stream.read(*struct.unpack("<Q", head)))
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stream.close()
        self._line.close()
        os.waitpid(self._pid, 0)


@contextlib.contextmanager
def workers(place: Path) -> Iterator[tuple[Worker, Worker]]:
    """One that extracts below ``place``, and one that reads, and has not much memory for that."""
    below = place / "below"
    root = os.open("/", os.O_PATH | os.O_DIRECTORY)

    def extract(number: int, way: str, layer: bytes) -> Outcome:
        return extracted(layer, way, [lower], place / str(number), root)

    def within_memory(number: int, way: str, layer: bytes) -> Outcome:
        if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        return read(layer, way, [lower])

    assert not unpacked(diff_layers.BASE, below)
    lower = os.open(below, os.O_PATH | os.O_DIRECTORY)
    try:
        with Worker(extract) as one, Worker(within_memory) as other:
            yield one, other
    finally:
        os.close(lower)
        os.close(root)


def seeds() -> Iterator[int]:
    """Two seeds; under ``make fuzz`` as many as a tenth of its time allows."""
    seed = int(os.environ.get("FUZZ_SEED") or 20261130)
    end = time.monotonic() + float(os.environ.get("FUZZ_SECONDS") or 0) / 10
    yield from (seed, seed + 1)
    while time.monotonic() < end:
        seed += 2
        yield seed


def test_both_make_the_same_of_layers_that_are_nearly_right() -> None:
    """Most are layers."""
    counts: dict[str, int] = {}
    with directory_with_attributes() as place, workers(place) as (one, other):
        for seed in seeds():
            author = Author(seed)
            for number in range(AT_ONCE):
                layer, way = author.layer(), WAYS[number % len(WAYS)]
                for each in (one, other):
                    each.ask(number, way, layer)
                right, found = one.answer(), other.answer()
                what = f"seed {seed}, layer {number}, {way}: {packed(layer)}"
                counts[found[0]] = counts.get(found[0], 0) + 1
                assert "failed" not in (right[0], found[0]), f"{what}: {right if right[0] == 'failed' else found}"
                if found[0] == "limit":
                    continue
                assert right[0] == found[0], f"{what}: {right}, {found}"
                if found[0] == "refused":
                    counts["other words"] = counts.get("other words", 0) + (right[1] != found[1])
                    continue
                assert isinstance(right[1], dict)
                assert isinstance(found[1], dict)
                if way == "lowest":
                    drop_empty(found[1], right[1])
                wrong = diff_sides.differences(right[1], without_times(found[1], right[1]))
                assert not wrong, "\n".join((what, *wrong))
    assert counts.pop("other words") <= counts["refused"] / 10, (
        "of several errors, the Extractor may meet another first"
    )
    everything = sum(counts.values())
    assert counts["tree"] > everything / 3, counts
    assert counts["refused"] > everything / 20, counts
    assert counts.get("limit", 0) < everything / 20, counts


def packed(layer: bytes) -> str:
    """A layer as text, which `zlib.decompress(base64.b85decode(text))` undoes."""
    return base64.b85encode(zlib.compress(layer)).decode()


def drop_empty(found: dict[bytes, Node], right: dict[bytes, Node]) -> None:
    """Take unnamed directories away that the Extractor removed, since an opaque marker came when only whiteouts were in
    them.
    """
    for name in found.keys() - right.keys():
        node = found[name]
        if stat.S_ISDIR(node.mode) and not node.modified:
            del found[name]


def without_times(found: dict[bytes, Node], right: dict[bytes, Node]) -> dict[bytes, Node]:
    """A tree without the times of whiteouts, and of directories that no entry names, which the other has from now."""
    return {
        name: dataclasses.replace(node, modified=None)
        if name in right and right[name].modified is None and (stat.S_ISDIR(node.mode) or stat.S_ISCHR(node.mode))
        else node
        for name, node in found.items()
    }
