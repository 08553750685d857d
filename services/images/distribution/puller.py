"""Pulls: from a registry to an image of the node.

1. The name is resolved to a digest; from then on everything is named by digest. Verifiers (``verifiers.py``) are asked
   whether the image may be pulled.
2. The documents are walked from the top. Each is fetched and labelled with what it refers to; those of its children
   that the destination wants are walked, all at once (``documents/graph.py``).
3. The layers of an image are also fetched at once, within the process's budget, the lowest first. If the image is to
   be unpacked, each layer is unpacked while it arrives; layers whose snapshots exist are not even fetched.
4. The images are stored under the names that the destination gives.

A pull that fails or is cancelled stops all of this at once. The bytes of its unfinished blobs stay for a day, and can
be resumed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from services.images import names
from services.images.concurrency.budget import Gate
from services.images.concurrency.gather import for_each, run_all
from services.images.concurrency.stagger import may_start
from services.images.distribution.fetcher import Begun, Fetched, Fetcher, no_follower
from services.images.distribution.progress import Tracker, reporting_waits
from services.images.distribution.resolving import resolved
from services.images.distribution.source_labels import with_source
from services.images.distribution.transfer_client import client_of
from services.images.distribution.verifiers import Verifier
from services.images.documents.graph import Graph
from services.images.documents.legacy import converted
from services.images.documents.limits import LAYERS
from services.images.layers.unpacker import Origin, Unpacker, parts
from services.images.node.ingest import FileIngest
from services.images.registry import client as registry
from services.images.transfer import ImageStore, Ingest, Node, Progress, Registry, Report, Unpacking
from services.images.waits import Board
from services.kit import errors, tracing
from services.kit.faults import fault
from services.oci import media_types
from services.oci.descriptors import Descriptor
from services.oci.references import Reference

_WALKED, _BEGUN = 16, 128
"""Children of one document that are walked at once, and blobs of one pull that are begun at once. An index may name
10,000 manifests, none of which the registry has; it must not open as many ingests, nor take the memory of as many
walks. Few images have more layers.
"""
_FIRST = 16
"""Blobs that are begun until one has come: a document may name hundreds that the registry does not have, and each costs
three processes a beginning and an end. No more than that are fetched at once anyway.
"""

_SMALL = 1 << 20
"""Bytes up to which an existing blob is always verified: that takes a millisecond. Documents are so small."""


class RegistryPuller:
    """Makes pulls. There is one for the process."""

    def __init__(
        self, process: registry.Registry, fetcher: Fetcher, unpacker: Unpacker, verifier: Verifier, layers: int = LAYERS
    ) -> None:
        """``layers``: the limit for one image."""
        self._registry = process
        self._fetcher = fetcher
        self._unpacker = unpacker
        self._verifier = verifier
        self._layers = layers

    async def pull(self, source: Registry, destination: ImageStore, node: Node, report: Report) -> None:
        """See ``transfer.Puller``. Errors name the host and the cause."""
        wanted = self._unpacker.accepted(destination.unpacks)
        report(Progress(f"Resolving from {source}"))
        reference = Reference.parse(source.reference)
        client = client_of(self._registry, source)
        board = Board()
        async with reporting_waits(board, report) as told:
            await self._pull(client, reference, source, destination, node, wanted, told, board)

    async def _pull(
        self,
        client: registry.Client,
        reference: Reference,
        source: Registry,
        destination: ImageStore,
        node: Node,
        wanted: Sequence[Unpacking],
        report: Report,
        board: Board,
    ) -> None:
        try:
            async with self._fetcher.budget.document():
                root = await resolved(client, reference, source.reference, node.namespace, self._fetcher.peers, report)
        except errors.NodeError as error:
            raise type(error).verbatim(f"failed to resolve image: {error}", error.trailers) from None
        tracing.operation(**{"oci.manifest.digest": root.digest})
        await self._verifier.verify(source.reference, root)
        report(Progress(f"Pulling from {source}"))
        report(Progress("fetching image content", source.reference, descriptor=root))
        graph = Graph(node, destination, self._layers)
        pull = _Pull(self._fetcher, self._unpacker, client, reference, node, graph, wanted, verify=destination.verify)
        tracker = Tracker(source.reference, "downloading", report, pull.active, pull.done, working=board.working)
        try:
            async with tracker.running():
                await pull.walk(root, tracker)
                if graph.only_indexes:
                    raise errors.NotFound.verbatim(f"{reference}: index {root.digest} has no manifests")
                if graph.has_octet_stream:
                    root = await converted(node, root)
                    await pull.walk(root, tracker)
        finally:
            pull.figures.tell(wanted)
        fault("images.pulled")
        saved = [
            Progress("saved", image.name, descriptor=image.target)
            for image in await names.store_all(names.of_root(destination, root), node)
        ]
        # once more, since ctr shows a status only with the next event that has a name
        for each in (*saved, Progress(f"Completed pull from {source}"), *saved[-1:]):
            report(each)


@dataclass(slots=True)
class _Figures:
    """What a pull fetched, and what was there already."""

    bytes: int = 0
    bytes_peers: int = 0
    """Of ``bytes``, those that came from peers."""
    bytes_present: int = 0
    layers: int = 0
    layers_present: int = 0
    """Layers whose snapshots were there; without unpacking, those whose blobs were there."""

    def tell(self, wanted: Sequence[Unpacking]) -> None:
        """Tell the operation's root span."""
        tracing.operation(
            **{
                "splitd.bytes": self.bytes,
                "splitd.bytes.present": self.bytes_present,
                "splitd.layers": self.layers,
                "splitd.layers.present": self.layers_present,
            }
        )
        if self.bytes_peers:
            tracing.operation(**{"splitd.bytes.peers": self.bytes_peers})
        if wanted:
            tracing.operation(**{"splitd.snapshotter": wanted[0].snapshotter})


