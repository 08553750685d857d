"""Transfers of images: their ends, their progress, and the interfaces of those that make them.

A transfer has two *ends*. An end is an :class:`ImageStore` (images of the node, existing ones or new ones), a
:class:`Registry`, an :class:`ImportStream` or an :class:`ExportStream`. The last two are archives whose bytes the
client sends or takes. The kinds of the ends say what the transfer is:

====================  ====================  ===========================================================
from                  to                    is
====================  ====================  ===========================================================
Registry              ImageStore            a pull (made by a :class:`Puller`)
ImageStore            Registry              a push (made by a :class:`Pusher`)
ImportStream          ImageStore            an import (``archives/importer.py``)
ImageStore            ExportStream          an export (``archives/exporter.py``)
ImageStore            ImageStore            a tag: the same target under another name
ImportStream          ExportStream          an echo: the same bytes
====================  ====================  ===========================================================

A transfer acts as its caller, through :class:`Node`: in the caller's namespace and under a lease, so that nothing of it
is collected before there is an image that refers to it. A caller without a lease gets one for the duration of the
transfer; if the process dies, its successor ends that lease. What a failed transfer has stored stays until it is
collected.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from services.content.store import Info
from services.oci.descriptors import Descriptor
from services.oci.mounts import Mount
from services.oci.platforms import Platform
from services.snapshots.diff.inherit import Unnamed
from services.snapshots.store import Snapshotter

# ---------------------------------------------------------------------------------------------- ends


@dataclass(frozen=True, slots=True)
class ImageReference:
    """A further name for an image that is stored or looked up. The flags are for prefixes only."""

    name: str
    is_prefix: bool = False
    """The name lacks a tag or digest, which the image supplies."""
    allow_overwrite: bool = False
    """A full name that the image supplies is used although it does not begin with this prefix."""
    add_digest: bool = False
    """Also store NAME@DIGEST."""
    skip_named_digest: bool = False
    """But not if the image supplied a name."""


@dataclass(frozen=True, slots=True)
class Unpacking:
    """A request to unpack the layers of images for ``platform`` to snapshots of ``snapshotter``; "" means the node's
    default.
    """

    platform: Platform
    snapshotter: str = ""


@dataclass(frozen=True, slots=True)
class ImageStore:
    """Images of the node: as a source, those with these names; as a destination, what to store and under which
    names.
    """

    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    platforms: tuple[Platform, ...] = ()
    """None: all."""
    all_metadata: bool = False
    """Also store manifests and configs of other platforms."""
    manifest_limit: int = 0
    """The number of manifests of an index that are stored; 0: all that are wanted."""
    references: tuple[ImageReference, ...] = ()
    unpacks: tuple[Unpacking, ...] = ()
    only_wanted: bool = False
    """Of an archive, store only images for these platforms, and not the archive's index. Those left out are reported as
    :data:`LEFT_OUT`. containerd stores records of all, and collects the contents of those that were not wanted.
    """
    verify: bool = False
    """In a pull, check all bytes of the blobs that exist, not only their sizes. Small blobs are always checked."""

    def __str__(self) -> str:
        return f"Local Image Store ({self.name})"


@dataclass(frozen=True, slots=True)
class Credentials:
    """A client's answer for a host: a user's name and password, a refresh token (only ``secret``), a whole
    Authorization header, or nothing.
    """

    username: str = ""
    secret: str = ""
    header: str = ""


AskCredentials = Callable[[str, Sequence[str]], Awaitable[Credentials]]
"""Asks the client for credentials for a host, given its WWW-Authenticate headers, if any. One question at a time.
DeadlineExceeded if the client never answers.
"""


Show = Callable[[str], None]
"""Takes text on its way to the client or to the log. Never waits and never fails."""


@dataclass(frozen=True, slots=True)
class Registry:
    """An image in a registry."""

    reference: str
    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers that are sent with each request."""
    host_dir: str = ""
    """The directory with ``HOST/hosts.toml`` files."""
    default_scheme: str = ""
    """http or https; "" means the default for the host."""
    credentials: AskCredentials | None = None
    show_requests: Show | None = None
    """Where requests and answers are shown, if at all."""
    show_connections: Show | None = None
    """Where the connections that they used are shown, if at all."""

    def __str__(self) -> str:
        return f"OCI Registry ({self.reference})"


