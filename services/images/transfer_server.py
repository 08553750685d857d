"""containerd.services.transfer.v1: it reads the ends of a transfer from the request, lets the transfer be made
according to its kind, and sends its progress on the client's stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty

from api.containerd.services.transfer.v1 import transfer_pb2 as pb
from api.containerd.services.transfer.v1 import transfer_stubs
from api.containerd.types.transfer import imagestore_pb2, importexport_pb2, registry_pb2
from services.images import figures, names
from services.images import transfer_convert as convert
from services.images.archives import exporter, importer
from services.images.documents.limits import LAYERS
from services.images.layers.unpacker import Unpacker
from services.images.logs_stream import LogsStream
from services.images.node.leases_remote import Leases
from services.images.node.remote import RemoteNode
from services.images.streaming_server import ByteSink, ByteSource, Stream, Streams, unpacked
from services.images.transfer import (
    Credentials,
    ExportStream,
    ImageStore,
    ImportStream,
    Progress,
    Puller,
    Pusher,
    Registry,
    Report,
    Show,
    no_report,
)
from services.kit import any as kit_any
from services.kit import errors, logs, rpc, tracing
from services.kit.rpc import Call
from services.oci.platforms_convert import platform_from_pb
from services.snapshots.diff.workers import Appliers

log = logging.getLogger(__name__)

End = ImageStore | Registry | ImportStream | ExportStream

ANSWER_SECONDS = 120.0
"""Seconds that a client may take to answer a question for credentials."""

NAMED = 500
"""Characters of an image's name in a trace."""

LINGER_SECONDS = 5.0
"""Seconds for which the stream of a failed import stays open: a client that is still sending would otherwise report
that instead of the failure.
"""