class _Pull:
    """The walk of one pull."""

    def __init__(
        self,
        fetcher: Fetcher,
        unpacker: Unpacker,
        client: registry.Client,
        reference: Reference,
        node: Node,
        graph: Graph,
        wanted: Sequence[Unpacking],
        *,
        verify: bool,
    ) -> None:
        self._verify = verify
        """Verify all bytes of existing blobs."""
        self._fetcher = fetcher
        self._unpacker = unpacker
        self._client = client
        self._reference = reference
        self._node = node
        self._graph = graph
        self._wanted = wanted
        self._begun = Gate(_FIRST, "blobs of this pull")
        self._some_came = False
        """Whether a blob has come that is no manifest and no index."""
        self._asked: dict[str, Descriptor] = {}
        self._done: set[str] = set()
        self.figures = _Figures()

    async def active(self) -> Mapping[str, tuple[int, int]]:
        """The blobs that are being fetched, for the tracker."""
        return {
            descriptor.ref: self._fetcher.moving[digest]
            for digest, descriptor in self._asked.items()
            if digest not in self._done and digest in self._fetcher.moving
        }

    async def done(self, digest: str) -> bool:
        """Whether the blob is there, for the tracker."""
        return digest in self._done

    async def walk(self, descriptor: Descriptor, tracker: Tracker) -> None:
        """Fetch what ``descriptor`` names, and everything wanted below it, except what was met before: that is fetched,
        or is being fetched.
        """
        if not self._graph.first(descriptor):
            return
        document = _Document(descriptor)
        below = document.kept_by(lambda: self._walk_below(document, tracker))
        await run_all([self._fetch_document(document, tracker), below])

    async def _fetch_document(self, document: _Document, tracker: Tracker) -> None:
        await self._fetch(document.descriptor, tracker, begun=document.arriving)
        document.arrived()

    async def _walk_below(self, document: _Document, tracker: Tracker) -> None:
        """Fetch what a document refers to, as soon as it can be read: the node may still be writing it to the disk."""
        descriptor = document.descriptor
        try:
            listed = await self._graph.all_children(await document.readable())
            children = await self._graph.chosen(descriptor, listed)
        # an error about the document, which does not say whose it is
        except (errors.Unknown, errors.InvalidArgument, errors.ResourceExhausted) as error:
            raise type(error).verbatim(f"{self._reference.host}/{self._reference.repository}: {error}") from None
        tracker.children(descriptor, children)
        labelled = self._labelled(document, listed)
        if not media_types.is_manifest(descriptor.media_type):
            await run_all([labelled, self._walk_all(children, tracker)])
            return
        config, layers = parts(children)
        self.figures.layers += len(layers)
        fetched = {*map(id, layers), id(config)}  # comparing each with each would take as long as all else
        others = [child for child in children if id(child) not in fetched]
        if self._wanted and config is not None and layers:
            await run_all(
                [labelled, self._unpacked(descriptor, config, layers, tracker), self._walk_all(others, tracker)]
            )
            return
        await run_all(
            [
                labelled,
                *(self._fetch(layer, tracker, number) for number, layer in enumerate(layers)),
                self._walk_all([*([config] if config is not None else []), *others], tracker),
            ]
        )

    async def _labelled(self, document: _Document, listed: Sequence[Descriptor]) -> None:
        await document.there()
        await self._graph.label(document.descriptor, listed)

    async def _walk_all(self, children: Sequence[Descriptor], tracker: Tracker) -> None:
        await for_each(children, lambda child: self.walk(child, tracker), _WALKED)

    async def _unpacked(
        self, manifest: Descriptor, config: Descriptor, layers: Sequence[Descriptor], tracker: Tracker
    ) -> None:
        """Fetch an image's config and layers, and unpack it meanwhile."""
        document = _Document(config)
        blobs = _Arriving(len(layers), document)

        async def unpacked() -> None:
            how = await self._node.unpacks(self._wanted[0].snapshotter)
            chain_id = await self._unpacker.unpack(
                self._node,
                await document.readable(),
                layers,
                self._wanted,
                blobs=blobs,
                extracting=tracker.extracting,
                origin=Origin(str(self._reference), manifest.digest),
                how=how,
            )
            # all layers were unpacked before; or the image is not for this machine, and all are fetched without
            # unpacking
            blobs.wanted(len(layers) if chain_id else 0)

        async def fetched(number: int, turn: int) -> None:
            await may_start(turn)
            await self._fetch(layers[number], tracker, number, lambda ingest: blobs.arriving(number, ingest))
            blobs.arrived(number)

        async def fetching() -> None:
            lowest = await blobs.lowest
            self.figures.layers_present += lowest
            self.figures.bytes_present += sum(layer.size for layer in layers[:lowest])
            await run_all(
                [
                    *(fetched(number, turn) for turn, number in enumerate(range(lowest, len(layers)))),
                    *(self._check_existing(layers[number], number) for number in range(lowest)),
                ]
            )

        with contextlib.closing(blobs):
            layers_made = document.kept_by(lambda: run_all([unpacked(), fetching()]))
            await run_all([self._fetch_document(document, tracker), layers_made])

    async def _fetch(
        self, descriptor: Descriptor, tracker: Tracker, number: int = 0, begun: Begun = no_follower
    ) -> None:
        self._asked[descriptor.digest] = descriptor
        tracker.add(descriptor)
        if not media_types.is_layer(descriptor.media_type):
            async with self._begun.entered(number):
                await self._ensure(descriptor, tracker, number, begun)
            if not descriptor.is_root:
                self._came()
            return
        about: dict[str, str | int] = {
            "oci.layer.digest": descriptor.digest,
            "splitd.layer": number,
            "splitd.size": descriptor.size,
            "splitd.media_type": descriptor.media_type,
        }
        with tracing.span("images.layer", **about) as span:
            async with self._begun.entered(number):
                found = await self._ensure(descriptor, tracker, number, begun)
            span.set(**{"splitd.bytes": found.came, "splitd.present": not found.came})
        self._came()
        if not self._wanted and not found.came:
            self.figures.layers_present += 1

    def _came(self) -> None:
        """What the documents name is there: begin more at once."""
        if not self._some_came:
            self._some_came = True
            self._begun.widen(_BEGUN - _FIRST)

    async def _ensure(self, descriptor: Descriptor, tracker: Tracker, number: int, begun: Begun) -> Fetched:
        found = await self._fetcher.fetch(
            self._node, self._client, self._reference, descriptor, with_source({}, self._reference), number, begun
        )
        self.figures.bytes += found.came
        self.figures.bytes_peers += found.peers
        self.figures.bytes_present += max(0, descriptor.size - found.came)
        if not found.existed:
            self._done.add(descriptor.digest)
            if not found.came:  # all of it was there: from an earlier attempt, or in another namespace
                tracker.exists(descriptor)
            return found
        if found.fresh and not self._verify:
            self._done.add(descriptor.digest)
            tracker.exists(descriptor)
            return found
        await self._check_existing(descriptor, number)
        self._done.add(descriptor.digest)
        tracker.exists(descriptor)
        labels = with_source((await self._node.info(descriptor.digest)).labels, self._reference)
        if labels:
            await self._node.label(descriptor.digest, labels)
        return found

    async def _check_existing(self, descriptor: Descriptor, number: int) -> None:
        """If a recorded blob has no file or a damaged one, fetch it again."""
        if trouble := await self._node.trouble(descriptor, verify=self._verify or descriptor.size <= _SMALL):
            await self._fetcher.refetch(self._node, self._client, self._reference, descriptor, number, trouble)


