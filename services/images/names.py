"""The names under which an image store keeps an image, and the images that it means as a source.

An archive names an image by annotations of its descriptor. containerd's has the full reference. OCI's often has only a
tag; the importer then puts a prefix before it.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Mapping

from services.images.transfer import Image, ImageStore, Node
from services.kit import errors
from services.oci.descriptors import Descriptor

IMAGE_NAME = "io.containerd.image.name"
"""containerd's annotation: the full reference."""

REF_NAME = "org.opencontainers.image.ref.name"
"""OCI's annotation: a reference, or only a tag."""


def of_archive(store: ImageStore, target: Descriptor) -> list[Image]:
    """The images to create for one entry of an archive's index: named by its annotations, as far as the store's
    prefixes permit.
    """
    images = []
    for reference in store.references:
        if not reference.is_prefix:
            continue
        name = of_annotations(target.annotations, with_prefix(reference.name, strict=not reference.allow_overwrite))
        if name:
            images.append(name)
        if reference.add_digest and not (name and reference.skip_named_digest):
            images.append(f"{reference.name}@{target.digest}")
    return [Image(name, target, _dependent(store)) for name in images]


def of_root(store: ImageStore, target: Descriptor) -> list[Image]:
    """The images to create for the whole that was transferred: the store's name, its full references, and its prefixes
    with the digest if they add one.

    A prefix that skips the digest of named images adds it nevertheless: the name did not come from the prefix. (As in
    containerd since 2.3.)
    """
    images = [Image(store.name, target, store.labels)] if store.name else []
    for reference in store.references:
        if not reference.is_prefix or reference.add_digest:
            name = f"{reference.name}@{target.digest}" if reference.add_digest else reference.name
            images.append(Image(name, target, _dependent(store)))
    return images


def _dependent(store: ImageStore) -> dict[str, str]:
    """The labels of further names. If the store has a main name, the others are removed with it."""
    labels = dict(store.labels)
    if store.name:
        labels["containerd.io/gc.bref.image"] = store.name
        labels["containerd.io/gc.expire"] = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return labels


async def look_up(store: ImageStore, node: Node) -> list[Image]:
    """The images that a store means as a source, in its order; NotFound for the first that does not exist."""
    if any(reference.is_prefix for reference in store.references):
        raise errors.Unimplemented("prefix lookup on export not implemented")
    names = [store.name] if store.name else []
    return [await node.image(name) for name in (*names, *(reference.name for reference in store.references))]


async def store_all(images: list[Image], node: Node) -> list[Image]:
    """Store all images; NotFound if there are none."""
    if not images:
        raise errors.NotFound("no image name found")
    return [await node.store(image) for image in images]


# ---------------------------------------------------------------------------------------------- annotations


def for_oci(name: str) -> str:
    """The value of OCI's annotation for an image of this name: its tag, or the whole name if it has none."""
    host, slash, rest = name.partition("/")
    if not slash or not host or "://" in name:
        return name
    found = re.search("[:@]", rest)
    if found is None or found[0] == "@":
        return name
    return rest[found.end() :] or name


def with_prefix(prefix: str, *, strict: bool) -> Callable[[str], str]:
    """A function that turns a tag into ``PREFIX:TAG`` and keeps a full reference. If ``strict``, a full reference that
    does not begin with the prefix becomes "".
    """

    def name(reference: str) -> str:
        if not prefix:
            return ""
        if any(c in reference for c in "/:@"):
            begins = reference.startswith(prefix) and reference[len(prefix) : len(prefix) + 1] in ("", "/", ":", "@")
            return "" if strict and not begins else reference
        return f"{prefix}:{reference}"

    return name


def of_annotations(annotations: Mapping[str, str], name: Callable[[str], str]) -> str:
    """The name that an archive gives to an image, converted by ``name`` (from :func:`with_prefix`); "" if there is none
    that may be used.

    containerd's annotation is used unchanged or not at all.
    """
    full = annotations.get(IMAGE_NAME)
    if full:
        return full if name(full) == full else ""
    reference = annotations.get(REF_NAME)
    return name(reference) if reference else ""
