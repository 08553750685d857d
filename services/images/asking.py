"""From a transfer's words to the registry client's: which hosts, whose credentials; descriptors; and where a blob came from, as its labels tell it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from services.content.store import Digest
from services.images import registry, transfer
from services.images.exporting import SOURCE
from services.images.oci import Descriptor
from services.images.registry import Client, Credentials, Hosts, Reference
from services.images.registry.silence import Silence
from services.images.registry.watching import Watch
from services.kit import errors

log = logging.getLogger(__name__)

_URLS = 16
"""Other places of a foreign layer that are tried; there is mostly one."""
_LABEL_LIMIT = 4096
"""Bytes of a label's key and value."""


def client_of(process: registry.Registry, end: transfer.Registry) -> Client:
    """A client for one transfer. Credentials are the request's only: the node's own (docker's, the CRI plugin's) are not for whoever may call Transfer, as in containerd."""
    ask = end.credentials

    async def source(host: str) -> Credentials | None:
        assert ask is not None
        given = await ask(host, ())
        return Credentials(given.username, given.secret, given.header)

    return process.client(source if ask is not None else None, headers=end.headers, hosts=Hosts((Path(end.host_dir),)) if end.host_dir else None,
                          default_scheme=end.default_scheme, watch=Watch(end.show_requests, end.show_connections, Silence()))


def asked(descriptor: Descriptor) -> registry.Descriptor:
    """A descriptor as the client takes it; InvalidArgument for one whose digest is none."""
    try:
        digest = Digest.parse(descriptor.digest)
    except ValueError as error:
        raise errors.InvalidArgument(f"digest {descriptor.digest!r}: {error}") from None
    return registry.Descriptor(digest, descriptor.media_type, descriptor.size, descriptor.urls[:_URLS], descriptor.annotations)


def resolved(descriptor: registry.Descriptor) -> Descriptor:
    """The other way round, of what a name was resolved to."""
    return Descriptor(descriptor.media_type, str(descriptor.digest), descriptor.size)


# ---------------------------------------------------------------------------------------------- where a blob is from


def source_key(reference: Reference) -> str:
    """The label of blobs that says in which repositories of the reference's host they are."""
    host = reference.host
    return f"{SOURCE}.{host[1:].partition(']')[0] if host.startswith('[') else host.partition(':')[0]}"


def with_source(labels: Mapping[str, str], reference: Reference) -> dict[str, str]:
    """The label that a blob with ``labels`` gets when it is found in the reference's repository; none if it has it, or would be too long."""
    key = source_key(reference)
    value = ",".join(sorted({each for each in labels.get(key, "").split(",") if each} | {reference.repository}))
    if len(key) + len(value) > _LABEL_LIMIT:
        log.warning("%s is not noted as a source: the label %s would be too long", reference.repository, key)
        return {}
    return {} if labels.get(key) == value else {key: value}


def mountable(labels: Iterable[Mapping[str, str]], reference: Reference, most: int) -> list[str]:
    """Other repositories of the reference's host in which, by its labels and those of what names it, a blob is: those first whose names begin alike, ``most`` of them."""
    key, target = source_key(reference), reference.repository.split("/")
    found = {each for every in labels for each in every.get(key, "").split(",") if each} - {reference.repository}

    def alike(repository: str) -> int:
        parts = repository.split("/")
        return next((n for n, (one, other) in enumerate(zip(parts, target, strict=False)) if one != other), min(len(parts), len(target)))

    return sorted(found, key=lambda repository: (-alike(repository), repository))[:most]
