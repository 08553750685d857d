"""From layers to snapshots: each layer of an image is unpacked on top of those below it and committed under its chain
id.

A layer whose snapshot exists is not unpacked again, and its blob is not even fetched. For each other layer: prepare a
key of its own, ``extract-UNIQUE CHAINID``; apply the layer to its mounts while its blob arrives; compare the diff id;
commit once the snapshot below is committed.

If the snapshotter has the capability ``rebase``, as overlayfs and erofs have, layers are unpacked side by side: each
*alone*, on no parent, and the commit sets the parent (``chain.py``); if that is refused, since the node put the two
into different backends, the layer is unpacked once more. Before the commit, directories that the layer uses but does
not name get owners and modes from the layers below (``snapshots/diff/inherit.py``; erofs does it by itself). A layer
for which that comes too late is unpacked once more, on the layers below it. Without the capability, each layer is
prepared on the chain id below once that exists.

A snapshotter that can make the layer itself (stargz, nydus) answers that it exists, since the label
``containerd.io/snapshot.ref`` told it the chain id; or it answers read-only mounts, which are committed as they are.
Our own can if they have the same layer. overlayfs may have it on another parent (``snapshots/sharing.py``). So a layer
whose diff id is there already waits until the one below is committed, and is prepared on that; the others are unpacked
meanwhile. Once that was in vain, no other layer of the image waits. erofs needs no parent for it: it answers read-only
mounts.

At the end, the blob of each unpacked layer is labelled with its diff id, and the config's blob with the topmost chain
id (``containerd.io/gc.ref.snapshot.NAME``). Because of that label the collector keeps the snapshots as long as the
image. If several transfers want to unpack the same layer at once, one does it and the others wait for it.
"""

from __future__ import annotations

import base64
import logging
import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from services.images.concurrency.budget import Budget
from services.images.concurrency.gather import run_all
from services.images.concurrency.keyed_locks import KeyedLocks
from services.images.concurrency.stagger import may_start
from services.images.documents.blobs import config_of
from services.images.documents.manifests import Config
from services.images.layers.blobs import Blobs, CompleteBlobs
from services.images.layers.chain import Chain
from services.images.layers.labels import Labels
from services.images.transfer import IngestRestarted, NeedsLowerLayers, Node, Unpacking, UnpackModes
from services.kit import errors, rpc, tracing
from services.kit.faults import fault
from services.kit.identifiers import quoted
from services.oci import platforms
from services.oci.descriptors import Descriptor
from services.oci.digests import Digest, chain_ids
from services.oci.media_types import is_config, is_layer
from services.oci.mounts import Mount
from services.oci.platforms import EROFS, OnlySystem
from services.snapshots.diff.inherit import Unnamed
from services.snapshots.diff.media import UNCOMPRESSED
from services.snapshots.store import DIFF_ID, GID_MAPPING, TARGET, UID_MAPPING, UPPERDIR, Kind, Snapshotter

log = logging.getLogger(__name__)

SNAPSHOTTER = "overlayfs"
"""The snapshotter if the client asked for none."""

_PARENT = "containerd.io/snapshot/parent-chain-id"
_INHERITED = "containerd.io/snapshot/"
_LAYERS = f"{_INHERITED}cri.image-layers"
_NOT_THE_IMAGES = frozenset({UID_MAPPING, GID_MAPPING, UPPERDIR, TARGET, DIFF_ID, _PARENT, f"{_INHERITED}max-size"})
"""Labels of snapshots that only the node and its clients may set. An image must not choose the host's ids that own its
files (containerd drops these since 2.4.1), nor state facts that only we know.
"""
_LABEL_LIMIT = 4096
"""Bytes of a label's key and value."""
_TRIES = 3
_NAMED = 4
"""Reasons that an error names."""


Extracting = Callable[[Descriptor, int], None]
"""Called with the number of unpacked bytes of a layer: 0 when it begins, its size when it is done."""


