"""From layers to snapshots: each layer of an image unpacked on top of those below it, committed under its chain id.

A layer whose snapshot is there already is not unpacked again, and its blob is not even asked for. The others are unpacked in order: prepare a key of its own, ``extract-UNIQUE
CHAINID``, on the chain id below; apply the layer to its mounts, compare the diff id, commit. A snapshotter that can make the layer itself (stargz, nydus) says that it exists, because the label
``containerd.io/snapshot.ref`` told it the chain id; or it answers read-only mounts, which are committed as they are.

In the end the blob of each unpacked layer is labelled with its diff id, and the config's with the topmost chain id (``containerd.io/gc.ref.snapshot.NAME``), which is why the collector
keeps the snapshots as long as the image. Of transfers that unpack the same layer at once one does, and the others wait for it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from services.images import platforms
from services.images.oci import Config, Descriptor, chain_ids, is_config, is_layer
from services.images.platforms import OnlySystem
from services.images.transfer import UNCOMPRESSED, Node, Unpacking
from services.kit import errors, rpc, tracing
from services.kit.faults import fault
from services.kit.identifiers import quoted
from services.snapshots.store import Mount, Snapshotter

log = logging.getLogger(__name__)

SNAPSHOTTER = "overlayfs"
"""Where nobody asked for another."""

_REF = "containerd.io/snapshot.ref"
_DIFF_ID = "containerd.io/snapshot/diff-id"
_PARENT = "containerd.io/snapshot/parent-chain-id"
_INHERITED = "containerd.io/snapshot/"
_TRIES = 3

Available = Callable[[int], Awaitable[None]]
"""Returns when the blob of the layer of this number (0 is the lowest) is there. Asked in order and only for layers that are unpacked; whoever fetches may
take the first question as the time to begin with that layer and all above it."""

Extracting = Callable[[Descriptor, int], None]
"""Told how many of a layer's bytes are unpacked: 0 when it begins, its size when it is done."""


async def _is_there(_: int) -> None:
    """The ``Available`` of layers that are there from the start."""


def accepted(wanted: Sequence[Unpacking]) -> list[Unpacking]:
    """Of the unpackings that a client wants, those for what this machine runs, with their snapshotters. InvalidArgument if it wants only others."""
    machine = OnlySystem(platforms.default())
    found = [Unpacking(unpacking.platform, unpacking.snapshotter or SNAPSHOTTER) for unpacking in wanted if machine.matches(unpacking.platform)]
    if wanted and not found:
        raise errors.InvalidArgument("unable to initialize unpacker: no unpack platforms defined")
    return found


def parts(children: Sequence[Descriptor]) -> tuple[Descriptor | None, list[Descriptor]]:
    """Of a manifest's children the config of an image, if it has one, and the layers."""
    return next((c for c in children if is_config(c.media_type)), None), [c for c in children if is_layer(c.media_type)]


class Unpacker:
    """Unpacks images; one for the whole process, since it knows which layers are being unpacked."""

    def __init__(self) -> None:
        self._busy: dict[tuple[str, str, str], _Turn] = {}

    async def unpack(self, node: Node, config: Descriptor, layers: Sequence[Descriptor], wanted: Sequence[Unpacking], *,
                     available: Available = _is_there, extracting: Extracting | None = None) -> str:
        """Unpack ``layers``, lowest first, as ``wanted`` (:func:`accepted`) says for the platform of ``config``, whose blob is there.

        The answer is the topmost chain id; "" where the image is for another system, and nothing was done: then nobody was asked whether layers are available.
        """
        with tracing.span("images.unpack", config=config.digest) as span:
            what = Config.parse(await node.document(config), config.digest)
            if len(layers) != len(what.diff_ids):
                raise errors.Unknown(f"number of layers and diffIDs don't match: {len(layers)} != {len(what.diff_ids)}")
            if not wanted or what.kind not in ("", "layers") or not OnlySystem(platforms.default()).matches(what.platform):
                return ""
            name = wanted[0].snapshotter
            span.set(snapshotter=name)
            chain = ["", *chain_ids(what.diff_ids)]
            for number, (layer, diff_id) in enumerate(zip(layers, what.diff_ids, strict=True)):
                async with self._alone(node.namespace, name, chain[number + 1]):
                    await _Extraction(node, name, layer, diff_id, chain[number], chain[number + 1]).run(number, available, extracting)
            fault("images.unpacked")
            await node.label(config.digest, {f"containerd.io/gc.ref.snapshot.{name}": chain[-1]})
            return chain[-1]

    @contextlib.asynccontextmanager
    async def _alone(self, namespace: str, snapshotter: str, chain_id: str) -> AsyncIterator[None]:
        key = (namespace, snapshotter, chain_id)
        turn = self._busy.setdefault(key, _Turn())
        turn.wanted += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.wanted -= 1
            if not turn.wanted:
                del self._busy[key]