class Sink(Protocol):
    """Bytes for the client, which says how many it takes."""

    async def write(self, data: bytes) -> None:
        """Return when the bytes are on their way. Cancelled if the client went away."""
        ...

    async def close(self) -> None:
        """There are no more bytes. Return when the client has taken everything, or seems not to."""
        ...


@dataclass(frozen=True, slots=True)
class ImportStream:
    """An archive that the client sends."""

    source: AsyncIterator[bytes]
    media_type: str = ""
    """"": the archive may be compressed."""
    force_compress: bool = False
    """Compress uncompressed layers, if the archive has no manifests of its own."""


@dataclass(frozen=True, slots=True)
class ExportStream:
    """An archive that the client takes."""

    sink: Sink
    media_type: str = ""
    platforms: tuple[Platform, ...] = ()
    """None: this machine's."""
    all_platforms: bool = False
    skip_docker_manifest: bool = False
    skip_non_distributable: bool = False


# ---------------------------------------------------------------------------------------------- progress

LEFT_OUT = "not imported: for "
"""Prefix of the event for an image of an archive that was left out (``ImageStore.only_wanted``); the image's platforms
follow.
"""


@dataclass(frozen=True, slots=True)
class Progress:
    """An event of a transfer: about the thing ``name``, which is part of ``parents``, or about the whole transfer if
    ``name`` is empty. Clients show such an event as a status until the next one without a name.

    An event without a name that has parents is a wait, in words: its parents are the host that is waited for, which may
    be empty, and the cause (``services/images/waits.py``); ``progress`` has the seconds so far, ``total`` those that it
    will take in all, 0 if that is not known.
    """

    event: str
    name: str = ""
    parents: tuple[str, ...] = ()
    progress: int = 0
    total: int = 0
    descriptor: Descriptor | None = None


Report = Callable[[Progress], None]
"""Takes an event on its way to the client. Never waits and never fails; a client that is too slow misses some."""


def no_report(_: Progress) -> None:
    """The report of a transfer whose client asked for none."""


# ---------------------------------------------------------------------------------------------- the node


@dataclass(frozen=True, slots=True)
class Image:
    """A name for a target."""

    name: str
    target: Descriptor
    labels: Mapping[str, str] = field(default_factory=dict)


class Filling(Protocol):
    """A blob that is being made: write to ``fd``, then call :meth:`filled`, then :meth:`commit`."""

    fd: int

    def filled(self) -> None:
        """Close ``fd``."""
        ...

    async def commit(self, digest: str, size: int, labels: Mapping[str, str] = {}) -> None:
        """Make it a blob of this digest and size; no error if the blob exists."""
        ...


class Lane(Protocol):
    """Bytes on their way to an ingest."""

    async def write(self, data: bytes) -> None:
        """Write the next bytes. ResourceExhausted if the disk is full."""
        ...


class Ingest(Protocol):
    """A blob that is being fetched. ``offset`` is the number of bytes that are there without a gap, from this attempt
    or an earlier one; ``received`` also counts bytes beyond a gap.

    ``lanes``: whether bytes may be written in several places at once. If not, all are written in one lane, from
    ``offset`` on.
    """

    @property
    def lanes(self) -> bool: ...

    @property
    def offset(self) -> int: ...

    @property
    def received(self) -> int: ...

    def lane(self, at: int) -> AbstractAsyncContextManager[Lane]:
        """A lane for the bytes from ``at`` on. Once the block has ended without an error, all its bytes are written."""
        ...

    async def shorten(self) -> None:
        """Drop the bytes beyond a gap."""
        ...

    async def restart(self) -> None:
        """Drop all bytes."""
        ...

    async def commit(self, labels: Mapping[str, str]) -> None:
        """Make it a blob. FailedPrecondition if size or digest are wrong: then :meth:`restart`. AlreadyExists if
        another process made the blob.
        """
        ...


class IngestRestarted(Exception):
    """A blob that was read while it arrived was fetched anew: the bytes read may be wrong."""


class NeedsLowerLayers(Exception):
    """The attributes of a directory cannot be set after unpacking: the layer must be unpacked on the layers below
    it.
    """


