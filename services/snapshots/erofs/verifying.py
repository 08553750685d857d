"""Finds damage of layers that were unpacked: a layer's tar is hashed, and its index is made again and compared.

The digest of the tar is the layer's diff id, and the same tar over the same layers makes the same index. So a
difference is damage, whoever made it: the disk, or a program that wrote there. What was made of an upper directory has
no diff id, and cannot be verified.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence

from services.kit import errors
from services.snapshots.diff.extract import EntryError
from services.snapshots.erofs import place
from services.snapshots.erofs.below import of_layers, opened
from services.snapshots.erofs.image import ImageError
from services.snapshots.erofs.place import DATA, INDEX, About

PULL_AGAIN = "remove the containers and images that use it, and pull again"


def damage(layer: str, upper: str, lowers: Sequence[str]) -> str | None:
    """What is wrong with the layer in the directory ``layer``, and what to do; "" if nothing is, None if it cannot be
    verified. ``upper`` is the upper directory of its snapshot; ``lowers`` are the layers below, topmost first, each its
    index or its mount, which must be right themselves. It blocks, for as long as the unpacking took, and needs as much
    memory.
    """
    name = f"the layer in {layer}"
    try:
        known = place.about(layer)
        if known is None:
            return None
        name = f"layer {known.diff_id} in {layer}"
        if place.is_image(layer):
            found = _of_file(f"{layer}/{INDEX}", known, known.size)
        else:
            found = _of_file(f"{layer}/{DATA}", known, place.padded(known.size))
            found = found or _of_index(layer, upper, lowers, known)
    except OSError as error:
        found = f"{error.filename or layer}: {errors.words(error)}"
    return f"{name} is damaged: {found}; {PULL_AGAIN}" if found else ""


def _of_file(path: str, known: About, size: int) -> str:
    """What is wrong with the bytes that came, which are followed by zeros up to ``size``; "" if nothing."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        if (length := os.fstat(file.fileno()).st_size) != size:
            return f"{path} has {length} bytes, not {size}"
        for data in place.beginning(file, known.size):
            digest.update(data)
        if any(file.read()):
            return f"{path} has other bytes than zeros after the first {known.size}"
    found = f"sha256:{digest.hexdigest()}"
    return "" if found == known.diff_id else f"{path} is {found}"


def _of_index(layer: str, upper: str, lowers: Sequence[str], known: About) -> str:
    """What is wrong with the index of a tar that is right; "" if nothing."""
    path, at = f"{layer}/{INDEX}", 0
    with contextlib.ExitStack() as held:
        file = held.enter_context(open(path, "rb"))
        found = [held.enter_context(contextlib.closing(opened(each))) for each in lowers]
        below = of_layers(found) if found else None
        try:
            for piece in place.index_again(layer, upper, below, known):
                if (there := file.read(len(piece))) != piece:
                    return f"{path} has other bytes from {at + _same(there, piece)} on"
                at += len(piece)
        except (EntryError, ImageError) as error:
            return f"no index can be made of it on the layers below: {error}"
        return f"{path} has more than {at} bytes" if file.read(1) else ""


def _same(one: bytes, other: bytes | bytearray) -> int:
    """How many bytes are the same, from the first on."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