class Origin(NamedTuple):
    """The origin of an image: its reference, and the digest of its manifest. stargz and similar snapshotters use it to
    fetch layers (containerd's docs/cri/config.md, on snapshot annotations).
    """

    reference: str
    manifest: str

    def annotated(self, layers: Sequence[Descriptor]) -> list[Descriptor]:
        """The layers with annotations of their origin, which become labels of their snapshots. Each also has the
        digests of itself and the layers above it, as many as fit into a label.
        """
        found = []
        for number, layer in enumerate(layers):
            above, room = list[str](), _LABEL_LIMIT - len(_LAYERS) + 1
            for each in layers[number:]:
                room -= len(each.digest) + 1
                if room < 0:
                    break
                above.append(each.digest)
            found.append(
                replace(
                    layer,
                    annotations={
                        **layer.annotations,
                        f"{_INHERITED}cri.image-ref": self.reference,
                        f"{_INHERITED}cri.manifest-digest": self.manifest,
                        f"{_INHERITED}cri.layer-digest": layer.digest,
                        _LAYERS: ",".join(above),
                    },
                )
            )
        return found


def parts(children: Sequence[Descriptor]) -> tuple[Descriptor | None, list[Descriptor]]:
    """The image's config among a manifest's children, if there is one, and the layers."""
    return next((c for c in children if is_config(c.media_type)), None), [c for c in children if is_layer(c.media_type)]


class Unpacker:
    """Unpacks images. There is one for the process, since it knows which layers are being unpacked. Only ``supported``
    unpackings are made; empty: any.
    """

    def __init__(self, budget: Budget | None = None, supported: Sequence[Unpacking] = ()) -> None:
        self._budget = budget or Budget()
        self._supported = supported
        self._locks = KeyedLocks("the unpacking of the same layer")

    def accepted(self, wanted: Sequence[Unpacking]) -> list[Unpacking]:
        """Those unpackings that a client wants and this machine can run, with their snapshotters. InvalidArgument if it
        wants only others.
        """
        refused: list[str] = []
        found = [taken for each in wanted if (taken := self._accepted(each, refused)) is not None]
        if wanted and not found:
            why = "".join(f": {each}" for each in refused[:_NAMED])
            raise errors.InvalidArgument(f"unable to initialize unpacker: no unpack platforms defined{why}")
        return found

    def _accepted(self, wanted: Unpacking, refused: list[str]) -> Unpacking | None:
        if not platforms.runs(wanted.platform):
            return None
        if not self._supported:
            usual = EROFS if EROFS in wanted.platform.os_features else SNAPSHOTTER
            return Unpacking(wanted.platform, wanted.snapshotter or usual)
        able = [each.snapshotter for each in self._supported if OnlySystem(each.platform).matches(wanted.platform)]
        usual = SNAPSHOTTER if SNAPSHOTTER in able else next(iter(able), "")
        name = wanted.snapshotter or usual
        if name in able:
            return Unpacking(wanted.platform, name)
        allowed = ", ".join(able) or "nothing for this platform"
        refused.append(
            f"{wanted.platform} is not unpacked by {name or 'any snapshotter'}: unpack_config allows {allowed}"
        )
        log.warning("%s", refused[-1])
        return None

    async def unpack(
        self,
        node: Node,
        config: Descriptor,
        layers: Sequence[Descriptor],
        wanted: Sequence[Unpacking],
        *,
        blobs: Blobs | None = None,
        extracting: Extracting | None = None,
        origin: Origin | None = None,
        how: UnpackModes | None = None,
    ) -> str:
        """Unpack ``layers``, lowest first, as ``wanted`` (:func:`accepted`) says for the platform of ``config``, whose
        blob exists, or which brings its bytes. ``origin``: the registry that they come from, if any. ``how`` layers can
        be unpacked, if the caller has asked the node already.

        Returns the topmost chain id. It is "" if the image is for another system; then nothing was done, and no layer
        was wanted.
        """
        with tracing.span("images.unpack") as span:
            try:
                what = await _checked(node, config)
                if len(layers) != len(what.diff_ids):
                    raise errors.Unknown(
                        f"image config {config.digest}: number of layers and diffIDs don't match: {len(layers)} != "
                        f"{len(what.diff_ids)}"
                    )
            # an error about the document, which does not say whose it is
            except (errors.Unknown, errors.InvalidArgument, errors.ResourceExhausted) as error:
                raise _explained(error, origin.reference) if origin is not None else error from None
            if not wanted or what.kind not in ("", "layers") or not platforms.runs(what.platform):
                return ""
            name = wanted[0].snapshotter
            chain = chain_ids(what.diff_ids)
            how = how or await node.unpacks(name)
            blobs = blobs or CompleteBlobs()
            if how.wants_origin and origin is not None:
                layers = origin.annotated(layers)
            span.put({"splitd.snapshotter": name, "splitd.side_by_side": how.side_by_side})
            tracing.operation(**{"splitd.snapshotter": name})
            stack = _Stack(
                node,
                name,
                node.snapshotter(name),
                how.follows,
                how.shares,
                how.wants_origin,
                blobs,
                extracting or _no_extracting,
                self._locks,
                self._budget,
                [
                    _Layer(number, *each)
                    for number, each in enumerate(zip(layers, what.diff_ids, chain, ["", *chain[:-1]], strict=True))
                ],
                Labels(node),
            )
            await run_all([stack.unpacked(config, side_by_side=how.side_by_side), stack.labels.run()])
            tracing.operation(**{"splitd.layers": len(chain), "splitd.layers.present": len(chain) - len(stack.made)})
            return chain[-1]


