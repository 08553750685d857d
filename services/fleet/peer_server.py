"""Serves blobs to the other nodes of the fleet: ``GET`` and ``HEAD /v2/blobs/DIGEST`` with Range. ``/v2/pulls`` says
what became of this node's latest pulls (``pulls_remote.py``). There is nothing else.

The other side has shown a certificate of the fleet's authority before its request is read (:func:`tls`). It gets blobs
of the namespaces that are shared by configuration, and nothing of others: a digest that only another namespace has is
as unknown as one that nobody has. An error says a number and fixed words, and no path, name or namespace of the node.

===  ==================================================================================================================
200  the whole blob
206  a range of it (RFC 9110, 14)
404  no such blob, or none for peers
416  a range beyond its end
503  more is being sent than the limit allows, or the wanted bytes of an arriving blob do not come: another source is
     better. With the header ``Splitd-Arriving``: they have not come yet, and the fetch is alive, so ask again
===  ==================================================================================================================

The body of a blob that is still arriving comes as it arrives. If it ends before the stated length, the node's own fetch
has ended, has begun again, or nothing has come for a while: who asks again, from there on, learns whether it is alive.

An answer with bytes of an arriving blob has the header ``Splitd-Arriving`` with the number of bytes that were there.
They are not verified yet. The bytes of other blobs were verified when the node committed them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from services.content.store import Files
from services.fleet.arriving import Arriving, Part
from services.fleet.upload_limit import UploadLimit
from services.kit import errors
from services.kit.certificates import CertificateError, Certificates
from services.kit.http_server import Context, Limits, Request, Response, Stream, failure
from services.oci.digests import Digest

log = logging.getLogger(__name__)

LIMITS = Limits(connections=128, departure=20.0, making=30.0)
"""A peer takes a piece (256 KiB) in 20 s, or is given up. One pull of another node uses some ten connections."""

WAIT = 10.0
"""Seconds that a request or a body waits for bytes of a fetch that is alive. A peer's own limit is longer, so it learns
of this one.
"""
BACKLOG = 2.0
"""Seconds of waiting to send, at most, with which a further request is taken."""
ARRIVING = "Splitd-Arriving"
PULLS = "/v2/pulls"

_PATH = re.compile(r"/v2/blobs/([a-z0-9]{1,16}:[0-9a-f]{1,128})")
_RANGE = re.compile(r"bytes=([0-9]{0,19})-([0-9]{0,19})")
_READ = 1 << 20
"""Bytes that a thread reads at once."""
_POOL = ThreadPoolExecutor(4, "peers")


class PeerServer:
    """Answers the requests of peers. ``files`` gives the shared namespaces' content, by namespace."""

    def __init__(
        self,
        files: Mapping[str, Files],
        arriving: Arriving,
        upload: UploadLimit,
        *,
        pulls: Callable[[], Awaitable[bytes]] | None = None,
        wait: float = WAIT,
    ) -> None:
        self.sent = 0
        """Bytes of blobs that were sent."""
        self._files = files
        self._arriving = arriving
        self._upload = upload
        self._pulls = pulls
        self._wait = wait

    async def answer(self, request: Request) -> Response:
        """The answer to a request (a ``Handler`` of the HTTP server)."""
        if request.path == PULLS and self._pulls is not None:
            return await self._told(self._pulls)
        path = _PATH.fullmatch(request.path)
        if path is None or request.query:
            return failure(404, "this serves /v2/blobs/DIGEST only")
        try:
            digest = Digest.parse(path[1])
        except ValueError:
            return failure(404, "not a digest")
        try:
            return await self._blob(digest, request)
        except errors.NotFound:
            return failure(404, "no such blob")
        except errors.NodeError as error:
            log.warning("%s cannot be served to a peer: %s", digest, error)
            return failure(503, "the content is away", **{"Retry-After": "1"})

    async def _told(self, pulls: Callable[[], Awaitable[bytes]]) -> Response:
        try:
            return Response(body=await pulls(), type="application/json")
        except errors.NodeError as error:
            log.info("peers are not told of pulls: %s", error)
            return failure(503, "the traces are away", **{"Retry-After": "5"})

    async def _blob(self, digest: Digest, request: Request) -> Response:
        if self._upload.backlog > BACKLOG:
            return failure(503, "busy", **{"Retry-After": "5"})
        part = await self._arriving.begun(str(digest), self._wait)
        if part is not None:
            fd, size = part.opened(), part.size
        elif self._arriving.expects(str(digest)):
            return _not_yet(0)
        else:
            fd, size = await self._opened(digest)
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, fd)
            wanted = _wanted(request.headers.get("range", ""), size)
            if wanted is None:
                return failure(416, **{"Content-Range": f"bytes */{size}"})
            start, end = wanted
            headers = {"Accept-Ranges": "bytes"}
            if part is not None:
                have = part.have
                if request.method == "GET":
                    have = await part.beyond(start, self._wait)
                    if have <= start and part.alive:
                        return _not_yet(have)
                    if part.broken or have <= start:
                        return failure(503, "these bytes have not arrived", **{"Retry-After": "5"})
                headers[ARRIVING] = str(have)
            status = 200
            if end - start < size:
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
                status = 206
            pieces = self._pieces(fd, part, start, end)
            stream = Stream(length=end - start, pieces=pieces, close=stack.pop_all().close)
            return Response(status=status, type="application/octet-stream", headers=headers, stream=stream)

    async def _opened(self, digest: Digest) -> tuple[int, int]:
        """A blob of a shared namespace, open, and its size; NotFound."""
        for files in self._files.values():
            try:
                path, size = await files.locate(digest)
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except (errors.NotFound, errors.Unimplemented, FileNotFoundError):
                continue
            except OSError as error:
                raise errors.of_system(error, f"content {digest}") from None
            if os.fstat(fd).st_size != size:
                os.close(fd)
                continue  # damaged; the node's own pull repairs it
            return fd, size
        raise errors.NotFound(f"content {digest}")

    async def _pieces(self, fd: int, part: Part | None, start: int, end: int) -> AsyncGenerator[memoryview]:
        loop = asyncio.get_running_loop()
        while start < end:
            there = end if part is None else min(end, await part.beyond(start, self._wait))
            # a fetch that began again has overwritten the file, or cut it
            if there <= start or (part is not None and part.broken):
                return
            data = await loop.run_in_executor(_POOL, os.pread, fd, min(_READ, there - start), start)
            if not data or (part is not None and part.broken):
                return
            step, whole = self._upload.piece, memoryview(data)
            for at in range(0, len(whole), step):
                piece = whole[at : at + step]
                await self._upload.take(len(piece))
                self.sent += len(piece)
                yield piece
            start += len(data)


