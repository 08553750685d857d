"""Transfers of images: from where to where, what is told meanwhile, and by whom it is done.

A transfer has two *ends*: the :class:`ImageStore` (the node's images, some of them or one to be), a :class:`Registry`,
an :class:`ImportStream` or an :class:`ExportStream`, which are archives whose bytes the client sends or takes. By their
kinds a transfer is

====================  ====================  ===========================================================
from                  to                    is
====================  ====================  ===========================================================
Registry              ImageStore            a pull (a :class:`Puller` does it)
ImageStore            Registry              a push (a :class:`Pusher`)
ImportStream          ImageStore            an import (``archives/importer.py``)
ImageStore            ExportStream          an export (``archives/exporter.py``)
ImageStore            ImageStore            a tag: the same target under another name
ImportStream          ExportStream          an echo: the same bytes
====================  ====================  ===========================================================

A transfer acts as its caller, through :class:`Node`: in its namespace, and under a lease, so that nothing of it is
collected before the image that refers to it is there. A caller without a lease is given one that lasts as long as the
transfer, or, if the process dies, until its successor is there. What a transfer that fails has stored by then stays
until it is collected.
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
    """One more name of an image that is stored or looked up; the flags count for prefixes only."""

    name: str
    is_prefix: bool = False
    """It lacks a tag or a digest, which the image brings along."""
    allow_overwrite: bool = False
    """A full name that the image brings along is taken although it does not begin with this prefix."""
    add_digest: bool = False
    """NAME@DIGEST is a name too."""
    skip_named_digest: bool = False
    """But not where the image brought a name along."""


@dataclass(frozen=True, slots=True)
class Unpacking:
    """Layers of images for ``platform`` are to become snapshots of ``snapshotter``; "" is the node's usual one."""

    platform: Platform
    snapshotter: str = ""