class TransferServicer:
    """Makes transfers through ``gateway``, each under one of ``leases``. The clients' streams are in ``streams``;
    ``appliers`` unpack layers.

    Without ``puller`` and ``pusher`` there are no pulls and pushes.
    """

    SERVICE = transfer_stubs.TRANSFER

    def __init__(
        self,
        gateway: rpc.Channel,
        leases: Leases,
        streams: Streams,
        appliers: Appliers,
        unpacker: Unpacker,
        puller: Puller | None = None,
        pusher: Pusher | None = None,
        layers: int = LAYERS,
        *,
        answer: float = ANSWER_SECONDS,
    ) -> None:
        """``answer``: seconds that a client may take to answer a question."""
        self._answer = answer
        self._gateway = gateway
        self._leases = leases
        self._appliers = appliers
        self._streams = streams
        self._unpacker = unpacker
        self._puller = puller
        self._pusher = pusher
        self._layers = layers

    async def Transfer(self, request: pb.TransferRequest, call: Call) -> Empty:
        async with contextlib.AsyncExitStack() as held:
            report = self._report(request.options.progress_stream, call, held)
            source = self._end(request.source, call, held)
            destination = self._end(request.destination, call, held)
            with _span(source, destination, call), _telling_outcome(source, destination, call):
                if not await self._transfer(
                    source,
                    destination,
                    RemoteNode(self._gateway, self._leases, call.passed_on(), self._appliers),
                    report,
                ):
                    raise errors.Unimplemented.verbatim(
                        f"method Transfer not implemented for {request.source.type_url} to "
                        f"{request.destination.type_url}"
                    )
        return Empty()

    async def _transfer(self, source: End | None, destination: End | None, node: RemoteNode, report: Report) -> bool:
        """Make the transfer; False if there is no such kind."""
        match source, destination:
            case Registry(), ImageStore() if self._puller is not None:
                async with node.leased() as leased:
                    await self._puller.pull(source, destination, leased, report)
            case ImageStore(), Registry() if self._pusher is not None:
                await self._pusher.push(source, destination, node, report)
            case ImportStream(), ImageStore():
                async with node.leased() as leased:
                    await importer.import_archive(source, destination, leased, self._unpacker, report, self._layers)
            case ImageStore(), ExportStream():
                async with node.leased() as leased:
                    await exporter.export_archive(source, destination, leased, report)
                    await destination.sink.close()
            case ImageStore(), ImageStore():
                async with node.leased() as leased:
                    image = await leased.image(source.name)
                    await names.store_all(names.of_root(destination, image.target), leased)
            case ImportStream(), ExportStream():
                async for data in source.source:
                    await destination.sink.write(data)
                await destination.sink.close()
            case _:
                return False
        return True

    # ------------------------------------------------------------------------------------------ what the request names

    def _end(self, value: Any, call: Call, held: contextlib.AsyncExitStack) -> End | None:
        """An end of the transfer with its streams; None for a type that is no end. NotFound for a stream that is not
        open.
        """
        match kit_any.type_name(value):
            case "containerd.types.transfer.ImageStore":
                return replace(
                    convert.store_from_pb(unpacked(value, imagestore_pb2.ImageStore)),
                    only_wanted=rpc.ONLY_WANTED in call.headers,
                    verify=rpc.VERIFY in call.headers,
                )
            case "containerd.types.transfer.OCIRegistry":
                return self._registry(unpacked(value, registry_pb2.OCIRegistry), call, held)
            case "containerd.types.transfer.ImageImportStream":
                archive = unpacked(value, importexport_pb2.ImageImportStream)
                return ImportStream(
                    self._source(archive.stream, call, held), archive.media_type, archive.force_compress
                )
            case "containerd.types.transfer.ImageExportStream":
                wanted = unpacked(value, importexport_pb2.ImageExportStream)
                return ExportStream(
                    self._sink(wanted.stream, call, held),
                    wanted.media_type,
                    tuple(map(platform_from_pb, wanted.platforms)),
                    wanted.all_platforms,
                    wanted.skip_compatibility_manifest,
                    wanted.skip_non_distributable,
                )
        return None

    def _registry(self, message: registry_pb2.OCIRegistry, call: Call, held: contextlib.AsyncExitStack) -> Registry:
        resolver = message.resolver
        ask = None
        if resolver.auth_stream:
            stream = self._stream(resolver.auth_stream, call)
            held.callback(stream.close)
            ask = _Questions(stream, message.reference, self._answer).ask
        show = self._show(message, call, held) if resolver.http_debug != registry_pb2.DISABLED else None
        return Registry(
            message.reference,
            dict(resolver.headers),
            resolver.host_dir,
            resolver.default_scheme,
            ask,
            show_requests=show if resolver.http_debug in (registry_pb2.DEBUG, registry_pb2.BOTH) else None,
            show_connections=show if resolver.http_debug in (registry_pb2.TRACE, registry_pb2.BOTH) else None,
        )

    def _show(self, message: registry_pb2.OCIRegistry, call: Call, held: contextlib.AsyncExitStack) -> Show:
        """Where requests are shown: on the client's stream if it has one, else in the log."""
        if message.resolver.logs_stream:
            shown = LogsStream(ByteSink(self._stream(message.resolver.logs_stream, call)))
            held.push_async_callback(shown.close)
            return shown

        def logged(text: str) -> None:
            for line in text.splitlines():
                log.info("%s: %s", message.reference, line)

        return logged

    def _stream(self, name: str, call: Call) -> Stream:
        return self._streams.get(call.optional_namespace, name)

    def _report(self, name: str, call: Call, held: contextlib.AsyncExitStack) -> Report:
        if not name:
            return no_report
        stream = self._stream(name, call)
        held.push_async_callback(stream.finish)

        def report(progress: Progress) -> None:
            stream.offer(convert.progress_to_pb(progress))

        return report

    def _source(self, name: str, call: Call, held: contextlib.AsyncExitStack) -> ByteSource:
        stream = self._stream(name, call)
        source = ByteSource(stream)

        def close() -> None:
            if source.ended:
                stream.close()
            else:
                asyncio.get_running_loop().call_later(LINGER_SECONDS, stream.close)

        held.callback(close)
        return source

    def _sink(self, name: str, call: Call, held: contextlib.AsyncExitStack) -> ByteSink:
        sink = ByteSink(self._stream(name, call))
        held.callback(sink.abandon)
        return sink