class _Turn:
    """Whose turn it is at a chain id, and how many want one."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.wanted = 0


class _Extraction:
    """One layer on its way to being a snapshot."""

    def __init__(self, node: Node, snapshotter: str, layer: Descriptor, diff_id: str, parent: str, chain_id: str) -> None:
        self._node = node
        self._name = snapshotter
        self._snapshotter: Snapshotter = node.snapshotter(snapshotter)
        self._layer = layer
        self._diff_id = diff_id
        self._parent = parent
        self._chain_id = chain_id
        self._key = ""

    async def run(self, number: int, available: Available, extracting: Extracting | None) -> None:
        labels = {key: value for key, value in self._layer.annotations.items() if key == _REF or key.startswith(_INHERITED)}
        labels |= {_REF: self._chain_id, _DIFF_ID: self._diff_id} | ({_PARENT: self._parent} if self._parent else {})
        mounts = await self._prepared(labels)
        if mounts is None:
            return
        staged = bool(mounts) and "ro" in mounts[-1].options
        try:
            if not staged:
                await available(number)
                await self._applied(mounts, extracting)
            await self._committed(labels)
        except BaseException:
            await rpc.shielded(self._removed())
            raise
        if not staged:
            await self._node.label(self._layer.digest, {UNCOMPRESSED: self._diff_id})

    async def _prepared(self, labels: dict[str, str]) -> list[Mount] | None:
        """Mounts to unpack onto; None where the snapshot is there, or was made for us."""
        for attempt in range(_TRIES):
            self._key = f"extract-{_unique()} {self._chain_id}"
            try:
                return await self._snapshotter.prepare(self._key, self._parent, labels)
            except errors.AlreadyExists:
                try:
                    await self._snapshotter.stat(self._chain_id)
                    return None
                except errors.NotFound:
                    if attempt == _TRIES - 1:
                        break
            except errors.NodeError as error:
                raise _explained(error, f"failed to prepare extraction snapshot {quoted(self._key)}") from None
        raise errors.AlreadyExists(f"unable to prepare extraction snapshot: snapshot {quoted(self._key)}")

    async def _applied(self, mounts: Sequence[Mount], extracting: Extracting | None) -> None:
        if extracting is not None:
            extracting(self._layer, 0)
        try:
            found = await self._node.apply(self._layer, mounts)
        except errors.NodeError as error:
            what = f"{self._layer.media_type} {self._layer.digest}"
            raise _explained(error, f"failed to extract layer ({what}) to {self._name} as {quoted(self._key)}") from None
        if found != self._diff_id:
            raise errors.Unknown(f"wrong diff id {quoted(found)} calculated on extraction {quoted(self._diff_id)}, desc {quoted(self._layer.digest)}")
        if extracting is not None:
            extracting(self._layer, self._layer.size)

    async def _committed(self, labels: dict[str, str]) -> None:
        try:
            await self._snapshotter.commit(self._chain_id, self._key, labels)
        except errors.AlreadyExists:  # somebody else's client unpacked it meanwhile
            await self._removed()
        except errors.NodeError as error:
            raise _explained(error, f"failed to commit snapshot {self._key}") from None

    async def _removed(self) -> None:
        try:
            await self._snapshotter.remove(self._key)
        except errors.NotFound:
            pass
        except errors.NodeError as error:
            log.error("failed to cleanup %s: %s", quoted(self._key), error)


def _explained(error: errors.NodeError, what: str) -> errors.NodeError:
    return type(error).verbatim(f"{what}: {error}", error.trailers)


def _unique() -> str:
    return f"{time.time_ns() % 10**9}-{base64.urlsafe_b64encode(os.urandom(3)).decode()}"