@dataclass(frozen=True, slots=True)
class ImageStore:
    """The node's images: as a source those with these names, as a destination what to store, and under which names."""

    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    platforms: tuple[Platform, ...] = ()
    """None: all."""
    all_metadata: bool = False
    """Manifests and configs of the other platforms too."""
    manifest_limit: int = 0
    """Of an index, so many manifests; 0: all that are wanted."""
    references: tuple[ImageReference, ...] = ()
    unpacks: tuple[Unpacking, ...] = ()
    only_wanted: bool = False
    """Of an archive store the images for these platforms, and neither others nor its index; those left out are told as
    :data:`LEFT_OUT`. containerd stores records of all, and collects the contents of those that it did not want.
    """
    verify: bool = False
    """Of a pull look at all bytes of the blobs that are there, and not at their sizes only; at those of small ones
    it looks in any case.
    """

    def __str__(self) -> str:
        return f"Local Image Store ({self.name})"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client answers for a host: a user's name and password, a refresh token (``secret`` alone), or a whole
    Authorization header. Or nothing.
    """

    username: str = ""
    secret: str = ""
    header: str = ""


AskCredentials = Callable[[str, Sequence[str]], Awaitable[Credentials]]
"""Asks the client: for a host, whose WWW-Authenticate headers may be given. One question at a time;
DeadlineExceeded if the client never answers.
"""


Show = Callable[[str], None]
"""Takes lines of text on their way to the client, or to the log. Never waits and never fails."""


@dataclass(frozen=True, slots=True)
class Registry:
    """An image in a registry."""

    reference: str
    headers: Mapping[str, str] = field(default_factory=dict)
    """Sent with each request."""
    host_dir: str = ""
    """Where ``HOST/hosts.toml`` files are."""
    default_scheme: str = ""
    """http or https; "" is the usual choice for the host."""
    credentials: AskCredentials | None = None
    show_requests: Show | None = None
    """Where requests and their answers are shown, if they are."""
    show_connections: Show | None = None
    """The same for what connections they went through."""

    def __str__(self) -> str:
        return f"OCI Registry ({self.reference})"


class Sink(Protocol):
    """Bytes to the client, which says how many it wants."""

    async def write(self, data: bytes) -> None:
        """Returns when the bytes are on their way. Cancelled if the client went away."""
        ...

    async def close(self) -> None:
        """No more bytes. Returns when the client has taken all, or does not seem to."""
        ...


@dataclass(frozen=True, slots=True)
class ImportStream:
    """An archive that the client sends."""

    source: AsyncIterator[bytes]
    media_type: str = ""
    """"": the archive may be compressed."""
    force_compress: bool = False
    """Compress layers that are not, where the archive has no manifests of its own."""


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
"""How the event of an image of an archive begins that was left out (``ImageStore.only_wanted``); its platforms
follow.
"""

SILENT = "waiting for "
"""How the event of a transfer begins that waits for a host from which nothing comes: ``parents`` has the host,
``progress`` the seconds, and there is no name.
"""


@dataclass(frozen=True, slots=True)
class Progress:
    """An event of a transfer: of the thing ``name``, which is part of ``parents``; or of the transfer as a whole,
    where there is no name.
    """

    event: str
    name: str = ""
    parents: tuple[str, ...] = ()
    progress: int = 0
    total: int = 0
    descriptor: Descriptor | None = None


Report = Callable[[Progress], None]
"""Takes an event on its way to the client. Never waits and never fails; a client that does not keep up misses some."""


def unheard(_: Progress) -> None:
    """The report of a transfer whose client did not ask for any."""


# ---------------------------------------------------------------------------------------------- the node


@dataclass(frozen=True, slots=True)
class Image:
    """A name for a target."""

    name: str
    target: Descriptor
    labels: Mapping[str, str] = field(default_factory=dict)


class Filling(Protocol):
    """A blob being made: ``fd`` is to be filled, then :meth:`filled`, then :meth:`commit`."""

    fd: int

    def filled(self) -> None:
        """Close ``fd``."""
        ...

    async def commit(self, digest: str, size: int, labels: Mapping[str, str] = {}) -> None:
        """Make it a blob of this digest and size; it is fine if there is one already."""
        ...


class Lane(Protocol):
    """Bytes on their way to an ingest."""

    async def write(self, data: bytes) -> None:
        """The next bytes. ResourceExhausted if the disk is full."""
        ...


class Ingest(Protocol):
    """A blob being fetched: an ingest of which ``offset`` bytes are there without a gap, of this or an earlier attempt;
    ``received`` counts those beyond it too.

    ``lanes``: whether bytes may come in several places at once; else all come on one, from ``offset`` on.
    """

    @property
    def lanes(self) -> bool: ...

    @property
    def offset(self) -> int: ...

    @property
    def received(self) -> int: ...

    def lane(self, at: int) -> AbstractAsyncContextManager[Lane]:
        """For the bytes from ``at`` on. All that it took are written when the block has ended well."""
        ...

    async def shorten(self) -> None:
        """Back to the bytes that are there without a gap."""
        ...

    async def restart(self) -> None:
        """Back to no bytes."""
        ...

    async def commit(self, labels: Mapping[str, str]) -> None:
        """Make it a blob. FailedPrecondition if size or digest are not what they should be: then :meth:`restart`.
        AlreadyExists if somebody else made it.
        """
        ...


class BegunAnew(Exception):
    """A blob that was read while it arrived has begun anew: what was read may be wrong."""


class LateError(Exception):
    """What a layer leaves out cannot be made up for when it is unpacked: it must be unpacked on the layers below."""


class How(NamedTuple):
    """How layers can be unpacked: ``follows``, while their blobs arrive; ``side_by_side``, alone, since the snapshotter
    can chain them afterwards.

    ``wants_origin``: the snapshotter may fetch layers by itself, when they are used, and so is told where they are.
    """

    follows: bool
    side_by_side: bool
    wants_origin: bool = False


class Applied(NamedTuple):
    """A layer that was unpacked: its diff id; alone, also the directories that it uses and does not name."""

    diff_id: str
    unnamed: tuple[Unnamed, ...] = ()


class Node(Protocol):
    """The node as the caller sees it: its content, images, snapshots."""

    namespace: str

    async def info(self, digest: str) -> Info:
        """Size and labels of a blob, or NotFound."""
        ...

    async def trouble(self, descriptor: Descriptor, *, verify: bool) -> str:
        """What is wrong with the file of a blob that is recorded: "" if nothing, or if it is not recorded, or
        another's content store has it. ``verify``: all its bytes are looked at.
        """
        ...

    async def replace(self, descriptor: Descriptor, pieces: AsyncIterator[bytes]) -> None:
        """Put these bytes in the place of a blob's file, for all namespaces that have it. FailedPrecondition if
        they are others than its digest says.
        """
        ...

    async def document(self, descriptor: Descriptor) -> bytes:
        """A whole small blob, or NotFound."""
        ...

    def reading(self, digest: str) -> AbstractAsyncContextManager[int]:
        """A file descriptor with a blob's bytes, or NotFound."""
        ...

    def filling(self, ref: str) -> AbstractAsyncContextManager[Filling]:
        """A blob to be made. What was not committed at the end of the block is gone."""
        ...

    def ingest(self, descriptor: Descriptor) -> AbstractAsyncContextManager[Ingest]:
        """Where a blob is fetched to; AlreadyExists, with the blob held by the lease, if it is there. Waits while
        another process writes it.

        What was not committed at the end of the block can be resumed within a day, whatever becomes of the lease, or of
        this process.
        """
        ...

    async def label(self, digest: str, labels: Mapping[str, str]) -> None:
        """Set these labels of a blob, and leave its others."""
        ...

    def compressed(self, diff_ids: Iterable[str]) -> AsyncIterator[Info]:
        """The blobs that are labelled as compressed forms of these layers."""
        ...

    async def image(self, name: str) -> Image:
        """An image, or NotFound."""
        ...

    async def store(self, image: Image) -> Image:
        """Create the image, or, if there is one of the name, replace it."""
        ...

    def snapshotter(self, name: str) -> Snapshotter:
        """Snapshots by the snapshotter ``name``."""
        ...

    async def unpacks(self, snapshotter: str) -> How:
        """What :meth:`apply` can do on mounts of this snapshotter."""
        ...

    def expect(self) -> None:
        """Layers will be applied in a moment."""
        ...

    async def apply(
        self, layer: Descriptor, mounts: Sequence[Mount], *, ingest: Ingest | None = None, alone: bool = False
    ) -> Applied:
        """Unpack a layer onto mounts. ``ingest`` is where its blob arrives, if it is not there: it is read as it comes,
        or BegunAnew.

        ``alone``: there is one mount, a bind, of a snapshot without a parent, which it will get when it is committed;
        :meth:`inherit` comes before that.
        """
        ...

    async def inherit(self, mounts: Sequence[Mount], below: Sequence[str], unnamed: Sequence[Unnamed]) -> None:
        """Give directories of a layer that was unpacked alone onto ``mounts`` what they have in the layers
        ``below``, whose directories these are, topmost first; LateError if that is not enough.
        """
        ...


class Puller(Protocol):
    """Who pulls."""

    async def pull(self, source: Registry, destination: ImageStore, node: Node, report: Report) -> None:
        """Fetch what the destination wants of the image, unpack it, store it. ``node`` acts under a lease."""
        ...


class Pusher(Protocol):
    """Who pushes."""

    async def push(self, source: ImageStore, destination: Registry, node: Node, report: Report) -> None:
        """Send the image ``source.name``, for its platforms, with all that it refers to."""
        ...
