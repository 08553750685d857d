"""containerd.services.images.v1: the operations of clients on images.

An *image* is a name (usually a reference such as ``docker.io/library/busybox:1.36``) for a *target*, the descriptor of
a manifest or an index. It has labels and the times of its creation and last change. It is a root of the garbage
collector: everything that its target refers to is kept.

The records are in metadata, which validates them. This servicer adds what belongs to a change: its event, published
once the record has changed, and the collection that a synchronous Delete waits for. A change and its event belong
together, so a caller that goes away does not prevent the event.
"""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from api.containerd.events import image_pb2 as events
from api.containerd.services.images.v1 import images_pb2 as pb
from api.containerd.services.images.v1 import images_stubs
from services.images.remote import ImageRecords
from services.kit import errors, rpc
from services.kit.publisher import Publisher
from services.kit.rpc import Call, Pieces


class ImagesServicer:
    """The images of the caller's namespace."""

    SERVICE = images_stubs.IMAGES

    def __init__(self, records: ImageRecords, publisher: Publisher) -> None:
        self._records = records
        self._publisher = publisher

    async def Get(self, request: pb.GetImageRequest, call: Call) -> pb.GetImageResponse:
        response: pb.GetImageResponse = await self._records.read("GetImage", request, call, request.name)
        return response

    async def List(self, request: pb.ListImagesRequest, call: Call) -> Pieces:
        return Pieces((await self._records.list(request, call),))

    async def Create(self, request: pb.CreateImageRequest, call: Call) -> pb.CreateImageResponse:
        """Create an image; ALREADY_EXISTS if the name is taken."""
        _name_required(request.image)
        return await rpc.shielded(self._create(request, call))

    async def _create(self, request: pb.CreateImageRequest, call: Call) -> pb.CreateImageResponse:
        response: pb.CreateImageResponse = await self._records.change("CreateImage", request, call, request.image.name)
        image = response.image
        self._publisher.publish(
            call.namespace, "/images/create", events.ImageCreate(name=image.name, labels=image.labels)
        )
        return response

    async def Update(self, request: pb.UpdateImageRequest, call: Call) -> pb.UpdateImageResponse:
        """Change an image: the fields of the mask, or all fields."""
        _name_required(request.image)
        return await rpc.shielded(self._update(request, call))

    async def _update(self, request: pb.UpdateImageRequest, call: Call) -> pb.UpdateImageResponse:
        response: pb.UpdateImageResponse = await self._records.change("UpdateImage", request, call, request.image.name)
        image = response.image
        self._publisher.publish(
            call.namespace, "/images/update", events.ImageUpdate(name=image.name, labels=image.labels)
        )
        return response

    async def Delete(self, request: pb.DeleteImageRequest, call: Call) -> Empty:
        """Delete an image, with ``target`` only if it has that target; with ``sync``, answer after a collection."""
        await rpc.shielded(self._delete(request, call))
        if request.sync:
            await self._records.collect(call)
        return Empty()

    async def _delete(self, request: pb.DeleteImageRequest, call: Call) -> None:
        # Without sync there: the event comes before the collection, and also if that fails.
        record = pb.DeleteImageRequest(name=request.name, target=request.target if request.HasField("target") else None)
        await self._records.change("DeleteImage", record, call, request.name)
        self._publisher.publish(call.namespace, "/images/delete", events.ImageDelete(name=request.name))


def _name_required(image: pb.Image) -> None:
    if not image.name:
        raise errors.InvalidArgument.verbatim("Image.Name required")
