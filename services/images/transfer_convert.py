"""Conversion between transfers' values and protobuf messages."""

from __future__ import annotations

from api.containerd.services.images.v1 import images_pb2
from api.containerd.types.transfer import imagestore_pb2, progress_pb2, registry_pb2
from services.images.transfer import Credentials, Image, ImageReference, ImageStore, Progress, Unpacking
from services.kit import errors
from services.oci.descriptors_convert import descriptor_from_pb, descriptor_to_pb
from services.oci.platforms_convert import platform_from_pb, platform_to_pb


def image_to_pb(image: Image) -> images_pb2.Image:
    return images_pb2.Image(name=image.name, labels=image.labels, target=descriptor_to_pb(image.target))


def image_from_pb(message: images_pb2.Image) -> Image:
    return Image(message.name, descriptor_from_pb(message.target), dict(message.labels))


def progress_to_pb(progress: Progress) -> progress_pb2.Progress:
    described = descriptor_to_pb(progress.descriptor) if progress.descriptor is not None else None
    return progress_pb2.Progress(
        event=progress.event,
        name=progress.name,
        parents=progress.parents,
        progress=progress.progress,
        total=progress.total,
        desc=described,
    )


def progress_from_pb(message: progress_pb2.Progress) -> Progress:
    described = descriptor_from_pb(message.desc) if message.HasField("desc") else None
    return Progress(message.event, message.name, tuple(message.parents), message.progress, message.total, described)


def store_from_pb(message: imagestore_pb2.ImageStore) -> ImageStore:
    return ImageStore(
        message.name,
        dict(message.labels),
        tuple(map(platform_from_pb, message.platforms)),
        message.all_metadata,
        message.manifest_limit,
        tuple(
            ImageReference(r.name, r.is_prefix, r.allow_overwrite, r.add_digest, r.skip_named_digest)
            for r in message.extra_references
        ),
        tuple(Unpacking(platform_from_pb(u.platform), u.snapshotter) for u in message.unpacks),
    )


def store_to_pb(store: ImageStore) -> imagestore_pb2.ImageStore:
    return imagestore_pb2.ImageStore(
        name=store.name,
        labels=store.labels,
        platforms=map(platform_to_pb, store.platforms),
        all_metadata=store.all_metadata,
        manifest_limit=store.manifest_limit,
        extra_references=[
            imagestore_pb2.ImageReference(
                name=r.name,
                is_prefix=r.is_prefix,
                allow_overwrite=r.allow_overwrite,
                add_digest=r.add_digest,
                skip_named_digest=r.skip_named_digest,
            )
            for r in store.references
        ],
        unpacks=[
            imagestore_pb2.UnpackConfiguration(platform=platform_to_pb(u.platform), snapshotter=u.snapshotter)
            for u in store.unpacks
        ],
    )


def credentials_to_pb(credentials: Credentials) -> registry_pb2.AuthResponse:
    if credentials.header:
        return registry_pb2.AuthResponse(authType=registry_pb2.HEADER, secret=credentials.header)
    if credentials.username:
        return registry_pb2.AuthResponse(
            authType=registry_pb2.CREDENTIALS, username=credentials.username, secret=credentials.secret
        )
    return registry_pb2.AuthResponse(
        authType=registry_pb2.REFRESH if credentials.secret else registry_pb2.NONE, secret=credentials.secret
    )


def credentials_from_pb(message: registry_pb2.AuthResponse) -> Credentials:
    """InvalidArgument for an unknown kind of credentials."""
    match message.authType:
        case registry_pb2.NONE:
            return Credentials()
        case registry_pb2.CREDENTIALS:
            return Credentials(username=message.username, secret=message.secret)
        case registry_pb2.REFRESH:
            return Credentials(secret=message.secret)
        case registry_pb2.HEADER:
            return Credentials(header=message.secret)
    raise errors.InvalidArgument(f"credentials of the kind {message.authType}")
