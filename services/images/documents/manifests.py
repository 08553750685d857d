"""OCI's documents: descriptors, manifests, indexes and configs; their references, and the labels by which the garbage
collector knows these.

An *index* lists manifests; a *manifest* names its config and its layers. Each reference is a *descriptor*: media type,
digest, size. Docker's own media types have the same meaning. Documents are read as Go reads them (``kit/gojson.py``)
and written as Go writes them, byte for byte, so that an archive has the same digests here and in containerd.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from services.kit import errors, gojson
from services.kit.gojson import ANYTHING, BASE64, INTEGER, TEXT, ListOf, MapOf, Optional, Shape, Struct
from services.kit.identifiers import quoted
from services.oci.descriptors import Descriptor
from services.oci.digests import Digest
from services.oci.media_types import DOCKER_SCHEMA_1, INDEX, MANIFEST, is_index, is_known_config, is_layer, is_manifest
from services.oci.platforms import Platform

SUBJECT = "io.containerd.manifest.subject"
"""Annotation of a descriptor that was found as a referrer."""

DOCUMENT_LIMIT = 8 << 20
"""Bytes of a document that is read into memory."""

REFERENCES = 10_000
"""Descriptors that a document may have, and that a walk through an image's documents may meet. A descriptor counts each
time it is met, as in containerd since 2.4.1.
"""


# ---------------------------------------------------------------------------------------------- JSON


def encoded(document: Any, indent: int | None = None) -> bytes:
    """JSON as Go writes it: without spaces, or with a line for each value, indented by ``indent``; <, > and & are
    escaped.
    """
    text = json.dumps(
        document, separators=(",", ":") if indent is None else (",", ": "), ensure_ascii=False, indent=indent
    )
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text.encode(errors="replace")


def descriptor_to_json(descriptor: Descriptor) -> dict[str, Any]:
    """In the order of Go's fields, without the empty ones."""
    found: dict[str, Any] = {"mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size}
    optional = {
        "urls": list(descriptor.urls),
        "annotations": dict(sorted(descriptor.annotations.items())),
        "data": base64.b64encode(descriptor.data).decode(),
        "platform": platform_to_json(descriptor.platform) if descriptor.platform else None,
        "artifactType": descriptor.artifact_type,
    }
    return found | {key: value for key, value in optional.items() if value}


def platform_to_json(platform: Platform) -> dict[str, Any]:
    found: dict[str, Any] = {"architecture": platform.architecture, "os": platform.os}
    optional = {
        "os.version": platform.os_version,
        "os.features": list(platform.os_features),
        "variant": platform.variant,
    }
    return found | {key: value for key, value in optional.items() if value}


def _platform(found: Mapping[str, Any]) -> Platform:
    """The platform of a descriptor or of a config, which has the same fields among others."""
    return Platform(
        found.get("os", ""),
        found.get("architecture", ""),
        found.get("variant", ""),
        found.get("os.version", ""),
        tuple(found.get("os.features") or ()),
    )


def _descriptor(found: Mapping[str, Any]) -> Descriptor:
    platform = found.get("platform")
    return Descriptor(
        found.get("mediaType", ""),
        found.get("digest", ""),
        found.get("size", 0),
        found.get("annotations") or {},
        None if platform is None else _platform(platform),
        tuple(found.get("urls") or ()),
        found.get("data") or b"",
        found.get("artifactType", ""),
    )


_PLATFORM: dict[str, Shape] = {
    "os": TEXT,
    "architecture": TEXT,
    "variant": TEXT,
    "os.version": TEXT,
    "os.features": ListOf(TEXT),
}
_DESCRIPTOR = Struct(
    {
        "mediaType": TEXT,
        "digest": TEXT,
        "size": INTEGER,
        "urls": ListOf(TEXT),
        "annotations": MapOf(TEXT),
        "data": BASE64,
        "artifactType": TEXT,
        "platform": Optional(Struct(_PLATFORM)),
    }
)
_MANIFEST = Struct(
    {
        "schemaVersion": INTEGER,
        "mediaType": TEXT,
        "artifactType": TEXT,
        "config": _DESCRIPTOR,
        "layers": ListOf(_DESCRIPTOR),
        "subject": Optional(_DESCRIPTOR),
        "annotations": MapOf(TEXT),
        "manifests": ANYTHING,
        "fsLayers": ANYTHING,
    }
)
_INDEX = Struct(
    {"mediaType": TEXT, "manifests": ListOf(_DESCRIPTOR), "config": ANYTHING, "layers": ANYTHING, "fsLayers": ANYTHING}
)
_TELLING = Struct(
    {"schemaVersion": INTEGER, "mediaType": TEXT, "manifests": ANYTHING, "layers": ANYTHING, "config": ANYTHING}
)
_LAYOUT = Struct({"imageLayoutVersion": TEXT})
_SAVED = ListOf(Struct({"Config": TEXT, "RepoTags": ListOf(TEXT), "Layers": ListOf(TEXT)}))
_CONFIG = Struct({**_PLATFORM, "rootfs": Struct({"type": TEXT, "diff_ids": ListOf(TEXT)})})


# ---------------------------------------------------------------------------------------------- what refers to what


def children_in(document: bytes, descriptor: Descriptor) -> list[Descriptor]:
    """The children of a manifest or an index, in its order: the config before the layers.

    Unknown for a document of another kind than its descriptor says. InvalidArgument for a child whose digest or size is
    invalid, ResourceExhausted for too many children.
    """
    manifest = is_manifest(descriptor.media_type)
    if not manifest and not is_index(descriptor.media_type):
        return []
    what = f"{'manifest' if manifest else 'index'} {descriptor.digest}"
    found = gojson.document(document, _MANIFEST if manifest else _INDEX, what)
    own = found.get("mediaType", "")
    invalid = f"children: invalid desc {descriptor.digest}: media-type"
    if "fsLayers" in found:
        raise errors.Unknown(f"{invalid}: schema 1 not supported")
    if manifest and ("manifests" in found or is_index(own)):
        raise errors.Unknown(f"{invalid}: expected manifest but found index ({descriptor.media_type})")
    if not manifest and ("config" in found or "layers" in found or is_manifest(own)):
        raise errors.Unknown(f"{invalid}: expected index but found manifest ({descriptor.media_type})")
    listed = [found.get("config", {}), *(found.get("layers") or ())] if manifest else found.get("manifests") or []
    if len(listed) > REFERENCES:
        raise errors.ResourceExhausted(f"{what}: too many descriptors (limit {REFERENCES})")
    return [_checked(_descriptor(child), what) for child in listed]


def _checked(child: Descriptor, what: str) -> Descriptor:
    """A child of the document ``what``, validated: it can be named in labels and asked for."""
    try:
        Digest.parse(child.digest)
    except ValueError as error:
        raise errors.InvalidArgument(f"{what}: {quoted(child.digest[:100])}: {error}") from None
    if child.size < 0:
        raise errors.InvalidArgument(f"{what}: {child.digest}: invalid descriptor size {child.size}")
    return child


def media_type_in(document: bytes) -> str:
    """The media type that a manifest's JSON states or implies; "" if none. gojson.Malformed if it is no such JSON."""
    found = gojson.read(document, _TELLING)
    if found.get("schemaVersion") == 1:
        return DOCKER_SCHEMA_1
    if found.get("mediaType"):
        return str(found["mediaType"])
    if "manifests" in found:
        return INDEX
    return MANIFEST if "layers" in found and "config" in found else ""


def layout_version_in(document: bytes, what: str) -> str:
    """The version of an OCI layout, from its file ``oci-layout``; "" if it has none. Unknown, with ``what``."""
    return gojson.document(document, _LAYOUT, what, first=True).get("imageLayoutVersion") or ""


def saved_in(document: bytes, what: str) -> list[dict[str, Any]]:
    """The images of a ``docker save`` archive, from its file ``manifest.json``. Unknown, with ``what``."""
    return gojson.document(document, _SAVED, what, first=True) or []


def with_config(document: bytes, descriptor: Descriptor, config: Descriptor) -> bytes:
    """The manifest ``document``, whose children are valid, with another config, as containerd writes it: indented by
    three.
    """
    found = gojson.document(document, _MANIFEST, f"manifest {descriptor.digest}")
    return encoded(
        {
            "schemaVersion": found.get("schemaVersion", 0),
            **{key: found[key] for key in ("mediaType", "artifactType") if found.get(key)},
            "config": descriptor_to_json(config),
            "layers": [descriptor_to_json(_descriptor(layer)) for layer in found.get("layers") or ()],
            **(
                {"subject": descriptor_to_json(_descriptor(found["subject"]))}
                if found.get("subject") is not None
                else {}
            ),
            **({"annotations": dict(sorted(found["annotations"].items()))} if found.get("annotations") else {}),
        },
        indent=3,
    )


def reference_labels(children: Iterable[Descriptor]) -> dict[str, str]:
    """The labels of a document by which the collector keeps its children."""
    return dict(each_reference_label(children))


def each_reference_label(children: Iterable[Descriptor]) -> Iterator[tuple[str, str]]:
    """The labels, one by one; of those with the same key the last counts."""
    counts: dict[str, int] = {}
    for child in children:
        kind = _reference_kind(child)
        number = counts.get(kind, 0)
        counts[kind] = number + 1
        if kind.endswith(".sha256."):
            key = kind + child.digest.partition(":")[2][:12]
        else:
            key = f"{kind}{number}" if number or kind.endswith(".") else kind
        yield f"containerd.io/gc.ref.content{key}", child.digest


def _reference_kind(child: Descriptor) -> str:
    if SUBJECT in child.annotations:
        return ".referrer.sha256."
    if is_known_config(child.media_type):
        return ".config"
    if is_manifest(child.media_type):
        return ".m."
    return ".l." if is_layer(child.media_type) else "."


@dataclass(frozen=True, slots=True)
class Config:
    """The parts of an image's config that unpacking needs."""

    platform: Platform
    diff_ids: tuple[str, ...]
    kind: str
    """"layers" for an image, or empty."""

    @classmethod
    def parse(cls, document: bytes, digest: str) -> Config:
        """Unknown if it is no config."""
        what = f"unmarshal image config {digest}"
        found = gojson.document(document, _CONFIG, what)
        rootfs = found.get("rootfs", {})
        return cls(_platform(found).normalized(), tuple(rootfs.get("diff_ids") or ()), rootfs.get("type", ""))