def _description(source: End | None, destination: End | None) -> str:
    """A transfer in words, as far as it is known."""
    match source, destination:
        case Registry(reference=name), ImageStore():
            return f"pull of {name}"
        case ImageStore(name=name), Registry(reference=to):
            return f"push of {name or to}"
        case ImportStream(), ImageStore(name=name):
            return f"import of {name}" if name else "import"
        case ImageStore(name=name), ExportStream():
            return f"export of {name}" if name else "export"
        case ImageStore(name=name), ImageStore(name=new):
            return f"tag of {name} as {new}"
    return "transfer"


def _kind(source: End | None, destination: End | None) -> tuple[str, str]:
    """The kind of a transfer, and the image's name as far as it is known."""
    match source, destination:
        case Registry(reference=name), ImageStore():
            return "pull", name
        case ImageStore(), Registry(reference=name):
            return "push", name
        case ImportStream(), ImageStore(name=name):
            return "import", name
        case ImageStore(name=name, references=others), ExportStream():
            return "export", name or next((other.name for other in others), "")
        case ImageStore(), ImageStore(name=name):
            return "tag", name
    return "transfer", ""


def _span(source: End | None, destination: End | None, call: Call) -> tracing.Span:
    """The span of a transfer: ``images.pull``, ``images.push`` and so on. The root of its trace says the same."""
    kind, name = _kind(source, destination)
    about = {"splitd.namespace": call.optional_namespace, "container.image.name": name[:NAMED]}
    tracing.operation(**{"splitd.operation": kind}, **about)
    return tracing.span(f"images.{kind}", **about)


@contextlib.contextmanager
def _telling_outcome(source: End | None, destination: End | None, call: Call) -> Iterator[None]:
    """Tell the root how a transfer ends, and log it if it fails, whatever its error: also, for example, an image that
    the registry does not have. The client learns the trace's id with the error.
    """
    what = f"{_description(source, destination)} in namespace {call.optional_namespace}"
    trace = tracing.current().ref().partition("-")[0]
    where = f"; trace {trace}" if trace else ""
    outcome, begun = "failed", time.monotonic()
    try:
        yield
        outcome = "ok"
    except errors.NodeError as error:
        cancelled = isinstance(error, errors.Cancelled)
        outcome = "cancelled" if cancelled else "failed"
        if not cancelled:
            said = logs.shown(what), logs.shown(str(error)), errors.name(error.code), where
            log.warning("%s failed: %s (%s%s)", *said)
            error.told = True
        if trace:
            error.trailers = (*error.trailers, (rpc.TRACE, trace))
        raise
    except asyncio.CancelledError:
        outcome = "cancelled"
        log.info("%s was cancelled: its client has gone, or its deadline has passed", logs.shown(what))
        raise
    finally:
        tracing.operation(**{"splitd.outcome": outcome})
        match source, destination:
            case (ImportStream(source=ByteSource() as stream), _) | (_, ExportStream(sink=ByteSink() as stream)):
                tracing.operation(**{"splitd.bytes": stream.bytes})
                tracing.current().set(
                    **{"splitd.bytes": stream.bytes, "splitd.time.client_ms": round(stream.waited * 1000, 3)}
                )
        figures.transferred(_kind(source, destination)[0], outcome, time.monotonic() - begun)


class _Questions:
    """Asks a client for credentials on a stream: one question and answer at a time."""

    def __init__(self, stream: Stream, reference: str, seconds: float) -> None:
        self._seconds = seconds
        self._stream = stream
        self._reference = reference
        self._turn = asyncio.Lock()

    async def ask(self, host: str, challenges: Sequence[str]) -> Credentials:
        """See ``AskCredentials``."""
        async with self._turn:
            try:
                async with asyncio.timeout(self._seconds):
                    await self._stream.send(
                        registry_pb2.AuthRequest(host=host, reference=self._reference, wwwauthenticate=challenges)
                    )
                    answer = await self._stream.receive()
            except TimeoutError:
                self._stream.close()  # a late answer would be taken for the answer to the next question
                raise errors.DeadlineExceeded(f"credentials for {host}: the client does not answer") from None
        if answer is None:
            raise errors.Cancelled(f"credentials for {host}: the client has ended its answers")
        return convert.credentials_from_pb(unpacked(answer, registry_pb2.AuthResponse))
