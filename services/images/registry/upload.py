"""Pushes blobs, each once, and the manifests that name them.

A blob that the repository has is not sent. One that another repository of the host has is mounted from there, if that
is allowed. Otherwise it is uploaded: POST opens an upload; PUT sends the bytes and names the digest; or PATCH sends
them in pieces, for registries behind a proxy that limits requests. An upload that breaks continues at the registry's
offset (GET on its Location), or starts anew. Nothing is retried on another host: a push goes to the one host that may
be pushed to.
"""

from __future__ import annotations

import asyncio
import enum
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Sequence

from services.images.registry.endpoint import Endpoint, push_scopes
from services.images.registry.failover import Failover
from services.images.registry.failure import Blame, Failure
from services.images.registry.host_memory import HostMemory
from services.images.registry.limits import MANIFEST_LIMIT
from services.images.registry.transport import Answer
from services.images.registry_timeouts import Retry, Timeouts
from services.kit import errors
from services.kit.tracing import Span, span
from services.oci.descriptors import Descriptor
from services.oci.references import Reference

Read = Callable[[int], AsyncIterator[bytes]]
"""A blob's bytes from an offset on; called again if an upload has to continue."""

_RANGE = re.compile(r"(?:bytes[= ])?0-([0-9]{1,19})")


class Pushed(enum.Enum):
    """How a blob came into the repository."""

    EXISTED = "existed"
    MOUNTED = "mounted"
    UPLOADED = "uploaded"


class Upload:
    """Uploads to ``reference``'s repository at ``endpoint``."""

    def __init__(
        self, reference: Reference, endpoint: Endpoint, memory: HostMemory, timeouts: Timeouts, retry: Retry
    ) -> None:
        self._reference = reference
        self._endpoint = endpoint
        self._memory = memory
        self._timeouts = timeouts
        self._retry = retry
        self._scopes = push_scopes(reference)

    async def exists(self, descriptor: Descriptor) -> bool:
        """Whether the repository has it; a manifest under the reference's tag, if the tag is to name it."""
        digest, path = descriptor.checked(), self._path(descriptor)

        async def asked(endpoint: Endpoint) -> bool:
            try:
                answer = await endpoint.send(
                    "HEAD",
                    endpoint.url(self._reference, path),
                    headers={"Accept": f"{descriptor.media_type}, */*"},
                    scopes=self._scopes,
                )
            except Failure as failure:
                if failure.status == 404:
                    return False
                raise
            by_digest, said = path.endswith(descriptor.digest), answer.headers.get("Docker-Content-Digest")
            try:
                if answer.method == "GET" and not by_digest and not said:
                    data = await answer.read(MANIFEST_LIMIT)
                    said = f"{digest.algorithm}:{hashlib.new(digest.algorithm, data).hexdigest()}"
            finally:
                answer.release()  # this also ends the answer to a GET
            return by_digest or said == descriptor.digest

        return await self._failover(descriptor).run(asked)

    async def blob(
        self, descriptor: Descriptor, read: Read, *, mount_from: Sequence[str] = (), piece: int = 0
    ) -> Pushed:
        """Ensure that the repository has a blob. ``piece`` is the limit of bytes in one request; 0: all."""
        with self._span(descriptor, descriptor.size) as traced:
            how = await self._blob(descriptor, read, mount_from, piece)
            traced.set(**{"splitd.registry.pushed": how.value})
            return how

    def _span(self, descriptor: Descriptor, size: int) -> Span:
        about: dict[str, str | int] = {
            "oci.manifest.digest" if descriptor.is_root else "oci.layer.digest": descriptor.digest,
            "server.address": self._endpoint.name,
            "splitd.bytes": size,
        }
        return span("registry.push", **about)

    async def manifest(self, descriptor: Descriptor, data: bytes) -> None:
        """Store a manifest or index, under the reference's tag if the reference names it, else under its digest."""
        path = self._path(descriptor)

        async def put(endpoint: Endpoint) -> None:
            answer = await endpoint.send(
                "PUT",
                endpoint.url(self._reference, path),
                scopes=self._scopes,
                body=lambda: data,
                stall=self._timeouts.answer,
                headers={"Content-Type": descriptor.media_type, "Content-Length": str(len(data))},
            )
            _check_digest(answer, descriptor)

        with self._span(descriptor, len(data)):
            await self._failover(descriptor).run(put)

    async def _blob(self, descriptor: Descriptor, read: Read, mount_from: Sequence[str], piece: int) -> Pushed:
        if await self.exists(descriptor):
            return Pushed.EXISTED
        upload = _Upload(self._reference, self._endpoint, descriptor, read, self._timeouts, self._scopes, piece)
        for repository in mount_from:
            if await self._failover(descriptor).run(lambda _, repository=repository: upload.mounted(repository)):  # type: ignore[misc]
                return Pushed.MOUNTED
            if upload.location:
                break  # it has opened an upload instead, as it may
        tries, begun = self._failover(descriptor), 0

        async def send(_: Endpoint) -> None:
            nonlocal begun
            try:
                await upload.send()
            except Failure:
                if upload.offset - begun >= self._retry.progress:
                    tries.progress()
                begun = upload.offset
                raise

        await tries.run(send)
        return Pushed.UPLOADED

    def _path(self, descriptor: Descriptor) -> str:
        if not descriptor.is_root:
            return f"blobs/{descriptor.digest}"
        named = self._reference.tag and self._reference.digest in (None, descriptor.checked())
        return f"manifests/{self._reference.tag if named else descriptor.digest}"

    def _failover(self, descriptor: Descriptor) -> Failover[Endpoint]:
        return Failover(
            f"{self._reference.host}/{self._reference.repository}: push of {descriptor}",
            [self._endpoint],
            self._memory,
            self._retry,
        )


