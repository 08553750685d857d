"""Checkpoints as blobs, on a content store in memory."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import BinaryIO

import pytest
from google.protobuf.any_pb2 import Any

from services.kit import errors
from services.oci.descriptors import Descriptor
from services.oci.opaque import Opaque
from services.tasks import checkpoint
from services.tasks.store import Container
from tests.suites.diff_tars import block


class Content:
    """The part of a Node that checkpoints need."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.leases: list[str] = []

    async def write_blob(self, namespace: str, lease: str, ref: str, media_type: str, file: BinaryIO) -> Descriptor:
        data = file.read()
        self.blobs[ref] = data
        self.leases.append(lease)
        return Descriptor(media_type, ref, len(data))

    async def read_blob(self, namespace: str, digest: str, file: BinaryIO) -> None:
        file.write(self.blobs[digest])


async def test_what_was_stored_is_loaded_again(place: Path) -> None:
    """Files, directories and links of the image come back; the config blob is the spec's Any; both are written
    under the lease.
    """
    image, again = place / "image", place / "again"
    (image / "deep").mkdir(parents=True)
    (image / "deep/core-1.img").write_bytes(b"\0" * 5000)
    (image / "link").symlink_to("deep/core-1.img")
    again.mkdir()
    content = Content()
    container = Container("c", "io.containerd.runc.v2", spec=Opaque("a.Spec", b"{}"))
    criu, config = await checkpoint.store(content, "ns", "lease", image, container)  # type: ignore[arg-type]
    assert (criu.media_type, config.media_type) == (checkpoint.IMAGE, checkpoint.CONFIG)
    assert content.leases == ["lease", "lease"]
    assert Any.FromString(content.blobs[config.digest]) == Any(type_url="a.Spec", value=b"{}")
    await checkpoint.load(content, "ns", criu, again)  # type: ignore[arg-type]
    assert (again / "deep/core-1.img").read_bytes() == b"\0" * 5000
    assert (again / "link").readlink() == Path("deep/core-1.img")


async def test_an_image_stays_in_its_directory(place: Path) -> None:
    """A tar with names that lead out is refused, and so is a file that is no tar or no checkpoint."""
    content, image = Content(), place / "in"
    image.mkdir()
    link = tarfile.TarInfo("link")
    link.type, link.linkname = tarfile.SYMTYPE, str(place)
    device = tarfile.TarInfo("device")
    device.type = tarfile.CHRTYPE
    hostile = {
        "up": [tarfile.TarInfo("../evil")],
        "absolute": [tarfile.TarInfo(f"{place}/evil")],
        "through": [link, tarfile.TarInfo("link/evil")],
        "device": [device],
    }
    for name, members in hostile.items():
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for member in members:
                tar.addfile(member)
        content.blobs[name] = packed.getvalue()
    content.blobs["junk"] = b"junk"
    content.blobs["header"] = block(b"huge", b"x", size=1 << 40) + bytes(2 << 20)
    for name, data in content.blobs.items():
        with pytest.raises(errors.InvalidArgument, match="^checkpoint image: "):
            await checkpoint.load(content, "ns", Descriptor(checkpoint.IMAGE, name, len(data)), image)  # type: ignore[arg-type]
    assert not (place / "evil").exists()
    with pytest.raises(errors.Unknown, match=r'^unsupported checkpoint type "text/plain"$'):
        await checkpoint.load(content, "ns", Descriptor("text/plain", "junk", 1), image)  # type: ignore[arg-type]