async def _checked(node: Node, config: Descriptor) -> Config:
    """The config, with valid diff ids, which become part of snapshots' names. Unknown or InvalidArgument."""
    found = await config_of(node, config)
    for diff_id in found.diff_ids:
        try:
            Digest.parse(diff_id)
        except ValueError as error:
            raise errors.InvalidArgument(
                f"image config {config.digest}: diff id {quoted(diff_id[:100])}: {error}"
            ) from None
    return found


def _no_extracting(_: Descriptor, __: int) -> None:
    """The ``Extracting`` of a caller that does not need it."""


class _Layer(NamedTuple):
    """A layer, numbered from the lowest (0) on, and the names of its snapshot and of the one below."""

    number: int
    descriptor: Descriptor
    diff_id: str
    chain_id: str
    parent: str

    def span(self) -> tracing.Span:
        """The span in which it becomes a snapshot."""
        about: dict[str, str | int] = {
            "oci.layer.digest": self.descriptor.digest,
            "splitd.layer": self.number,
            "splitd.size": self.descriptor.size,
        }
        return tracing.span("unpack.layer", **about)


class _Made(NamedTuple):
    """The directories of a layer; if it was not made alone, also those of the layers below it, topmost first."""

    directories: list[str]
    alone: bool


@dataclass(frozen=True, slots=True)
class _Stack:
    """The layers of one image on their way to being snapshots."""

    node: Node
    name: str
    snapshotter: Snapshotter
    follows: bool
    """Layers may be read while they arrive."""
    shares: bool
    """The snapshotter may share a layer that is there on another parent."""
    remote: bool
    """The snapshotter may fetch layers itself: those that it makes need no blob."""
    blobs: Blobs
    extracting: Extracting
    locks: KeyedLocks
    budget: Budget
    layers: Sequence[_Layer]
    labels: Labels
    made: dict[int, _Made] = field(default_factory=dict)
    """The layers that are made here, by number."""

    def below(self, number: int) -> list[str] | None:
        """The directories of all layers below one, topmost first. None if not all are known, since another transfer
        made some of them.
        """
        found: list[str] = []
        for each in reversed(range(number)):
            if each not in self.made:
                return None
            found += self.made[each].directories
            if not self.made[each].alone:
                return found
        return None

    async def unpacked(self, config: Descriptor, *, side_by_side: bool) -> None:
        """Make the layers of the image with this config, and add what labels its blobs get."""
        await (self.side_by_side() if side_by_side and len(self.layers) > 1 else self.in_order())
        fault("images.unpacked")
        await self.blobs.config_there()
        self.labels.add(config.digest, {f"containerd.io/gc.ref.snapshot.{self.name}": self.layers[-1].chain_id})
        self.labels.end()

    async def in_order(self) -> None:
        """Make each layer once the one below it is committed."""
        for layer in self.layers:
            with layer.span():
                async with self.locks.held((self.node.namespace, self.name, layer.chain_id)):
                    await _Extraction(self, layer).run()
        if self.layers:
            await self._check_kept(self.layers[-1])

    async def side_by_side(self) -> None:
        """Make all missing layers at once, within the budget, on top of an existing one."""
        first = await self._missing()
        if first:  # this puts the existing layer under the lease, or makes it again if it was removed meanwhile
            existing = self.layers[first - 1]
            with existing.span():
                async with self.locks.held((self.node.namespace, self.name, existing.chain_id)):
                    await _Extraction(self, existing).run()
            await self._check_kept(existing)
        if first == len(self.layers):
            return
        self.blobs.wanted(first)
        self.node.expect()
        chain = Chain(first, len(self.layers))
        there = await self._there({layer.diff_id for layer in self.layers[first + 1 :] if self.shares})
        await run_all(
            [
                chain.run(),
                *(
                    self._chained(layer, chain, turn, shared=bool(turn) and layer.diff_id in there)
                    for turn, layer in enumerate(self.layers[first:])
                ),
            ]
        )

    async def _there(self, diff_ids: Collection[str]) -> Collection[str]:
        """Those of the layers ``diff_ids`` that the namespace has, on whatever layers below."""
        if not diff_ids:
            return ()
        selecting = [f'labels."{DIFF_ID}"=={diff_id}' for diff_id in sorted(diff_ids)]
        return {
            info.labels.get(DIFF_ID, "")
            async for info in self.snapshotter.list(selecting)
            if info.kind is Kind.COMMITTED
        }

    async def _check_kept(self, layer: _Layer) -> None:
        """FailedPrecondition if a layer whose record exists is missing: its snapshotter has lost it. If it exists,
        those below it do.
        """
        if layer.number in self.made:
            return
        try:
            await self.snapshotter.usage(layer.chain_id)
        except errors.NotFound as error:
            raise errors.FailedPrecondition(
                f"layer {layer.descriptor.digest}: {error}: splitd gc --release forgets what was lost, then pull again"
            ) from None
        except errors.Unimplemented:
            return

    async def _chained(self, layer: _Layer, chain: Chain, turn: int, *, shared: bool) -> None:
        with layer.span() as span:
            chain.made_by(layer.number, span.ref())
            await may_start(turn)
            async with self.locks.held((self.node.namespace, self.name, layer.chain_id)):
                shared = shared and await chain.may_share(layer.number)
                await _Extraction(self, layer, chain).run(alone=turn > 0 and not shared, shared=shared)

    async def _missing(self) -> int:
        """The number of the lowest missing layer: mostly the lowest of all, or none."""
        count = len(self.layers)
        if not await self._is_there(0):
            return 0
        if await self._is_there(count - 1):
            return count
        low, high = 1, count - 1
        while low < high:
            middle = (low + high) // 2
            if await self._is_there(middle):
                low = middle + 1
            else:
                high = middle
        return low

    async def _is_there(self, number: int) -> bool:
        try:
            await self.snapshotter.stat(self.layers[number].chain_id)
        except errors.NotFound:
            return False
        return True


