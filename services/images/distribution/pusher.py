"""Pushes: from an image of the node to a registry.

Blobs go first, all at once within the process's budget; then the manifests that name them; then the indexes, the
innermost first: a registry accepts no document whose parts it lacks. If labels of a blob, or of the documents that name
it, say that another repository of the host has it, it is mounted from there, if the host allows that.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

from services.images.concurrency import threads
from services.images.concurrency.budget import Budget
from services.images.concurrency.gather import run_all
from services.images.distribution.progress import Tracker, reporting_waits
from services.images.distribution.source_labels import mountable
from services.images.distribution.transfer_client import client_of
from services.images.documents.graph import Walk
from services.images.registry import client as registry
from services.images.registry.upload import Pushed
from services.images.transfer import ImageStore, Node, Progress, Registry, Report
from services.images.waits import Board
from services.kit import errors, tracing
from services.oci import media_types, platforms
from services.oci.descriptors import Descriptor
from services.oci.references import Reference

MOUNTS = 3
"""Other repositories that are tried for a blob: each costs a request, and the first, whose name is most similar, is
nearly always right.
"""

_PIECE = 1 << 18


class RegistryPusher:
    """Makes pushes. There is one for the process."""

    def __init__(self, process: registry.Registry, budget: Budget) -> None:
        self._registry = process
        self._budget = budget

    async def push(self, source: ImageStore, destination: Registry, node: Node, report: Report) -> None:
        """See ``transfer.Pusher``. Errors name the host and the cause. NotFound also for a part that the node lacks;
        InvalidArgument for a reference with another digest than the image's.

        If the reference has a tag and the image's digest, the image is pushed under the tag.
        """
        image = await node.image(source.name)
        root = image.target
        reference, digest = Reference.parse(destination.reference), root.checked()
        if reference.digest not in (None, digest):
            raise errors.InvalidArgument(
                f"{destination.reference}: the image {image.name} has another digest, {digest}"
            )
        tracing.operation(**{"oci.manifest.digest": root.digest})
        reference = reference.at(digest)  # so that the tag names the root, and no other manifest
        report(Progress(f"Pushing to {destination}"))
        report(Progress("pushing content", image.name, descriptor=root))
        client = client_of(self._registry, destination)
        push = _Push(client, reference, node, self._budget, platforms.wanted(source.platforms))
        try:
            async with reporting_waits(Board(), report) as told:
                tracker = Tracker(image.name, "uploading", told, push.active, push.done)
                async with tracker.running():
                    await push.run(root, tracker)
        finally:
            push.tell_figures()
        pushed = Progress("pushed content", image.name, descriptor=root)
        # once more, since ctr shows a status only with the next event that has a name
        for each in (pushed, Progress(f"Completed push to {destination}", descriptor=root), pushed):
            report(each)


@dataclass(slots=True)
class _Parts:
    """The parts of an image, in the order in which they are named; each digest once."""

    blobs: dict[str, tuple[Descriptor, list[Mapping[str, str]]]] = field(default_factory=dict)
    """With their labels, and those of the documents that name them."""
    manifests: dict[str, Descriptor] = field(default_factory=dict)
    indexes: dict[str, Descriptor] = field(default_factory=dict)
    """Each after those that it names."""


class _Push:
    """One push."""

    def __init__(
        self, client: registry.Client, reference: Reference, node: Node, budget: Budget, wanted: platforms.Matcher
    ) -> None:
        self._client = client
        self._reference = reference
        self._node = node
        self._budget = budget
        self._wanted = wanted
        self._moving: dict[str, tuple[int, int]] = {}
        self._done: set[str] = set()
        self._layers: dict[str, bool] = {}
        """Whether the registry had a layer, by digest."""
        self._bytes = {True: 0, False: 0}
        """Bytes of the blobs and documents that it had, and of those that were sent."""

    def tell_figures(self) -> None:
        """Tell the operation's root span what was sent, and what was there."""
        tracing.operation(
            **{
                "splitd.bytes": self._bytes[False],
                "splitd.bytes.present": self._bytes[True],
                "splitd.layers": len(self._layers),
                "splitd.layers.present": sum(self._layers.values()),
            }
        )

    async def active(self) -> Mapping[str, tuple[int, int]]:
        """The blobs that are being sent, for the tracker."""
        return dict(self._moving)

    async def done(self, digest: str) -> bool:
        """Whether the blob is there, for the tracker."""
        return digest in self._done

    async def run(self, root: Descriptor, tracker: Tracker) -> None:
        """Push everything."""
        parts, walk = _Parts(), Walk(self._node)
        await self._find(root, (), parts, walk, tracker)
        await run_all(
            self._blob(number, blob, labels, tracker) for number, (blob, labels) in enumerate(parts.blobs.values())
        )
        await run_all(self._document(manifest, tracker) for manifest in parts.manifests.values())
        for index in parts.indexes.values():
            await self._document(index, tracker)

    async def _find(
        self, descriptor: Descriptor, above: Sequence[Mapping[str, str]], parts: _Parts, walk: Walk, tracker: Tracker
    ) -> None:
        if not walk.first(descriptor):
            return
        tracker.add(descriptor)
        labels = [*above, descriptor.annotations]
        with contextlib.suppress(errors.NotFound):  # the reader of the blob reports it
            labels.append((await self._node.info(descriptor.digest)).labels)
        manifest, index = media_types.is_manifest(descriptor.media_type), media_types.is_index(descriptor.media_type)
        if not manifest and not index:
            parts.blobs.setdefault(descriptor.digest, (descriptor, labels))
            return
        children = [
            child
            for child in await walk.children(descriptor)
            if child.platform is None or self._wanted.matches(child.platform)
        ]
        walk.follow(descriptor, children)
        tracker.children(descriptor, children)
        for child in children:
            await self._find(child, labels, parts, walk, tracker)
        (parts.manifests if manifest else parts.indexes).setdefault(descriptor.digest, descriptor)

    async def _blob(
        self, number: int, descriptor: Descriptor, labels: Sequence[Mapping[str, str]], tracker: Tracker
    ) -> None:
        async def read(offset: int) -> AsyncIterator[bytes]:
            async with self._node.reading(descriptor.digest) as fd:
                at = await threads.to_thread(_advance, fd, offset)
                while data := await threads.to_thread(os.read, fd, _PIECE):
                    at += len(data)
                    self._moving[descriptor.ref] = (at, descriptor.size)
                    yield data

        try:
            async with self._budget.upload(number):
                how = await self._client.push_blob(
                    self._reference, descriptor, read, mount_from=mountable(labels, self._reference, MOUNTS)
                )
        finally:
            self._moving.pop(descriptor.ref, None)
        self._finished(descriptor, tracker, existed=how is not Pushed.UPLOADED)

    async def _document(self, descriptor: Descriptor, tracker: Tracker) -> None:
        async with self._budget.document():
            existed = await self._client.exists(self._reference, descriptor)
            if not existed:
                await self._client.push_manifest(self._reference, descriptor, await self._node.document(descriptor))
        self._finished(descriptor, tracker, existed=existed)

    def _finished(self, descriptor: Descriptor, tracker: Tracker, *, existed: bool) -> None:
        self._done.add(descriptor.digest)
        self._bytes[existed] += descriptor.size
        if media_types.is_layer(descriptor.media_type):
            self._layers[descriptor.digest] = existed
        if existed:
            tracker.exists(descriptor)


def _advance(fd: int, offset: int) -> int:
    """Go to ``offset``; in a pipe by reading."""
    try:
        return os.lseek(fd, offset, os.SEEK_SET)
    except OSError:
        left = offset
        while left and (data := os.read(fd, min(left, _PIECE))):
            left -= len(data)
        return offset
