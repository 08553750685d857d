"""The images service's own channel to metadata, whose target is replaced while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from google.protobuf.empty_pb2 import Empty

from api.containerd.services.images.v1 import images_pb2 as pb
from api.splitd.records.v1 import records_pb2, records_stubs
from services.images.remote import ImageRecords
from services.kit import rpc
from services.kit.hops import Hop

CALL = rpc.Call("/m", {rpc.NAMESPACE: "n"})


@dataclass
class Metadata:
    """Metadata that answers with images of its own name, and counts changes."""

    name: str
    changes: int = 0
    SERVICE = records_stubs.RECORDS

    async def GetImage(self, request: pb.GetImageRequest, call: rpc.Call) -> pb.GetImageResponse:
        return pb.GetImageResponse(image=pb.Image(name=self.name))

    async def ListImages(self, request: pb.ListImagesRequest, call: rpc.Call) -> pb.ListImagesResponse:
        return pb.ListImagesResponse(images=[pb.Image(name=self.name)])

    async def DeleteImage(self, request: pb.DeleteImageRequest, call: rpc.Call) -> Empty:
        self.changes += 1
        return Empty()

    async def Collect(self, request: records_pb2.CollectRequest, call: rpc.Call) -> records_pb2.Collected:
        self.changes += 1
        return records_pb2.Collected()


class Asked(Hop[rpc.Channel]):
    """A collector of requests."""

    def __init__(self, channel: rpc.Channel) -> None:
        super().__init__("metadata", channel)
        self.heard: list[tuple[str, str]] = []

    def to(self, namespace: str, key: str = "") -> rpc.Channel:
        self.heard.append((namespace, key))
        return super().to(namespace, key)


async def test_each_call_goes_to_the_current_upstream(place: Path) -> None:
    """Reads, changes and collections, with the namespace and the image's name."""
    stores = [Metadata("one"), Metadata("other")]
    async with (
        rpc.serving(place / "one.sock", [stores[0]]),
        rpc.serving(place / "other.sock", [stores[1]]),
        rpc.Channel(place / "one.sock") as one,
        rpc.Channel(place / "other.sock") as other,
    ):
        hop = Asked(one)
        records = ImageRecords(hop, hold=5.0)
        for store in stores:
            answer = await records.read("GetImage", pb.GetImageRequest(name="i"), CALL, "i")
            assert answer.image.name == store.name
            listed = pb.ListImagesResponse.FromString(await records.list(pb.ListImagesRequest(), CALL))
            assert [image.name for image in listed.images] == [store.name]
            await records.change("DeleteImage", pb.DeleteImageRequest(name="i"), CALL, "i")
            await records.collect(CALL)
            hop.replace(other)
    assert [store.changes for store in stores] == [2, 2]
    assert hop.heard == [("n", "i"), ("n", ""), ("n", "i"), ("n", "")] * 2
