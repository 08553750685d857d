"""References: the names of images, ``HOST/REPOSITORY[:TAG][@DIGEST]``.

A :class:`Reference` is given in full, as ``ctr`` and the transfer service want it. Nothing is added to ``busybox``,
since guessing the host may bring somebody else's image. The *host* names a namespace. The registry client's
configuration says which machines serve it (``docker.io`` is at registry-1.docker.io; a mirror may be asked first). If a
reference has both a tag and a digest, the digest decides.

People write references short, as Docker does ("busybox"), and images are stored under the full form
("docker.io/library/busybox:latest"). :func:`normalized`, :func:`complete` and :func:`familiar` convert between them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Self

from services.kit import errors
from services.oci.digests import Digest

_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?")
_PATH_COMPONENT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._~-]*[A-Za-z0-9_-])?")
_ANY_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_OBJECT = re.compile(r"[:@]")
_EXAMPLE = "give it in full, such as docker.io/library/busybox:latest"


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed reference; ``str()`` returns its text."""

    host: str
    repository: str
    tag: str = ""
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a reference. InvalidArgument says what is wrong with it."""

        def refuse(why: str) -> errors.InvalidArgument:
            return errors.InvalidArgument(f'reference "{text}": {why}')

        if "://" in text:
            raise refuse("it is a URL; leave out the scheme")
        host, slash, path = text.partition("/")
        if not slash or not path:
            raise refuse(f"no repository; {_EXAMPLE}")
        parsed = _HOST.fullmatch(host)
        if parsed is None or int(parsed["port"] or 1) not in range(1, 65536):
            raise refuse(f'"{host}" is not a host; {_EXAMPLE}')
        split = _OBJECT.search(path)
        repository, rest = (path[: split.start()], path[split.start() :]) if split else (path, "")
        for component in repository.split("/"):
            if not _PATH_COMPONENT.fullmatch(component):
                raise refuse(f'"{repository}" is not the name of a repository')
        before, at, named = rest.partition("@")
        tag = before.removeprefix(":")
        if before and not _ANY_TAG.fullmatch(tag):
            raise refuse(f'"{tag}" is not a tag')
        try:
            return cls(host, repository, tag, Digest.parse(named) if at else None)
        except ValueError as error:
            raise refuse(f'"{named}": {error}') from None

    @property
    def target(self) -> str:
        """The object to ask the registry for: the digest if there is one, else the tag. InvalidArgument without
        either.
        """
        if self.digest is None and not self.tag:
            raise errors.InvalidArgument(f'reference "{self}": neither a tag nor a digest: object required')
        return str(self.digest or self.tag)

    def at(self, digest: Digest) -> Self:
        """The same reference, pinned to ``digest``."""
        return replace(self, digest=digest)

    def __str__(self) -> str:
        return (
            f"{self.host}/{self.repository}"
            + (f":{self.tag}" if self.tag else "")
            + (f"@{self.digest}" if self.digest else "")
        )


# ---------------------------------------------------------------------------------------------- Docker's short forms

_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_TAG = r"\w[\w.-]{0,127}"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"
_REFERENCE = re.compile(
    rf"(?P<domain>{_DOMAIN})/(?P<path>{_COMPONENT}(?:/{_COMPONENT})*)(?::(?P<tag>{_TAG}))?(?:@(?P<digest>{_DIGEST}))?",
    re.ASCII,
)
_HUB = "docker.io"


def _parsed(reference: str) -> tuple[str, str, str, str]:
    """Domain, path, tag and digest of a reference in Docker's short or full form. InvalidArgument says what is wrong
    with it.
    """
    if re.fullmatch("[a-f0-9]{64}", reference):
        raise errors.InvalidArgument.verbatim(
            f"invalid repository name ({reference}), cannot specify 64-byte hexadecimal strings"
        )
    first, slash, rest = reference.partition("/")
    if slash and (first == "localhost" or any(c in first for c in ".:") or first.lower() != first):
        domain, name = (_HUB if first == "index.docker.io" else first), rest
    else:
        domain, name = _HUB, reference
    if domain == _HUB and "/" not in name:
        name = f"library/{name}"
    repository = name.partition(":")[0]
    if repository.lower() != repository:
        raise errors.InvalidArgument.verbatim(
            f"invalid reference format: repository name ({repository}) must be lowercase"
        )
    found = _REFERENCE.fullmatch(f"{domain}/{name}")
    if found is None:
        raise errors.InvalidArgument.verbatim("invalid reference format")
    return found["domain"], found["path"], found["tag"] or "", found["digest"] or ""


def normalized(reference: str) -> str:
    """The full form with a digest or a tag. If it has both, the digest stays; without either, the tag is "latest"."""
    domain, path, tag, digest = _parsed(reference)
    return f"{domain}/{path}@{digest}" if digest else f"{domain}/{path}:{tag or 'latest'}"


def complete(reference: str) -> str:
    """The full form with everything that it has: a tag, a digest or both. Without either, the tag is "latest"."""
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
