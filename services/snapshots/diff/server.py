"""containerd.services.diff.v1.Diff: unpacks layers onto mounts, and makes layers of the difference between mounts.

Words. A *layer* is a tar stream of changes. Its *diff id* is the digest of the uncompressed stream. The blob with the
layer may be compressed and has a digest of its own. *Apply* unpacks the blob that a descriptor names onto mounts (those
of a snapshot that is being made). It answers the layer's descriptor, whose digest is the diff id; the client compares
it with the image's config. *Diff* makes a layer of the difference between two lists of mounts, of which ``left`` is the
older, and commits it as a blob of the caller's.

Both are separate from the snapshotters on purpose. They see only mounts and blobs, as any client could, so they work on
the mounts of every snapshotter. Blobs belong to the caller's namespace and are reached through the gateway. Programs do
the work (``apply``, ``compare``), because it needs root directories, namespaces and cores of its own.
"""

from __future__ import annotations

import base64
import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from api.containerd.services.diff.v1 import diff_pb2 as pb
from api.containerd.services.diff.v1 import diff_stubs
from api.containerd.types import descriptor_pb2
from services.content import blobs_remote as blobs
from services.kit import errors, tracing
from services.kit.faults import fault
from services.kit.rpc import Call
from services.kit.timestamps import time_from_pb
from services.oci import media_types
from services.oci.mounts import Mount
from services.oci.mounts_convert import mounts_from_pb
from services.snapshots.diff import media, workers
from services.snapshots.diff.ahead import Ahead
from services.snapshots.diff.mounts import read_only, to_arguments
from services.snapshots.diff.workers import Applied


class Giver(Protocol):
    """A snapshotter that can put layers which are there into its snapshots (``services/snapshots/directories.py``)."""

    def number_of(self, changes: str) -> int | None:
        """The id of the snapshot whose changes are in a directory; None if that is no snapshot's."""
        ...

    async def give(self, number: int, diff_id: str, *, image: bool) -> int | None:
        """Put a layer into it. Returns its size, or None."""
        ...


