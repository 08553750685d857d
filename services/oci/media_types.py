"""Media types of the parts of images: OCI's, and those of Docker's schema 2, which mean the same.

Docker's schema 1 is refused, as by containerd since 2.0, since it cannot be verified by its digest.
"""

from __future__ import annotations

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP = f"{LAYER}+gzip"
LAYER_ZSTD = f"{LAYER}+zstd"
LAYER_NON_DISTRIBUTABLE = "application/vnd.oci.image.layer.nondistributable.v1.tar"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+json"
SCHEMA_1 = (DOCKER_SCHEMA_1, "application/vnd.docker.distribution.manifest.v1+prettyjws")
IN_TOTO = "application/vnd.in-toto+json"

_INDEXES = frozenset({INDEX, DOCKER_INDEX})
_MANIFESTS = frozenset({MANIFEST, DOCKER_MANIFEST})
_CONFIGS = frozenset({CONFIG, DOCKER_CONFIG})
_CHECKPOINT_CONFIGS = frozenset(
    {
        "application/vnd.containerd.container.criu.checkpoint.criu.tar",
        "application/vnd.containerd.container.checkpoint.config.v1+proto",
    }
)
DOCKER_LAYERS = frozenset(
    f"application/vnd.docker.image.rootfs.{kind}"
    for kind in ("diff.tar", "diff.tar.gzip", "diff.tar.zstd", "foreign.diff.tar", "foreign.diff.tar.gzip")
)
EROFS_LAYER = "application/vnd.erofs.layer.v1"


def is_index(media_type: str) -> bool:
    return media_type in _INDEXES


def is_manifest(media_type: str) -> bool:
    return media_type in _MANIFESTS


def is_root(media_type: str) -> bool:
    """Whether it is a manifest or an index. A name can resolve to these, and a registry has them below
    ``manifests/``.
    """
    return media_type in _MANIFESTS or media_type in _INDEXES


def is_config(media_type: str) -> bool:
    """Whether it is the config of an image, not of a checkpoint."""
    return media_type in _CONFIGS


def is_layer(media_type: str) -> bool:
    """Whether it is a layer. Suffixes of Docker's types, such as ``+encrypted``, are ignored."""
    return media_type.startswith("application/vnd.oci.image.layer.") or media_type.partition("+")[
        0
    ] in DOCKER_LAYERS | {EROFS_LAYER}


def is_non_distributable(media_type: str) -> bool:
    """Whether it is a layer that others may not serve."""
    return media_type.startswith(
        ("application/vnd.oci.image.layer.nondistributable.", "application/vnd.docker.image.rootfs.foreign.")
    )


def is_known_config(media_type: str) -> bool:
    """Whether it is the config of an image or of a checkpoint."""
    return media_type in _CONFIGS or media_type in _CHECKPOINT_CONFIGS
