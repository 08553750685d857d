"""Checkpoints as blobs: a directory that CRIU wrote (or will read) as a tar, beside the container's spec."""

from __future__ import annotations

import asyncio
import io
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from google.protobuf.message import DecodeError

from api.containerd.types.runc.options import oci_pb2
from services.kit import errors
from services.kit.any import unpack
from services.tasks import convert
from services.tasks.store import Container, Descriptor, Node, Opaque

IMAGE = "application/vnd.containerd.container.criu.checkpoint.criu.tar"
CONFIG = "application/vnd.containerd.container.checkpoint.config.v1+proto"


def image_path(runtime: str, options: Opaque | None) -> str:
    """Where the options of a Checkpoint call want the image; empty for the content store."""
    value = convert.opaque_to_pb(options)
    if value is None:
        return ""
    try:
        parsed = unpack(value, oci_pb2.CheckpointOptions)
    except DecodeError as error:
        raise errors.InvalidArgument(f"checkpoint options: {error}") from None
    if parsed is None:
        raise errors.Unknown(f"invalid task checkpoint option for {runtime}")
    return parsed.image_path


def restore_path(options: Opaque | None) -> str:
    """Where the options of a Create call say that there is an image to restore; empty for none."""
    value = convert.opaque_to_pb(options)
    try:
        parsed = None if value is None else unpack(value, oci_pb2.Options)
    except DecodeError as error:
        raise errors.InvalidArgument(f"task options: {error}") from None
    return "" if parsed is None else parsed.criu_image_path


async def store(node: Node, namespace: str, lease: str, image: Path, container: Container) -> Sequence[Descriptor]:
    """Write the directory ``image`` and the container's spec to the content store."""
    with tempfile.TemporaryFile() as file:
        await asyncio.to_thread(_pack, image, file)
        file.seek(0)
        criu = await node.write_blob(namespace, lease, str(image), IMAGE, file)
    spec = convert.opaque_to_pb(container.spec)
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
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(image.rglob("*")):
            tar.add(path, str(path.relative_to(image)), recursive=False)


def _unpack(file: io.BufferedRandom, image: Path) -> None:
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                _check(member, image)
                tar.extract(member, image)
    except (tarfile.TarError, OSError) as error:
        raise errors.InvalidArgument(f"checkpoint image: {error}") from None


def _check(member: tarfile.TarInfo, image: Path) -> None:
    """Only files, directories and links, and none through a link: an image is CRIU's, flat, and anybody may have made this one."""
    parts = Path(member.name).parts
    inside = not member.name.startswith("/") and ".." not in parts and not any((image.joinpath(*parts[:n])).is_symlink() for n in range(1, len(parts) + 1))
    if not inside or not (member.isreg() or member.isdir() or member.issym()):
        raise errors.InvalidArgument(f"checkpoint image: {member.name}")
