"""Resolves a name: a tag or a digest to a descriptor. Also fetches manifests, which are small enough to be verified
before they are used.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence

from services.images.documents.manifests import media_type_in
from services.images.documents.parser_program import read
from services.images.registry.accept import ACCEPT, media_type_of, why_no_root
from services.images.registry.endpoint import Endpoint, pull_scopes
from services.images.registry.failover import Failover
from services.images.registry.failure import Blame, Failure
from services.images.registry.host import Capability
from services.images.registry.host_memory import HostMemory
from services.images.registry.limits import MANIFEST_LIMIT
from services.images.registry.transport import Answer
from services.images.registry_timeouts import Retry
from services.kit import errors, gojson
from services.kit.tracing import span
from services.oci.descriptors import Descriptor
from services.oci.digests import Digest
from services.oci.media_types import SCHEMA_1, is_root
from services.oci.references import Reference


async def resolve(reference: Reference, endpoints: Sequence[Endpoint], memory: HostMemory, retry: Retry) -> Descriptor:
    """The descriptor of the target of ``reference``.

    A tag is asked only of hosts that may RESOLVE. A digest is asked of any that may be pulled from, since the answer
    can be verified. NotFound, Unauthenticated, PermissionDenied, Unavailable; Unimplemented for schema 1 and for
    something that is no image; ResourceExhausted for a manifest that is too large. Each only if no host has a better
    answer.
    """
    wanted = Capability.PULL if reference.digest else Capability.PULL | Capability.RESOLVE
    able = [each for each in endpoints if wanted in each.can]
    if not able:
        raise errors.NotFound(
            f"{reference}: none of the hosts configured for {reference.host} may "
            f"{'be pulled from' if reference.digest else 'resolve a tag'}"
        )
    target = reference.target
    with span("registry.resolve", **{"container.image.name": str(reference)}) as traced:
        tries = Failover(str(reference), able, memory, retry)
        found, host = await tries.run(lambda endpoint: _asked(endpoint, reference, target))
        traced.set(**{"oci.manifest.digest": found.digest, "server.address": host})
        traced.set(**{"splitd.registry.attempts": tries.attempts})
        return found


async def manifest(
    reference: Reference, descriptor: Descriptor, endpoints: Sequence[Endpoint], memory: HostMemory, retry: Retry
) -> tuple[bytes, str]:
    """The bytes of a manifest or index, whose digest was verified, and the host that served them.

    FailedPrecondition if the bytes do not match, ResourceExhausted if there are too many; both only if no host has the
    right ones.
    """
    descriptor.checked()
    able = [each for each in endpoints if Capability.PULL in each.can]

    async def got(endpoint: Endpoint) -> tuple[bytes, str]:
        headers = {"Accept": f"{descriptor.media_type}, */*"}
        url = endpoint.url(reference, f"manifests/{descriptor.digest}")
        answer = await endpoint.send("GET", url, headers=headers, scopes=pull_scopes(reference))
        data = await _body(answer, f"manifest {descriptor.digest}", descriptor.size)
        await _verify(data, descriptor, answer.host)
        return data, answer.host

    with span("registry.manifest", **{"oci.manifest.digest": descriptor.digest}) as traced:
        tries = Failover(f"{reference.host}/{reference.repository}: manifest {descriptor.digest}", able, memory, retry)
        data, host = await tries.run(got)
        traced.set(**{"server.address": host})
        traced.set(**{"splitd.registry.attempts": tries.attempts, "splitd.bytes": len(data)})
        return data, host


async def _asked(endpoint: Endpoint, reference: Reference, target: str) -> tuple[Descriptor, str]:
    """Ask one host: HEAD, and GET if that does not say enough. If the answer is no manifest, that is the host's
    failure: another host may have the image.
    """
    url, scopes = endpoint.url(reference, f"manifests/{target}"), pull_scopes(reference)
    answer = await endpoint.send("HEAD", url, headers={"Accept": ACCEPT}, scopes=scopes)
    if answer.method == "HEAD":
        answer.release()
        said = answer.headers.get("Docker-Content-Digest", "")
        media_type = media_type_of(answer.headers.get("Content-Type", ""))
        digest = reference.digest
        if digest is None and said:
            try:
                digest = Digest.parse(said)
            except ValueError as error:
                raise Failure(
                    answer.host,
                    f'its Docker-Content-Digest "{said[:100]}": {error}',
                    kind=errors.FailedPrecondition,
                    status=200,
                ) from None
        if (
            digest is not None
            and answer.length
            and not answer.codings
            and (media_type in SCHEMA_1 or is_root(media_type))
        ):
            _check_size(answer.length, f"manifest {target}", answer.host)
            _check_root(media_type, reference, answer.host)
            return Descriptor(media_type, str(digest), answer.length), answer.host
        answer = await endpoint.send("GET", url, headers={"Accept": ACCEPT}, scopes=scopes)
    data = await _body(answer, f"manifest {target}")
    said = media_type_of(answer.headers.get("Content-Type", ""))
    media_type = await _media_type(data, said, reference, answer.host)
    digest = reference.digest or Digest("sha256", await _hashed("sha256", data))
    found = Descriptor(media_type, str(digest), len(data))
    await _verify(data, found, answer.host)
    return found, answer.host


async def _media_type(data: bytes, said: str, reference: Reference, host: str) -> str:
    """The media type of a manifest, from its header or its own JSON."""
    try:
        inside = await read(data, media_type_in)
    except gojson.Malformed as error:
        _check_root(said, reference, host)
        raise Failure(
            host, f"{reference} is not an image manifest: {error}", kind=errors.Unimplemented, status=200
        ) from None
    if is_root(said) and not inside:
        raise Failure(
            host,
            f"{reference} is not an image manifest: it has neither layers nor manifests",
            kind=errors.Unimplemented,
            status=200,
        )
    media_type = said if is_root(said) and inside not in SCHEMA_1 else inside or said
    _check_root(media_type, reference, host)
    return media_type


def _check_root(media_type: str, reference: Reference, host: str) -> None:
    if why := why_no_root(media_type):
        raise Failure(host, f"{reference} {why}", kind=errors.Unimplemented, status=200)


async def _body(answer: Answer, what: str, expected: int = 0) -> bytes:
    try:
        if answer.length is not None:
            _check_size(answer.length, what, answer.host)
        if expected and answer.length == expected:  # if the size is right, the body is only mislabelled
            answer.codings.clear()
        data = await answer.read(MANIFEST_LIMIT + 1)
        _check_size(len(data), what, answer.host)
        if answer.length is not None and len(data) < answer.length:
            raise Failure(
                answer.host,
                f"{what} ended after {len(data)} of {answer.length} bytes",
                transient=True,
                blame=Blame.TROUBLE,
            )
    except BaseException:
        answer.close()
        raise
    answer.release()
    return data


def _check_size(size: int, what: str, host: str) -> None:
    if size > MANIFEST_LIMIT:
        raise Failure(
            host,
            (
                f"{what} has {'at least ' if size == MANIFEST_LIMIT + 1 else ''}{size} bytes; no more than "
                f"{MANIFEST_LIMIT} are taken"
            ),
            kind=errors.ResourceExhausted,
            status=200,
        )


async def _verify(data: bytes, descriptor: Descriptor, host: str) -> None:
    if descriptor.size and len(data) != descriptor.size:
        raise Failure(
            host,
            f"manifest {descriptor.digest} has {len(data)} bytes; {descriptor.size} are expected",
            kind=errors.FailedPrecondition,
            status=200,
            blame=Blame.TROUBLE,
        )
    expected = descriptor.checked()
    found = await _hashed(expected.algorithm, data)
    if found != expected.hex:
        raise Failure(
            host,
            f"manifest {descriptor.digest} has other content, with the digest {expected.algorithm}:{found}",
            kind=errors.FailedPrecondition,
            status=200,
            blame=Blame.TROUBLE,
        )


async def _hashed(algorithm: str, data: bytes) -> str:
    """The hash; computed in a thread if that takes longer than a hop to one."""
    return (
        hashlib.new(algorithm, data).hexdigest()
        if len(data) < _SMALL
        else await asyncio.to_thread(lambda: hashlib.new(algorithm, data).hexdigest())
    )


_SMALL = 1 << 18
