"""Names of images: Docker's short ones and their full forms, and the names that archives give to what is in them.

A *reference* is ``DOMAIN/PATH[:TAG][@DIGEST]``. People write it short ("busybox"); images are stored under the full form
("docker.io/library/busybox:latest"). Archives name an image by annotations of its descriptor: containerd's own has the full reference,
OCI's often only a tag, which is then put behind a prefix that the importer chose.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from services.kit import errors

IMAGE_NAME = "io.containerd.image.name"
"""containerd's annotation: the full reference."""

REF_NAME = "org.opencontainers.image.ref.name"
"""OCI's annotation: a reference, or only a tag."""

_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_TAG = r"\w[\w.-]{0,127}"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"
_REFERENCE = re.compile(rf"(?P<domain>{_DOMAIN})/(?P<path>{_COMPONENT}(?:/{_COMPONENT})*)(?::(?P<tag>{_TAG}))?(?:@(?P<digest>{_DIGEST}))?", re.ASCII)
_HUB = "docker.io"


def _parsed(reference: str) -> tuple[str, str, str, str]:
    """Domain, path, tag and digest of a reference in Docker's short or full form; InvalidArgument says why it is none."""
    if re.fullmatch("[a-f0-9]{64}", reference):
        raise errors.InvalidArgument.verbatim(f"invalid repository name ({reference}), cannot specify 64-byte hexadecimal strings")
    first, slash, rest = reference.partition("/")
    if slash and (first == "localhost" or any(c in first for c in ".:") or first.lower() != first):
        domain, name = (_HUB if first == "index.docker.io" else first), rest
    else:
        domain, name = _HUB, reference
    if domain == _HUB and "/" not in name:
        name = f"library/{name}"
    repository = name.partition(":")[0]
    if repository.lower() != repository:
        raise errors.InvalidArgument.verbatim(f"invalid reference format: repository name ({repository}) must be lowercase")
    found = _REFERENCE.fullmatch(f"{domain}/{name}")
    if found is None:
        raise errors.InvalidArgument.verbatim("invalid reference format")
    return found["domain"], found["path"], found["tag"] or "", found["digest"] or ""


def normalized(reference: str) -> str:
    """The full form, with a digest or a tag: of both the digest stays, and without any the tag is "latest"."""
    domain, path, tag, digest = _parsed(reference)
    return f"{domain}/{path}@{digest}" if digest else f"{domain}/{path}:{tag or 'latest'}"


def complete(reference: str) -> str:
    """The full form, with all that it has: a tag, a digest or both; without either the tag is "latest"."""
    domain, path, tag, digest = _parsed(reference)
    if not tag and not digest:
        tag = "latest"
    return f"{domain}/{path}" + (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")


def familiar(reference: str) -> str:
    """The short form that Docker shows, with a tag or digest."""
    domain, path, tag, digest = _parsed(reference)
    if domain == _HUB:
        short = path.removeprefix("library/")
        name = path if "/" in short and path.startswith("library/") else short
    else:
        name = f"{domain}/{path}"
    if not tag and not digest:
        tag = "latest"
    return name + (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")


def for_oci(name: str) -> str:
    """What OCI's annotation says of an image of this name: its tag, or, where it has none, the whole name."""
    host, slash, rest = name.partition("/")
    if not slash or not host or "://" in name:
        return name
    found = re.search("[:@]", rest)
    if found is None or found[0] == "@":
        return name
    return rest[found.end():] or name


def behind(prefix: str, *, strict: bool) -> Callable[[str], str]:
    """Tags become ``PREFIX:TAG``, full references stay; ``strict``: those that do not begin with the prefix become ""."""
    def name(reference: str) -> str:
        if not prefix:
            return ""
        if any(c in reference for c in "/:@"):
            begins = reference.startswith(prefix) and reference[len(prefix):len(prefix) + 1] in ("", "/", ":", "@")
            return "" if strict and not begins else reference
        return f"{prefix}:{reference}"

    return name


def of_annotations(annotations: Mapping[str, str], name: Callable[[str], str]) -> str:
    """The name that an archive gives to an image, as ``name`` (of :func:`behind`) turns it; "" if there is none that may be used.

    containerd's annotation is used as it is or not at all.
    """
    full = annotations.get(IMAGE_NAME)
    if full:
        return full if name(full) == full else ""
    reference = annotations.get(REF_NAME)
    return name(reference) if reference else ""