class _Document:
    """A document that is being fetched. It can be read as soon as its bytes are known to be right: three waits for the
    disk before its blob exists. One reader reads it.
    """

    def __init__(self, descriptor: Descriptor) -> None:
        self.descriptor = descriptor
        self._known = descriptor
        self._readable, self._there = asyncio.Event(), asyncio.Event()

    def arriving(self, ingest: Ingest) -> None:
        """Its blob has begun to arrive (``Begun``)."""
        if isinstance(ingest, FileIngest) and self.descriptor.size <= _SMALL:
            ingest.when_right(self._right)

    def _right(self, data: bytes) -> None:
        self._known = replace(self.descriptor, data=data)
        self._readable.set()

    def arrived(self) -> None:
        """Its blob exists."""
        self._readable.set()
        self._there.set()

    async def readable(self) -> Descriptor:
        """Its descriptor, once the node can read it: with its bytes, if its blob may not exist yet. These are given
        away.
        """
        await self._readable.wait()
        known, self._known = self._known, self.descriptor
        return known

    async def there(self) -> None:
        """Return when its blob exists."""
        await self._there.wait()

    async def kept_by(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do ``work`` with it. Should that fail, the blob is still made: an ingest of it would stay for a day."""
        try:
            await work()
        except errors.NodeError:
            await self.there()
            raise


class _Arriving:
    """The layers of an image that are arriving: :class:`~services.images.layers.blobs.Blobs`."""

    def __init__(self, count: int, config: _Document) -> None:
        self.config_there = config.there
        self.lowest: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """The lowest layer that is wanted, once that is known."""
        self._ingests: list[FileIngest | None] = [None] * count
        self._begun = [asyncio.Event() for _ in range(count)]
        self._there = [asyncio.Event() for _ in range(count)]
        self._spans = [""] * count
        """Those that fetch the blobs."""

    def wanted(self, number: int) -> None:
        if not self.lowest.done():
            self.lowest.set_result(number)

    def arriving(self, number: int, ingest: Ingest) -> None:
        """Note that a blob has begun to arrive."""
        self._spans[number] = tracing.current().ref()
        if isinstance(ingest, FileIngest):
            ingest.keep_open()
            self._ingests[number] = ingest
            self._begun[number].set()

    def arrived(self, number: int) -> None:
        """Note that a blob is there."""
        self._begun[number].set()
        self._there[number].set()

    def close(self) -> None:
        """Release ingests that were not read."""
        for number in range(len(self._ingests)):
            self._release(number)

    def _release(self, number: int) -> None:
        ingest, self._ingests[number] = self._ingests[number], None
        if ingest is not None:
            ingest.release()

    async def begun(self, number: int) -> None:
        await self._wait(self._begun, number)

    @contextlib.asynccontextmanager
    async def ingest(self, number: int) -> AsyncIterator[FileIngest | None]:
        ingest = self._ingests[number]
        if ingest is not None and ingest.closed:  # given up: another attempt makes a new one, or none
            self._release(number)
            ingest = None
        if ingest is None:
            await self._wait(self._there, number)
        try:
            yield ingest
        finally:
            self._release(number)

    async def there(self, number: int) -> None:
        await self._wait(self._there, number)

    async def _wait(self, states: Sequence[asyncio.Event], number: int) -> None:
        if states[number].is_set():
            return
        with tracing.wait("bytes", self._spans[number], **{"splitd.wait.for": "a layer that is arriving"}) as waiting:
            before = self._spans[number]
            await states[number].wait()
            if self._spans[number] != before:
                waiting.link(self._spans[number])
