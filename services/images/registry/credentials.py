"""The credentials for registries. A *source* is asked for a host's credentials only once that host wants them.

Sources are the request (Transfer asks its client over a stream), docker's ``config.json`` with its helper programs, and
the CRI plugin's ``configs`` (:mod:`.cri_config`); :func:`first_of` joins them. Credentials for a host go to that host,
or to the token server that it names, and nowhere else (:mod:`.endpoint`).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeAlias

from services.images.registry.host import name_and_port
from services.images.registry_timeouts import Timeouts
from services.kit import errors, gojson
from services.kit.gojson import TEXT, MapOf, Struct

INDEX = "https://index.docker.io/v1/"
"""Docker's name for docker.io in its files."""

_DOCKER_IO = ("docker.io", "registry-1.docker.io", "index.docker.io")
_TOKEN = "<token>"  # noqa: S105 (a user name)
"""The user name by which a helper says that its secret is an identity token."""


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """A user and password; or, without a user, an identity (refresh) token; or a whole Authorization header."""

    username: str = ""
    secret: str = ""
    header: str = ""

    def __repr__(self) -> str:
        return f"Credentials({self.username or 'a header' if self.header else 'a token'!r})"

    def __bool__(self) -> bool:
        return bool(self.secret or self.header)


Source: TypeAlias = Callable[[str], Awaitable[Credentials | None]]
"""``await source("registry.internal:5000")``; docker.io is asked for as registry-1.docker.io."""


def first_of(*sources: Source | None) -> Source:
    """A source that asks several in turn, and takes the first answer."""

    async def ask(host: str) -> Credentials | None:
        for source in sources:
            if source is not None and (found := await source(host)):
                return found
        return None

    return ask


def from_entry(entry: Mapping[str, Any]) -> Credentials:
    """The credentials in an entry of docker's format: username and password, ``auth`` (both in base64),
    ``identitytoken``. ValueError if malformed.
    """
    if token := entry.get("identitytoken"):
        return Credentials(secret=str(token))
    if entry.get("auth") and not entry.get("username"):
        try:
            username, colon, secret = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError, TypeError):
            colon = ""
        if not colon:
            raise ValueError("auth is not USER:PASSWORD in base64")
        return Credentials(username, secret.rstrip("\0"))
    return Credentials(str(entry.get("username") or ""), str(entry.get("password") or ""))


@dataclass(frozen=True, slots=True)
class DockerConfig:
    """Docker's config.json. Instances are sources: ``await config("ghcr.io")``."""

    file: str = "config.json"
    auths: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    helpers: Mapping[str, str] = field(default_factory=dict)
    store: str = ""
    timeouts: Timeouts = field(default_factory=Timeouts)

    @classmethod
    def read(cls, file: Path, timeouts: Timeouts = Timeouts()) -> Self:
        """Parse ``file``, which need not exist; InvalidArgument if it is malformed."""
        try:
            found = gojson.document(file.read_bytes(), _FILE, str(file), errors.InvalidArgument)
        except FileNotFoundError:
            return cls(str(file))
        except OSError as error:
            raise errors.InvalidArgument(f"{file}: {error.strerror}") from None
        return cls(
            str(file), found.get("auths") or {}, found.get("credHelpers") or {}, found.get("credsStore") or "", timeouts
        )

    async def __call__(self, host: str) -> Credentials | None:
        """The credentials for ``host`` in the file, or from the helper that it names for the host."""
        names = [INDEX, *_DOCKER_IO] if host in _DOCKER_IO else [host]
        for name in names:
            if helper := self.helpers.get(name):
                return await self._helped(helper, name)
        if self.store and (found := await self._helped(self.store, names[0])):
            return found
        for key, entry in self.auths.items():
            if _host_of(key) in names or key in names:
                try:
                    found = from_entry(entry)
                except ValueError as error:
                    raise errors.FailedPrecondition(f'{self.file}: auths."{key}": {error}') from None
                if found:
                    return found
        return None

    async def _helped(self, helper: str, server: str) -> Credentials | None:
        """Ask ``docker-credential-HELPER get``; None if it says that it has none."""
        program = f"docker-credential-{helper}"
        if "/" in helper:
            raise errors.FailedPrecondition(f'{self.file}: "{helper}" is not the name of a credential helper')
        # written before the start: a helper that does not read its input must cause no error in the loop
        question, asking = os.pipe()
        try:
            os.write(asking, server.encode())
            os.close(asking)
            process = await asyncio.create_subprocess_exec(
                program, "get", stdin=question, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
            )
        except OSError as error:
            raise errors.FailedPrecondition(
                f"{server}: {program}, which {self.file} names, cannot be started: {error.strerror}"
            ) from None
        finally:
            os.close(question)
        try:
            async with asyncio.timeout(self.timeouts.helper):
                out, err = await process.communicate()
        except TimeoutError:
            raise errors.Unavailable(f"{server}: {program} did not answer within {self.timeouts.helper:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        said = (out.decode(errors="replace").strip() or err.decode(errors="replace").strip())[:200]
        if process.returncode:
            if "not found" in said:
                return None
            raise errors.FailedPrecondition(
                f"{server}: {program} failed ({process.returncode}): {said or 'it said nothing'}"
            )
        found = gojson.document(
            out, _HELPED, f"{server}: {program} did not answer with Username and Secret", errors.FailedPrecondition
        )
        if not {"Username", "Secret"} <= found.keys():
            raise errors.FailedPrecondition(f"{server}: {program} did not answer with Username and Secret")
        return Credentials("" if found["Username"] == _TOKEN else found["Username"], found["Secret"])


_FILE = Struct(
    {
        "auths": MapOf(Struct(dict.fromkeys(("username", "password", "auth", "identitytoken"), TEXT))),
        "credHelpers": MapOf(TEXT),
        "credsStore": TEXT,
    }
)
_HELPED = Struct({"Username": TEXT, "Secret": TEXT})


def _host_of(key: str) -> str:
    """The host of an entry's key, which may be a URL."""
    host = key.partition("://")[2] or key
    host = host.partition("/")[0]
    name, port = name_and_port(host)
    return name if port == "443" else host
