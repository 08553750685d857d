"""Labels that record in which repositories of a host a blob is, so that a push can mount it from there."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from services.oci.references import Reference

log = logging.getLogger(__name__)

SOURCE = "containerd.io/distribution.source"
"""Prefix of containerd's labels, followed by a host. Exported manifests keep them."""

_LABEL_LIMIT = 4096
"""Bytes of a label's key and value."""


def source_key(reference: Reference) -> str:
    """The key of the label that records in which repositories of the reference's host a blob is."""
    host = reference.host
    return f"{SOURCE}.{host[1:].partition(']')[0] if host.startswith('[') else host.partition(':')[0]}"


def with_source(labels: Mapping[str, str], reference: Reference) -> dict[str, str]:
    """The label to add to a blob with ``labels`` that was found in the reference's repository. Empty if the blob has
    the label, or if the label would be too long.
    """
    key = source_key(reference)
    value = ",".join(sorted({each for each in labels.get(key, "").split(",") if each} | {reference.repository}))
    if len(key) + len(value) > _LABEL_LIMIT:
        log.warning("%s is not recorded as a source: the label %s would be too long", reference.repository, key)
        return {}
    return {} if labels.get(key) == value else {key: value}


def mountable(labels: Iterable[Mapping[str, str]], reference: Reference, most: int) -> list[str]:
    """At most ``most`` other repositories of the reference's host that have a blob, according to its labels and those
    of the documents that name it. Those whose names are most similar come first.
    """
    key, target = source_key(reference), reference.repository.split("/")
    found = {each for every in labels for each in every.get(key, "").split(",") if each} - {reference.repository}

    def alike(repository: str) -> int:
        parts = repository.split("/")
        return next(
            (n for n, (one, other) in enumerate(zip(parts, target, strict=False)) if one != other),
            min(len(parts), len(target)),
        )

    return sorted(found, key=lambda repository: (-alike(repository), repository))[:most]
