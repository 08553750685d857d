"""References: what a client calls an image of a registry, ``HOST/REPOSITORY[:TAG][@DIGEST]``.

A reference is given in full, as ``ctr`` and the transfer service want it: nothing is added to ``busybox``, since guessing the host is how one gets somebody else's
image. The *host* names a namespace; which machines serve it (``docker.io`` is at registry-1.docker.io, a mirror may be asked first) is said in
:mod:`.hosts`. With both a tag and a digest the digest decides.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Self

from services.kit import errors
from services.oci.digests import Digest

_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?")
_COMPONENT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._~-]*[A-Za-z0-9_-])?")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_OBJECT = re.compile(r"[:@]")
_EXAMPLE = "give it in full, such as docker.io/library/busybox:latest"


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed reference; ``str()`` gives it back."""

    host: str
    repository: str
    tag: str = ""
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """The reference that ``text`` is; InvalidArgument says what is wrong with it."""

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
        repository, rest = (path[: split.start()], path[split.start():]) if split else (path, "")
        for component in repository.split("/"):
            if not _COMPONENT.fullmatch(component):
                raise refuse(f'"{repository}" is not the name of a repository')
        before, at, named = rest.partition("@")
        tag = before.removeprefix(":")
        if before and not _TAG.fullmatch(tag):
            raise refuse(f'"{tag}" is not a tag')
        try:
            return cls(host, repository, tag, Digest.parse(named) if at else None)
        except ValueError as error:
            raise refuse(f'"{named}": {error}') from None

    @property
    def target(self) -> str:
        """What to ask the registry for: the digest if there is one, else the tag; InvalidArgument without either."""
        if self.digest is None and not self.tag:
            raise errors.InvalidArgument(f'reference "{self}": neither a tag nor a digest: object required')
        return str(self.digest or self.tag)

    def at(self, digest: Digest) -> Self:
        """The same, pinned to ``digest``."""
        return replace(self, digest=digest)

    def __str__(self) -> str:
        return f"{self.host}/{self.repository}" + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")
