"""Images for pulls that are measured: the same in each run, made in memory."""

from __future__ import annotations

import functools
import gzip
import random
import tarfile

from deploy.samples import Image, tar_of
from services.oci.media_types import LAYER
from tests.pulls import Layer, gzipped, image_of

MIB = 1 << 20


@functools.cache
def plain(layers: int = 4, kib: int = 6 << 10, seed: int = 1) -> Image:
    """Layers that do not compress: the network and the disk carry all of their bytes."""
    rng = random.Random(seed)
    return image_of([gzipped(tar_of([(f"file{n}", {"data": rng.randbytes(kib << 10)})])) for n in range(layers)])


@functools.cache
def squeezed(layers: int = 4, mib: int = 64, seed: int = 2) -> Image:
    """Layers that are mostly work for a processor: short words, whose repetitions compress to a third."""
    rng = random.Random(seed)
    words = [rng.randbytes(5) for _ in range(4096)]
    return image_of([_repeated(f"file{n}", b"".join(rng.choices(words, k=MIB // 5)), mib) for n in range(layers)])


def _repeated(name: str, block: bytes, times: int) -> Layer:
    """A layer of one file, ``block`` again and again, each a member of the gzip stream: so it is compressed once."""
    entry = tarfile.TarInfo(name)
    entry.size = len(block) * times
    head = entry.tobuf(tarfile.USTAR_FORMAT)
    tail = bytes(-entry.size % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE)
    first, middle, last = (gzip.compress(data, 1, mtime=0) for data in (head, block, tail))
    return Layer(first + middle * times + last, LAYER + "+gzip", head + block * times + tail)