class _Upload:
    """One blob that is being uploaded: its offset in the registry, and the address for the rest."""

    def __init__(
        self,
        reference: Reference,
        endpoint: Endpoint,
        descriptor: Descriptor,
        read: Read,
        timeouts: Timeouts,
        scopes: tuple[str, ...],
        piece: int,
    ) -> None:
        self.location = ""
        self.offset = 0
        self._reference = reference
        self._endpoint = endpoint
        self._descriptor = descriptor
        self._read = read
        self._timeouts = timeouts
        self._scopes = scopes
        self._piece = piece
        self._broken = False

    async def mounted(self, repository: str) -> bool:
        """Whether the blob could be mounted from another repository of the host; if not, an upload may be open now."""
        query = [("mount", self._descriptor.digest), ("from", repository)]
        try:
            answer = await self._posted(query, push_scopes(self._reference, repository))
        except Failure as failure:
            if failure.status in (400, 401, 403, 404) or failure.kind is errors.Unauthenticated:
                return False  # we may not read it, or mounting is not possible
            raise
        return answer.status == 201

    async def send(self) -> None:
        """Send the bytes that the registry does not have, and name the digest."""
        if self._broken:
            await self._find_out()
        if not self.location:
            self.offset = 0
            if (await self._posted([], self._scopes)).status == 201:
                return
        self._broken = True
        size = self._descriptor.size
        while (self._piece and size - self.offset > self._piece) or (self.offset and self.offset < size):
            await self._patched(min(self._piece or size, size - self.offset))
        digest = f"{'&' if '?' in self.location else '?'}digest={self._descriptor.digest}"
        answer = await self._put("PUT", f"{self.location}{digest}", size - self.offset, {})
        _check_digest(answer, self._descriptor)

    async def _posted(self, query: list[tuple[str, str]], scopes: tuple[str, ...]) -> Answer:
        url = self._endpoint.url(self._reference, "blobs/uploads/", query)
        answer = await self._endpoint.send("POST", url, headers={"Content-Length": "0"}, scopes=scopes)
        answer.release()
        if answer.status != 201:
            self._moved(answer, needed=True)
        return answer

    async def _patched(self, length: int) -> None:
        start = self.offset
        answer = await self._put("PATCH", self.location, length, {"Content-Range": f"{start}-{start + length - 1}"})
        self._moved(answer)
        self.offset = start + length

    async def _put(self, method: str, url: str, length: int, headers: dict[str, str]) -> Answer:
        """Send ``length`` bytes from the offset on. A stall of the registry is a Failure; an error of the source is
        raised unchanged.
        """
        trouble: list[Exception] = []
        stall, loop, start = self._timeouts.stall, asyncio.get_running_loop(), self.offset
        watch = asyncio.timeout(None)

        async def body() -> AsyncIterator[bytes]:
            left = length
            try:
                async for chunk in self._read(start):
                    part = chunk[:left]
                    left -= len(part)
                    if part:
                        watch.reschedule(loop.time() + stall)
                        yield part
                        watch.reschedule(None)  # until the source has more
                    if not left:
                        break
                if left:
                    raise errors.FailedPrecondition(f"{self._descriptor}: its source ended {left} bytes early")
            except Exception as error:
                trouble.append(error)
                raise

        try:
            async with watch:
                answer = await self._endpoint.send(
                    method,
                    url,
                    scopes=self._scopes,
                    stall=self._timeouts.answer,
                    body=body if length else None,
                    headers={"Content-Type": "application/octet-stream", "Content-Length": str(length), **headers},
                )
        except Failure:
            if trouble:
                raise trouble[0] from None
            raise
        except TimeoutError:
            if not watch.expired():
                raise
            raise Failure(
                self._endpoint.name,
                f"took no more bytes for {stall:g} s",
                transient=True,
                blame=Blame.TROUBLE,
                named="stall",
            ) from None
        answer.release()
        return answer

    async def _find_out(self) -> None:
        """Ask for the offset of a broken upload; if the registry cannot tell, begin anew."""
        self._broken = False
        location, self.location = self.location, ""
        try:
            answer = await self._endpoint.send("GET", location, headers={}, scopes=self._scopes)
        except Failure as failure:
            if failure.transient:
                self.location, self._broken = location, True
                raise
            return
        answer.release()
        has = _RANGE.fullmatch(answer.headers.get("Range", "").strip())
        if has is not None and int(has[1]) < self._descriptor.size:
            self.location = location
            self._moved(answer)
            # Some registries answer "0-0" for no bytes as well as for one; sending that one again would be wrong, so
            # such an upload begins anew.
            self.offset = int(has[1]) + 1
            if self.offset == 1:
                self.location = ""

    def _moved(self, answer: Answer, *, needed: bool = False) -> None:
        location = answer.headers.get("Location", "")
        if not location and needed:
            raise Failure(answer.host, "it opened an upload and did not say where", kind=errors.FailedPrecondition)
        if location:
            self.location = self._endpoint.absolute(location, answer.url)


def _check_digest(answer: Answer, descriptor: Descriptor) -> None:
    answer.release()
    said = answer.headers.get("Docker-Content-Digest", "")
    if said and said != descriptor.digest:
        raise Failure(
            answer.host, f"stored {descriptor} as {said[:100]}", kind=errors.FailedPrecondition, status=answer.status
        )