class DiffServicer:
    """Diff over the gateway at ``gateway_socket``. ``scratch`` is a directory, created if needed, on which workers
    mount (in their namespaces), and where layers are unpacked ahead. ``sync_commit``: as for the snapshotters.
    """

    SERVICE = diff_stubs.DIFF

    def __init__(
        self, gateway_socket: Path, scratch: Path, *, sync_commit: bool = True, givers: Sequence[Giver] = ()
    ) -> None:
        """``givers`` are asked for layers that need not be unpacked once more."""
        self._givers = givers
        self._gateway = blobs.channel(gateway_socket)
        self._blobs = blobs.Blobs(self._gateway)
        self._left = scratch / "left"
        self._right = scratch / "right"
        for directory in (self._left, self._right):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._appliers = workers.Appliers(str(self._right))
        self._ahead = Ahead(self._appliers, self._blobs, scratch / "ahead", sync=sync_commit)

    async def close(self) -> None:
        """End the programs, and close the channel to the gateway."""
        await self._ahead.aclose()
        await self._appliers.aclose()
        await self._gateway.close()

    async def Apply(self, request: pb.ApplyRequest, call: Call) -> pb.ApplyResponse:
        layer, headers, target = request.diff, call.passed_on(), mounts_from_pb(request.mounts)
        with tracing.span("diff.apply", **{"oci.layer.digest": layer.digest}):
            async with contextlib.AsyncExitStack() as held:
                with _explained("failed to get reader from content store"):
                    file = await held.enter_async_context(self._blobs.reading(layer.digest, headers))
                detect, image = media.may_be_compressed(layer.media_type), media.is_image(layer.media_type)
                applied = None
                if not (image or request.sync_fs):
                    ahead = self._ahead.around(layer.digest, target, headers, detect=detect)
                    applied = await (await held.enter_async_context(ahead))()
                if applied is None and not request.sync_fs:
                    applied = await self._given(layer, target, headers, detect=detect, image=image)
                if applied is None:
                    applied = await self._appliers.apply(target, file, detect=detect, image=image, sync=request.sync_fs)
        return pb.ApplyResponse(
            applied=descriptor_pb2.Descriptor(
                media_type=media_types.EROFS_LAYER if image else media_types.LAYER,
                digest=applied.diff_id,
                size=applied.size,
            )
        )

    async def _given(
        self,
        layer: descriptor_pb2.Descriptor,
        target: Sequence[Mount],
        headers: blobs.Headers,
        *,
        detect: bool,
        image: bool,
    ) -> Applied | None:
        """A layer that its namespace has already, put into the target by the snapshotter whose snapshot that is. None
        if it must be unpacked.

        The blob's label says which layer it is. If the label is wrong, the answer has a diff id that the image's config
        does not name, and the client refuses it; or one that the config names, and the client gets that layer.
        """
        changes = _changes(target)
        for giver in self._givers if changes else ():
            if (number := giver.number_of(changes)) is None:
                continue
            diff_id = layer.digest
            if detect:
                with _explained("failed to get info from content store"):
                    diff_id = (await self._blobs.info(layer.digest, headers)).labels.get(media.UNCOMPRESSED, "")
            if not diff_id:
                return None
            with tracing.span("diff.give", **{"splitd.diff_id": diff_id}) as span:
                size = await giver.give(number, diff_id, image=image)
                span.put({"splitd.given": size is not None})
            if size is not None:
                fault("diff.given")
            return None if size is None else Applied(diff_id, size)
        return None

    async def Diff(self, request: pb.DiffRequest, call: Call) -> pb.DiffResponse:
        media_type = request.media_type or media_types.LAYER_GZIP
        compression = media.compression_of(media_type)
        headers = call.passed_on()
        ref = request.ref or _unique_ref()
        bound = str(time_from_pb(request.source_date_epoch)) if request.HasField("source_date_epoch") else "-"
        labels = dict(request.labels)
        with tracing.span("diff.diff", **{"splitd.ref": ref}):
            try:
                async with contextlib.AsyncExitStack() as held:
                    with _explained("failed to open writer"):
                        ingest = await held.enter_async_context(self._blobs.writing(ref, headers))
                    left = to_arguments(mounts_from_pb(request.left))
                    digest, size, diff_id = await workers.compare(
                        compression,
                        bound,
                        str(self._left),
                        str(self._right),
                        str(len(left)),
                        *left,
                        *to_arguments(read_only(mounts_from_pb(request.right))),
                        file=ingest.fd,
                        started=ingest.handed_over,
                    )
                    fault("diff.before-commit")
                    if compression != "plain":
                        labels[media.UNCOMPRESSED] = diff_id
                    with _explained("failed to commit"), contextlib.suppress(errors.AlreadyExists):
                        await ingest.commit(digest, int(size), labels)
            except BaseException:
                if not request.ref:
                    await self._blobs.abort(ref, headers)
                raise
            with _explained("failed to get info from content store"):
                info = await self._blobs.info(digest, headers)
            if compression != "plain" and media.UNCOMPRESSED not in info.labels:
                with _explained("error setting uncompressed label"):
                    await self._blobs.label(digest, media.UNCOMPRESSED, diff_id, headers)
        return pb.DiffResponse(diff=descriptor_pb2.Descriptor(media_type=media_type, digest=digest, size=info.size))


def _changes(target: Sequence[Mount]) -> str:
    """The directory into which a layer for a target goes, as it is that of a snapshot; "" if that is not known."""
    if not target or "ro" in target[-1].options:
        return ""
    if target[-1].type.rpartition("/")[2] == "overlay":  # others before it are layers that it stands on
        return target[-1].option("upperdir")
    return target[0].source if len(target) == 1 else ""


def _unique_ref() -> str:
    return f"{time.time_ns()}-{base64.urlsafe_b64encode(os.urandom(3)).decode()}"


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Prefix the errors of the block with ``what`` failed, as containerd does."""
    try:
        yield
    except errors.NodeError as error:
        raise type(error).verbatim(f"{what}: {error}", error.trailers) from None