class _Extraction:
    """One layer on its way to being a snapshot."""

    def __init__(self, stack: _Stack, layer: _Layer, chain: Chain | None = None) -> None:
        """``chain`` is the chain to which the layer belongs; without one, the layer below exists already."""
        self._chain = chain or Chain(layer.number, layer.number)
        self._stack = stack
        self._node = stack.node
        self._snapshotter = stack.snapshotter
        self._layer = layer
        self._descriptor = layer.descriptor
        self._key = ""
        labels = {
            key: value
            for key, value in layer.descriptor.annotations.items()
            if key.startswith(_INHERITED) and key not in _NOT_THE_IMAGES
        }
        self._labels = (
            labels
            | {TARGET: layer.chain_id, DIFF_ID: layer.diff_id}
            | ({_PARENT: layer.parent} if layer.parent else {})
        )

    async def run(self, *, alone: bool = False, shared: bool = False) -> None:
        """Make the snapshot. ``alone``: without waiting for the layer below. ``shared``: the layer is there on others,
        so the snapshotter may be able to make it.
        """
        while True:
            try:
                await self._run(alone=alone, shared=shared)
                return
            except IngestRestarted:  # as often as the fetch is restarted: a few times at most
                await self._stack.blobs.there(self._layer.number)
            except NeedsLowerLayers:
                alone = False
                await self._chain.wait_committed_below(self._layer.number)

    async def _run(self, *, alone: bool, shared: bool = False) -> None:
        layer, chain = self._layer, self._chain
        mounts = await self._prepared("" if alone else layer.parent)
        if mounts is None:
            chain.complete(layer.number)
            await chain.commit(layer.number, None)
            return
        if shared:  # in vain: as the others, it is unpacked without waiting for those below
            chain.share_no_more()
            await self._removed(self._key)
            await self._run(alone=True)
            return
        self._stack.made[layer.number] = _Made(_directories(mounts), alone=alone)
        # a snapshotter that rebases in another way than overlayfs
        if alone and not (len(mounts) == 1 and mounts[0].type == "bind"):
            await self._removed(self._key)
            await chain.wait_committed_below(layer.number)
            await self._run(alone=False)
            return
        staged = _is_staged(mounts)
        unnamed: Sequence[Unnamed] = ()
        try:
            if not staged:
                unnamed = await self._applied(mounts, alone=alone)
                await self._stack.blobs.there(layer.number)
            elif not self._stack.remote:
                self._stack.blobs.wanted(layer.number)
            await chain.wait_complete_below(layer.number)
            if unnamed:
                await self._inherited(mounts, unnamed)
            chain.complete(layer.number)
            await chain.commit(layer.number, lambda: self._committed(layer.parent if alone else ""))
        except BaseException:
            await rpc.shielded(self._removed(self._key))
            raise
        if not staged:
            self._stack.labels.add(self._descriptor.digest, {UNCOMPRESSED: layer.diff_id})

    async def _prepared(self, parent: str) -> list[Mount] | None:
        """Mounts to unpack onto; None if the snapshot exists, or the snapshotter made it."""
        chain_id = self._layer.chain_id
        for attempt in range(_TRIES):
            self._key = f"extract-{_unique()} {chain_id}"
            try:
                return await self._snapshotter.prepare(self._key, parent, self._labels)
            except errors.AlreadyExists:
                try:
                    await self._snapshotter.stat(chain_id)
                    return None
                except errors.NotFound:
                    if attempt == _TRIES - 1:
                        break
            except errors.NodeError as error:
                raise _explained(error, f"failed to prepare extraction snapshot {quoted(self._key)}") from None
        raise errors.AlreadyExists(f"unable to prepare extraction snapshot: snapshot {quoted(self._key)}")

    async def _applied(self, mounts: Sequence[Mount], *, alone: bool) -> Sequence[Unnamed]:
        """Unpack the layer. Returns the directories for :meth:`_inherited`."""
        layer, blobs = self._descriptor, self._stack.blobs
        blobs.wanted(self._layer.number)
        await (blobs.begun if self._stack.follows else blobs.there)(self._layer.number)
        async with self._stack.budget.unpacking(self._layer.number):
            self._stack.extracting(layer, 0)
            try:
                async with blobs.ingest(self._layer.number) as ingest:
                    applied = await self._node.apply(layer, mounts, ingest=ingest, alone=alone)
            except errors.NodeError as error:
                what = f"{layer.media_type} {layer.digest}"
                raise _explained(
                    error, f"failed to extract layer ({what}) to {self._stack.name} as {quoted(self._key)}"
                ) from None
        if applied.diff_id != self._layer.diff_id:
            raise errors.Unknown(
                f"wrong diff id {quoted(applied.diff_id)} calculated on extraction {quoted(self._layer.diff_id)}, desc "
                f"{quoted(layer.digest)}"
            )
        self._stack.extracting(layer, layer.size)
        return applied.unnamed

    async def _inherited(self, mounts: Sequence[Mount], unnamed: Sequence[Unnamed]) -> None:
        """Give the directories that the layer uses but does not name their attributes in the layers below, which are
        complete now.
        """
        number = self._layer.number
        try:
            if (below := self._stack.below(number)) is not None:
                try:
                    await self._node.inherit(mounts, below, unnamed)
                except errors.NodeError:
                    if self._stack.below(number) is not None:
                        raise
                if self._stack.below(number) is not None:  # otherwise another transfer's layer replaces one of them
                    return
            await self._chain.wait_committed_below(number)
            await self._node.inherit(mounts, await self._viewed(), unnamed)
        except errors.NodeError as error:
            raise _explained(
                error, f"failed to chain layer {self._descriptor.digest} to {quoted(self._layer.parent)}"
            ) from None

    async def _viewed(self) -> list[str]:
        """The directories of the layers below, if another transfer made one of them. They stay when the view is
        removed: the parent is under the lease.
        """
        key = f"inherit-{_unique()} {self._layer.chain_id}"
        try:
            return _directories(await self._snapshotter.view(key, self._layer.parent))
        finally:
            await rpc.shielded(self._removed(key))

    async def _committed(self, parent: str) -> None:
        """Commit the snapshot; on ``parent``, if it was prepared on none."""
        try:
            await self._snapshotter.commit(self._layer.chain_id, self._key, self._labels, parent)
        except errors.AlreadyExists:  # another client unpacked it meanwhile
            del self._stack.made[self._layer.number]
            await self._removed(self._key)
        except errors.NodeError as error:
            if isinstance(error, errors.FailedPrecondition) and parent and await self._is_there(parent):
                await self._committed_on_parent()
                return
            raise _explained(error, f"failed to commit snapshot {self._key}") from None

    async def _is_there(self, name: str) -> bool:
        try:
            await self._snapshotter.stat(name)
        except errors.NotFound:
            return False
        return True

    async def _committed_on_parent(self) -> None:
        """Unpack the layer again, now on the one below: the node made the two in different places, so this one cannot
        be put onto that one.
        """
        number = self._layer.number
        del self._stack.made[number]  # who reads its directories looks for others
        await self._removed(self._key)
        mounts = await self._prepared(self._layer.parent)
        if mounts is not None:
            self._stack.made[number] = _Made(_directories(mounts), alone=False)
            if not _is_staged(mounts):
                await self._applied(mounts, alone=False)
            await self._committed("")

    async def _removed(self, key: str) -> None:
        try:
            await self._snapshotter.remove(key)
        except errors.NotFound:
            pass
        except errors.NodeError as error:
            log.error("failed to cleanup %s: %s", quoted(key), error)


def _is_staged(mounts: Sequence[Mount]) -> bool:
    """Whether the snapshotter made the layer."""
    return bool(mounts) and "ro" in mounts[-1].options


def _directories(mounts: Sequence[Mount]) -> list[str]:
    """The directories of the layers in a snapshot's mounts, topmost first."""
    found = []
    for mount in mounts:
        if mount.type == "bind":
            found.append(mount.source)
        for name in ("upperdir=", "lowerdir="):
            found += [
                directory
                for option in mount.options
                if option.startswith(name)
                for directory in option.removeprefix(name).split(":")
            ]
    return found


def _explained(error: errors.NodeError, what: str) -> errors.NodeError:
    return type(error).verbatim(f"{what}: {error}", error.trailers)


def _unique() -> str:
    return f"{time.time_ns() % 10**9}-{base64.urlsafe_b64encode(os.urandom(3)).decode()}"
