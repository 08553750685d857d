"""Checkpoints as blobs: the directory that CRIU writes or reads, as a tar, and the container's spec."""

from __future__ import annotations

import asyncio
import functools
import io
import os
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from services.kit import errors, tar
from services.oci.descriptors import Descriptor
from services.oci.opaque_convert import opaque_to_pb
from services.tasks.store import Container, Node

IMAGE = "application/vnd.containerd.container.criu.checkpoint.criu.tar"
CONFIG = "application/vnd.containerd.container.checkpoint.config.v1+proto"

_PIECE = 1 << 18


async def store(node: Node, namespace: str, lease: str, image: Path, container: Container) -> Sequence[Descriptor]:
    """Write the directory ``image`` and the container's spec to the content store."""
    with tempfile.TemporaryFile() as file:
        await asyncio.to_thread(_pack, image, file)
        file.seek(0)
        criu = await node.write_blob(namespace, lease, str(image), IMAGE, file)
    spec = opaque_to_pb(container.spec)
    config = io.BytesIO(b"" if spec is None else spec.SerializeToString())
    return [criu, await node.write_blob(namespace, lease, str(image / "spec"), CONFIG, config)]


async def load(node: Node, namespace: str, checkpoint: Descriptor, image: Path) -> None:
    """Fill the directory ``image`` from the content store."""
    if checkpoint.media_type != IMAGE:
        raise errors.Unknown(f'unsupported checkpoint type "{checkpoint.media_type}"')
    with tempfile.TemporaryFile() as file:
        await node.read_blob(namespace, checkpoint.digest, file)
        file.seek(0)
        await asyncio.to_thread(_unpack, file, image)


def _pack(image: Path, file: io.BufferedRandom) -> None:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(image.rglob("*")):
            archive.add(path, str(path.relative_to(image)), recursive=False)


def _unpack(file: io.BufferedRandom, image: Path) -> None:
    """Unpack with the reader of layers, which bounds headers: any client may have made this tar."""
    reader = tar.Reader(tar.Stream(iter(functools.partial(file.read, _PIECE), b"")))
    try:
        while (entry := reader.next()) is not None:
            _unpack_entry(entry, reader, image)
    except tar.TarError as error:
        raise errors.InvalidArgument(f"checkpoint image: {error}") from None
    except OSError as error:
        raise errors.InvalidArgument(f"checkpoint image: {errors.words(error)}") from None


def _unpack_entry(entry: tar.Entry, reader: tar.Reader, image: Path) -> None:
    """Accept only files, directories and links, and no path through a link: CRIU's images are flat."""
    name = os.fsdecode(entry.name)
    parts = Path(name).parts
    inside = (
        not name.startswith("/")
        and ".." not in parts
        and not any((image.joinpath(*parts[:n])).is_symlink() for n in range(1, len(parts) + 1))
    )
    if not inside or entry.type not in (tar.REG, tar.DIR, tar.SYMLINK) or entry.sparse is not None:
        raise errors.InvalidArgument(f"checkpoint image: {name}")
    path = image.joinpath(*parts)
    if entry.type == tar.DIR:
        path.mkdir(parents=True, exist_ok=True)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
    if entry.type == tar.SYMLINK:
        path.symlink_to(os.fsdecode(entry.linkname))
        return
    if entry.type == tar.REG:
        with path.open("xb") as made:
            for piece in reader.data():
                made.write(piece)
    path.chmod(entry.mode & 0o777)
