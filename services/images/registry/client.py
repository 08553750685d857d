"""The registry client. :class:`Registry` belongs to a process: connections, and what is remembered of hosts.
:class:`Client` belongs to one transfer: its credentials and its hosts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self

from services.images.registry.credentials import Source
from services.images.registry.download import Download
from services.images.registry.endpoint import Endpoint, ForeignUrl, Place
from services.images.registry.host import TLS, Capability, is_address, public
from services.images.registry.host_memory import HostMemory
from services.images.registry.hosts import Hosts
from services.images.registry.http_debug import NO_DEBUG, HttpDebug
from services.images.registry.resolve import manifest, resolve
from services.images.registry.transport import Sessions
from services.images.registry.upload import Pushed, Read, Upload
from services.images.registry_timeouts import Retry, Timeouts
from services.kit import errors
from services.oci.descriptors import Descriptor
from services.oci.media_types import is_non_distributable
from services.oci.references import Reference

_URLS = 16
"""Other addresses of a foreign layer that are tried; mostly there is one."""


class Registry:
    """All registries, for a process. A context manager; or call :meth:`close`."""

    def __init__(
        self,
        hosts: Hosts = Hosts(),
        *,
        timeouts: Timeouts = Timeouts(),
        retry: Retry = Retry(),
        memory: HostMemory | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``clock`` gives the time, in seconds, by which tokens are replaced."""
        self.clock = clock
        self.hosts = hosts
        self.timeouts = timeouts
        self.retry = retry
        self.memory = memory or HostMemory()
        """What is remembered of hosts; its ``snapshot()`` is for people."""
        self.sessions = Sessions(timeouts)

    def client(
        self,
        source: Source | None = None,
        *,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        hosts: Hosts | None = None,
        default_scheme: str = "",
        plain_http: bool = False,
        watch: HttpDebug = NO_DEBUG,
    ) -> Client:
        """A client for one transfer. ``source`` gives the credentials (:mod:`.credentials`). ``headers`` go to every
        configured host. ``hosts`` replace the process's. ``watch`` is shown the requests.
        """
        if default_scheme not in ("", "http", "https"):
            raise errors.InvalidArgument(f'default scheme "{default_scheme}": neither http nor https')
        pairs = tuple(headers.items() if isinstance(headers, Mapping) else headers)
        return Client(self, hosts or self.hosts, source, pairs, "http" if plain_http else default_scheme, watch)

    async def close(self) -> None:
        """Close all connections."""
        await self.sessions.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class Client:
    """Reads from registries and writes to them. References are given in full, as text or parsed. Tokens are kept as
    long as the client.
    """

    def __init__(
        self,
        registry: Registry,
        hosts: Hosts,
        source: Source | None,
        headers: tuple[tuple[str, str], ...],
        default_scheme: str,
        watch: HttpDebug,
    ) -> None:
        self._registry = registry
        self._hosts = hosts
        self._source = source
        self._headers = headers
        self._scheme = default_scheme
        self._watch = watch
        self._endpoints: dict[str, list[Endpoint]] = {}
        self._making = asyncio.Lock()

    async def resolve(self, reference: Reference | str) -> Descriptor:
        """The target of a reference; see :func:`.resolve.resolve`."""
        reference = _parsed(reference)
        return await resolve(reference, await self._of(reference), self._registry.memory, self._registry.retry)

    async def manifest(self, reference: Reference | str, descriptor: Descriptor) -> bytes:
        """A manifest or index, verified; see :func:`.resolve.manifest`."""
        return (await self.manifest_and_host(reference, descriptor))[0]

    async def manifest_and_host(self, reference: Reference | str, descriptor: Descriptor) -> tuple[bytes, str]:
        """As :meth:`manifest`, with the host that served it."""
        reference = _parsed(reference)
        return await manifest(
            reference, descriptor, await self._of(reference), self._registry.memory, self._registry.retry
        )

    def fetch(
        self,
        reference: Reference | str,
        descriptor: Descriptor,
        offset: int = 0,
        length: int | None = None,
        *,
        part_only: bool = False,
    ) -> Download:
        """``async with client.fetch(...) as body:`` gives the bytes of a blob or manifest, from ``offset`` on, at most
        ``length``; see :mod:`.download`.

        ``part_only``: NoParts from a host that would also send everything before them.
        """
        parsed = _parsed(reference)
        return Download(
            parsed,
            descriptor,
            offset,
            length,
            lambda: self._places(parsed, descriptor),
            self._registry.memory,
            self._registry.timeouts,
            self._registry.retry,
            part_only=part_only,
        )

    async def _places(self, reference: Reference, descriptor: Descriptor) -> list[Place]:
        places: list[Place] = [each for each in await self._of(reference) if Capability.PULL in each.can]
        if descriptor.urls:
            session = await self._registry.sessions.of(TLS())
            urls = [
                ForeignUrl(url, session, self._registry.timeouts, self._watch)
                for url in descriptor.urls[:_URLS]
                if is_address(url)
            ]
            places = [*urls, *places] if is_non_distributable(descriptor.media_type) else [*places, *urls]
        if not places:
            raise errors.NotFound(f"{reference}: none of the hosts configured for {reference.host} may be pulled from")
        return places

    async def exists(self, reference: Reference | str, descriptor: Descriptor) -> bool:
        """Whether the host that is pushed to has the blob or manifest."""
        return await (await self._push(reference)).exists(descriptor)

    async def push_blob(
        self,
        reference: Reference | str,
        descriptor: Descriptor,
        read: Read,
        *,
        mount_from: Sequence[str] = (),
        piece: int = 0,
    ) -> Pushed:
        """Ensure that the repository has a blob; ``read(offset)`` gives its bytes; see :class:`.upload.Upload`.
        ``mount_from`` are repositories of the same host.
        """
        return await (await self._push(reference)).blob(descriptor, read, mount_from=mount_from, piece=piece)

    async def push_manifest(self, reference: Reference | str, descriptor: Descriptor, data: bytes) -> None:
        """Store a manifest or index: under the tag if the reference has one and no other digest, else under its
        digest.
        """
        await (await self._push(reference)).manifest(descriptor, data)

    async def _push(self, reference: Reference | str) -> Upload:
        reference = _parsed(reference)
        able = [each for each in await self._of(reference) if Capability.PUSH in each.can]
        if not able:
            raise errors.NotFound(f"{reference}: none of the hosts configured for {reference.host} may be pushed to")
        return Upload(reference, able[0], self._registry.memory, self._registry.timeouts, self._registry.retry)

    async def _of(self, reference: Reference) -> list[Endpoint]:
        """The hosts of the reference's namespace, as configured when this client first asked."""
        async with self._making:  # an endpoint has its host's token, which all layers share
            if reference.host not in self._endpoints:
                hosts = self._hosts.of(reference.host, self._scheme)
                self._endpoints[reference.host] = [
                    Endpoint(
                        host,
                        await self._registry.sessions.of(host.tls),
                        namespace=reference.host,
                        source=self._source,
                        headers=self._headers,
                        clock=self._registry.clock,
                        timeouts=self._registry.timeouts,
                        then=public(hosts[number + 1].host) if number < len(hosts) - 1 else "",
                        watch=self._watch,
                    )
                    for number, host in enumerate(hosts)
                ]
            return self._endpoints[reference.host]


def _parsed(reference: Reference | str) -> Reference:
    return reference if isinstance(reference, Reference) else Reference.parse(reference)