def _not_yet(have: int) -> Response:
    """The bytes have not arrived, and the fetch is alive."""
    return failure(503, "these bytes have not arrived yet", **{"Retry-After": "0", ARRIVING: str(have)})


def _wanted(said: str, size: int) -> tuple[int, int] | None:
    """The first byte and the end of the wanted range; the whole if none is asked for, or several are; None if there is
    nothing of it.
    """
    match = _RANGE.fullmatch(said.strip())
    if match is None or match[1] == match[2] == "":
        return 0, size
    if not match[1]:
        start, end = max(0, size - int(match[2])), size
    else:
        start, end = int(match[1]), min(size, int(match[2]) + 1) if match[2] else size
        if match[2] and int(match[2]) < start:
            return 0, size  # malformed, so it does not count (RFC 9110, 14.1.1)
    return (start, end) if start < end else None


def tls(certificates: Certificates) -> Context:
    """How peers' connections agree on TLS: they must have a certificate of the authority. The files are read again when
    they change; if they cannot be used then, it goes on with those before, and the log says so. CertificateError if
    they cannot be used now.
    """
    seen, context = certificates.files(), _context(certificates)

    async def current() -> ssl.SSLContext:
        nonlocal seen, context
        if (now := certificates.files()) != seen:
            seen = now
            try:
                context = await asyncio.to_thread(_context, certificates)
                log.info("peers are served with new certificates")
            except CertificateError as error:
                log.error("peers are served with the certificates from before: %s", error)
        return context

    return current


def _context(certificates: Certificates) -> ssl.SSLContext:
    context = certificates.server_context()
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["http/1.1"])
    return context
