"""Image records. The images service answers clients and publishes events; the records are kept here."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from services.kit import errors, filters
from services.kit.identifiers import quoted
from services.metadata import schema
from services.metadata.database import Database, ensure_namespace, hold, release
from services.metadata.store import Image, Labels, Resource, masked, present, validate_labels
from services.metadata.transactions import Transaction
from services.oci.digests import digest_problem

T = TypeVar("T")

_EXPIRE = "containerd.io/gc.expire"


class Images:
    """The images of each namespace. ``lease`` is the caller's. It holds images with the label containerd.io/gc.expire;
    images without the label are roots by themselves.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, namespace: str, name: str) -> Image:
        """The record of an image; NotFound."""
        found = self._database.view(lambda tx: schema.IMAGES.get(tx, namespace, name))
        if found is None:
            raise errors.NotFound(f"image {quoted(name)}")
        return found

    def select(self, namespace: str, sources: Sequence[str], make: Callable[[Image], T]) -> AsyncIterator[list[T]]:
        """The result of ``make`` for each image that the filters match, in order of names and in pieces, as in
        ``Database.select``.
        """
        return self._database.select(
            schema.IMAGES, namespace, sources=sources, field=_field, make=lambda _, image: make(image)
        )

    async def create(self, namespace: str, lease: str, image: Image, epoch: int | None = None) -> Image:
        """Record an image; InvalidArgument, AlreadyExists. The record's time is ``epoch``, in nanoseconds, or now."""
        _validate(image)
        now = time.time_ns() if epoch is None else epoch
        created = replace(
            image, labels=present(image.labels), annotations=present(image.annotations), created=now, updated=now
        )

        def work(tx: Transaction) -> None:
            ensure_namespace(tx, namespace)
            _lease(tx, namespace, lease, image.name, image.labels)
            if schema.IMAGES.has(tx, namespace, created.name):
                raise errors.AlreadyExists(f"image {quoted(created.name)}")
            schema.IMAGES.put(tx, namespace, created.name, value=created)

        await self._database.write(work)
        return created

    async def update(
        self, namespace: str, lease: str, image: Image, paths: Sequence[str], epoch: int | None = None
    ) -> Image:
        """Change the fields that ``paths`` name (labels, annotations, one of these, or the whole target), or all fields
        if there are no paths. NotFound, InvalidArgument.
        """
        if not image.name:
            raise errors.InvalidArgument("image name is required for update")

        def work(tx: Transaction) -> Image:
            ensure_namespace(tx, namespace)
            old = schema.IMAGES.get(tx, namespace, image.name)
            if old is None:
                raise errors.NotFound(f"image {quoted(image.name)}")
            new = _updated(old, image, paths)
            _validate(new)
            _lease(tx, namespace, lease, new.name, new.labels)
            new = replace(
                new,
                labels=present(new.labels),
                annotations=present(new.annotations),
                created=old.created,
                updated=time.time_ns() if epoch is None else epoch,
            )
            schema.IMAGES.put(tx, namespace, new.name, value=new)
            return new

        # After a change of the target, nothing may refer to the old one.
        return await self._database.write(work)

    async def delete(self, namespace: str, lease: str, name: str, *, target: str = "", sync: bool = False) -> None:
        """Remove the record of an image; NotFound, also if ``target`` is given and the image has another digest. With
        ``sync``, returns after a collection.
        """

        def work(tx: Transaction) -> None:
            found = schema.IMAGES.get(tx, namespace, name)
            if found is None:
                raise errors.NotFound(f"image {quoted(name)}")
            if target and found.digest != target:
                raise errors.NotFound(f"image {quoted(name)} has target {found.digest}, not {target}")
            release(tx, namespace, lease, Resource("images", name))
            schema.IMAGES.delete(tx, namespace, name)

        await self._database.write(work, None if sync else "deletion", lasting=not sync)
        if sync:
            await self._database.collect_now(namespace)


def _lease(tx: Transaction, namespace: str, lease: str, name: str, labels: Labels) -> None:
    if _EXPIRE in labels:
        hold(tx, namespace, lease, Resource("images", name))


def _updated(old: Image, new: Image, paths: Sequence[str]) -> Image:
    if not paths:
        return new
    result = old
    for path in paths:  # in their order: a target brings its annotations, which a later path may change
        if path == "target":
            result = replace(
                result, digest=new.digest, media_type=new.media_type, size=new.size, annotations=new.annotations
            )
            continue
        labels, rest = masked(result.labels, new.labels, (path,))
        annotations, rest = masked(result.annotations, new.annotations, rest, "annotations")
        if rest:
            raise errors.InvalidArgument(f"cannot update {quoted(path)} field on image {quoted(old.name)}")
        result = replace(result, labels=labels, annotations=annotations)
    return result


def _validate(image: Image) -> None:
    if not image.name:
        raise errors.InvalidArgument("image name must not be empty")
    validate_labels(image.labels, "image.Labels")
    if problem := digest_problem(image.digest):
        raise errors.InvalidArgument(f"target.Digest {quoted(image.digest)} invalid: {problem}")
    if image.size <= 0:
        raise errors.InvalidArgument("target.Size must be greater than zero")
    if not image.media_type:
        raise errors.InvalidArgument("target.MediaType must be set")


def _field(image: Image, path: Sequence[str]) -> tuple[str, bool]:
    """The fields that filters can select images by."""
    match path:
        case ["name", *_]:
            return image.name, bool(image.name)
        case ["target", "digest", *_]:
            return image.digest, bool(image.digest)
        case ["target", "mediatype", *_]:
            return image.media_type, bool(image.media_type)
        case ["labels", *rest]:
            return filters.of_map(rest, image.labels)
        case ["annotations", *rest]:
            return filters.of_map(rest, image.annotations)
    return "", False
