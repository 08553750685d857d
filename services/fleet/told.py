"""What a node tells of its images and containers: keys of etcd with JSON values.

- ``images/NAMESPACE/NAME/NODE``: the node last, so one range of keys says who has an image;
- ``containers/NODE/NAMESPACE/ID``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from services.etcd.store import KeyValue
from services.fleet.store import Container, Image, Target
from services.oci.digests import Digest

IMAGES = CONTAINERS = 10_000
"""Images and containers of a node that the others are told of, at most."""
NAME = 512
"""Bytes of an image's name, at most; images with longer names are not told. References in registries are shorter."""
VALUE = 4096
"""Bytes of a value of another node that are read; a longer one is left out."""
LATEST = (1 << 63) - 1

Want = Callable[[bytes, Mapping[str, Any] | None], None]
"""Let etcd have a value of this key, or no such key."""


class Told:
    """Keys of one kind, which are told as a whole each time. Of those only the first ``most`` are told."""

    def __init__(self, want: Want, most: int) -> None:
        self.left_out = 0
        self._want = want
        self._most = most
        self._told: set[bytes] = set()

    def tell(self, values: Mapping[bytes, Mapping[str, Any]]) -> None:
        """Let etcd have these keys, and none that was told before and is not among them."""
        kept = dict(list(values.items())[: self._most])
        self.left_out = len(values) - len(kept)
        for key in self._told - kept.keys():
            self._want(key, None)
        for key, value in kept.items():
            self._want(key, value)
        self._told = set(kept)


def read(pair: KeyValue) -> Mapping[str, Any]:
    """The value of a key; empty if it is none of ours."""
    try:
        found = json.loads(pair.value) if len(pair.value) <= VALUE else None
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and found.get("v") == 1 else {}


def text(value: object) -> str:
    """A string of a value; empty if it is none. JSON may have surrogates in it, which no message can have."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else ""


def number(value: object) -> int:
    """A number of a value that is not negative; else 0."""
    return value if type(value) is int and 0 <= value <= LATEST else 0


def image_key(image: Image) -> tuple[str, ...] | None:
    """The parts of an image's key; None if it is not told."""
    if not 0 < len(image.name.encode()) <= NAME:
        return None
    return "images", image.namespace, image.name, image.node


def image_value(image: Image) -> Mapping[str, Any]:
    return {"digest": image.target.digest, "size": image.target.size, "updated": image.updated}


def image(parts: str, pair: KeyValue) -> Image | None:
    """The image of a key whose part after ``images/`` is ``parts``; None if it makes no sense."""
    namespace, _, rest = parts.partition("/")
    name, _, node = rest.rpartition("/")
    value = read(pair)
    digest = text(value.get("digest"))
    try:
        Digest.parse(digest)
    except ValueError:
        return None
    if not name or not node:
        return None
    return Image(node, namespace, name, Target(digest, number(value.get("size"))), number(value.get("updated")))


def container_key(container: Container) -> tuple[str, ...]:
    return "containers", container.node, container.namespace, container.id


def container_value(container: Container) -> Mapping[str, Any]:
    return {"image": container.image[:NAME], "created": container.created}


def container(parts: str, pair: KeyValue) -> Container | None:
    """The container of a key whose part after ``containers/`` is ``parts``; None if it makes no sense."""
    value = read(pair)
    node, namespace, identity, *more = [*parts.split("/"), "", ""]
    if not value or not identity or any(more):
        return None
    return Container(node, namespace, identity, text(value.get("image")), number(value.get("created")))