class UnpackModes(NamedTuple):
    """How layers can be unpacked. ``follows``: while their blobs arrive. ``side_by_side``: each alone, since the
    snapshotter can chain them afterwards.

    ``wants_origin``: the snapshotter may fetch layers by itself when they are used, and so must know where they are.
    ``shares``: a layer that is there on one parent need not be unpacked on another.
    """

    follows: bool
    side_by_side: bool
    wants_origin: bool = False
    shares: bool = False


class Applied(NamedTuple):
    """An unpacked layer: its diff id and, if it was unpacked alone, the directories that it uses but does not name."""

    diff_id: str
    unnamed: tuple[Unnamed, ...] = ()


class Node(Protocol):
    """The node as the caller sees it: its content, images and snapshots."""

    namespace: str

    async def info(self, digest: str) -> Info:
        """The size and labels of a blob; NotFound."""
        ...

    async def trouble(self, descriptor: Descriptor, *, verify: bool) -> str:
        """Return the defect of a recorded blob's file; "" if there is none, if it is not recorded, or if a foreign
        content store has it. ``verify``: check all its bytes.
        """
        ...

    async def replace(self, descriptor: Descriptor, pieces: AsyncIterator[bytes]) -> None:
        """Replace a blob's file by these bytes, for all namespaces that have it. FailedPrecondition if their digest is
        another.
        """
        ...

    async def document(self, descriptor: Descriptor) -> bytes:
        """A whole small blob; NotFound."""
        ...

    def reading(self, digest: str) -> AbstractAsyncContextManager[int]:
        """A file descriptor with a blob's bytes; NotFound."""
        ...

    def filling(self, ref: str) -> AbstractAsyncContextManager[Filling]:
        """A blob to be made. It is dropped if it was not committed by the end of the block."""
        ...

    def ingest(self, descriptor: Descriptor) -> AbstractAsyncContextManager[Ingest]:
        """An ingest for a blob to be fetched. AlreadyExists, with the blob leased, if it exists. Waits while another
        process writes it.

        An ingest that was not committed can be resumed within a day, whatever happens to the lease or to this process.
        """
        ...

    async def label(self, digest: str, labels: Mapping[str, str]) -> None:
        """Set these labels of a blob; its other labels stay."""
        ...

    def compressed(self, diff_ids: Iterable[str]) -> AsyncIterator[Info]:
        """The blobs that are labelled as compressed forms of these layers."""
        ...

    async def image(self, name: str) -> Image:
        """An image; NotFound."""
        ...

    async def store(self, image: Image) -> Image:
        """Create the image, or replace the one with the same name."""
        ...

    def snapshotter(self, name: str) -> Snapshotter:
        """The snapshotter ``name``."""
        ...

    async def unpacks(self, snapshotter: str) -> UnpackModes:
        """Return the ways in which :meth:`apply` can unpack on this snapshotter."""
        ...

    def expect(self) -> None:
        """Prepare for layers that will be applied in a moment."""
        ...

    async def apply(
        self, layer: Descriptor, mounts: Sequence[Mount], *, ingest: Ingest | None = None, alone: bool = False
    ) -> Applied:
        """Unpack a layer onto mounts. ``ingest`` is where its blob is arriving, if it is not there yet: the layer is
        read as it comes. IngestRestarted if the ingest is restarted.

        ``alone``: the only mount is a bind, of a snapshot without a parent. The snapshot gets its parent when it is
        committed; :meth:`inherit` is called before that.
        """
        ...

    async def inherit(self, mounts: Sequence[Mount], below: Sequence[str], unnamed: Sequence[Unnamed]) -> None:
        """Give directories of a layer that was unpacked alone onto ``mounts`` the attributes that they have in the
        layers below; ``below`` has the directories of those, topmost first. NeedsLowerLayers if that is not enough.
        """
        ...


class Puller(Protocol):
    """Makes pulls."""

    async def pull(self, source: Registry, destination: ImageStore, node: Node, report: Report) -> None:
        """Fetch what the destination wants of the image, unpack it, store it. ``node`` acts under a lease."""
        ...


class Pusher(Protocol):
    """Makes pushes."""

    async def push(self, source: ImageStore, destination: Registry, node: Node, report: Report) -> None:
        """Send the image ``source.name``, for its platforms, with everything that it refers to."""
        ...
