"""Authorization for one host in one pull: it answers challenges, and keeps tokens while they are valid.

Nothing is sent before the host asks. It may ask for *basic* (user and password with each request) or for a *bearer*
token, which a token server issues for some *scopes*: ``repository:NAME:pull``. With a secret, the token is requested in
OAuth 2's way (POST) and, if the server does not support that, in docker's (GET with basic authentication); without a
secret, anonymously. A token is valid for some time. It is replaced shortly before its end, so that the last layers of a
long pull do not fail, and at once if the host refuses it. If many layers need a token, they wait for one request.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from services.images import waits
from services.images.documents import parser_program, tokens
from services.images.registry import challenge
from services.images.registry.credentials import Credentials, Source
from services.images.registry.failure import WORDS, Failure, answered
from services.images.registry.host import is_address, public, shown
from services.images.registry.limits import TOKEN_LIMIT
from services.kit import errors, gojson, tracing

CLIENT = "splitd"
"""Our client_id for token servers."""

MARGIN = 15.0
"""Seconds before its end at which a token is replaced (a short-lived one after three quarters of its time): a request
that is sent with it still has to arrive.
"""


class Ask(Protocol):
    """Makes a request to a token server. Returns status, reason, headers and at most TOKEN_LIMIT bytes of the
    answer.
    """

    def __call__(
        self, method: str, url: str, headers: dict[str, str], body: bytes | None
    ) -> Awaitable[tuple[int, str, Any, bytes]]:
        """Make the request."""
        ...


@dataclass(frozen=True, slots=True, repr=False)
class _Token:
    value: str
    replace_at: float | None


@dataclass(frozen=True, slots=True)
class _Bearer:
    """The address of the token server, and what its tokens are for."""

    realm: str
    service: str
    scopes: tuple[str, ...]


class Authorizer:
    """The authorizer for ``host``. ``source`` is asked once."""

    def __init__(self, host: str, source: Source | None, ask: Ask, clock: Callable[[], float] = time.monotonic) -> None:
        self._host = host
        self._source = source
        self._ask = ask
        self._clock = clock
        self._lock = asyncio.Lock()
        self._credentials: Credentials | None = None
        self._asked = False
        self._fixed = ""
        self._bearer: _Bearer | None = None
        self._tokens: dict[tuple[str, ...], _Token] = {}
        self._refused: tuple[float, Failure] | None = None
        self._asking = ""
        """The span that gets a token, or got the last one."""

    async def header(self, scopes: Iterable[str]) -> str:
        """The Authorization header for a request that needs ``scopes``; "" while the host has not asked for any."""
        if self._fixed or self._bearer is None:
            return self._fixed
        begun = self._clock()
        async with self._turn():
            wanted = _joined(scopes, self._bearer.scopes)
            token = self._tokens.get(wanted)
            if token is None or (token.replace_at is not None and self._clock() >= token.replace_at):
                if self._refused is not None and self._refused[0] >= begun:
                    raise self._refused[1]  # a caller that waited for a failed request does not repeat it
                try:
                    token = self._tokens[wanted] = await self._fetched(self._bearer, wanted)
                except Failure as failure:
                    self._refused = self._clock(), failure
                    raise
            return f"Bearer {token.value}"

    async def challenged(self, headers: Iterable[str], scopes: Iterable[str], used: str) -> bool:
        """Note that the host answered 401 with these challenges to a request with the header ``used``. Returns whether
        another :meth:`header` is worth a try.
        """
        async with self._turn():
            for each in challenge.parse(headers):
                if each.scheme == "bearer" and each.parameters.get("realm"):
                    return await self._want_bearer(each, scopes, used)
                if each.scheme == "basic" and (credentials := await self._known()):
                    fixed = credentials.header or f"Basic {_basic(credentials)}"
                    if not credentials.header and not credentials.username:
                        continue  # a token is no password
                    self._fixed, self._bearer = fixed, None
                    return used != fixed
            return False

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Run the block when no other request to this host gets a token, or credentials."""
        if self._lock.locked():
            said = {"server.address": self._host, "splitd.wait.for": f"a token for {self._host}"}
            with tracing.wait("lock", self._asking, **said):
                await self._lock.acquire()
        else:
            await self._lock.acquire()
        try:
            yield
        finally:
            self._lock.release()

    async def _want_bearer(self, wanted: challenge.Challenge, scopes: Iterable[str], used: str) -> bool:
        credentials = await self._known()
        if credentials is not None and credentials.header:
            self._fixed = credentials.header
            return used != self._fixed
        parameters = wanted.parameters
        bearer = _Bearer(parameters["realm"], parameters.get("service", ""), tuple(parameters.get("scope", "").split()))
        if self._bearer is None or (self._bearer.realm, self._bearer.service) != (bearer.realm, bearer.service):
            self._bearer, self._tokens, self._fixed = bearer, {}, ""
            return True
        key = _joined(scopes, self._bearer.scopes)
        token = self._tokens.get(key)
        if token is not None and used == f"Bearer {token.value}":
            del self._tokens[key]  # refused: it expired early, or was revoked
        return True

    async def _known(self) -> Credentials | None:
        if not self._asked:
            if self._source is not None:
                with waits.waiting(waits.CLIENT, f"waiting for credentials for {self._host}", host=self._host):
                    self._credentials = await self._source(self._host)
            self._asked = True
        return self._credentials

    @property
    def described(self) -> str:
        """The identity that was used, for an error message."""
        if not self._credentials:
            return "without credentials"
        return f'as "{self._credentials.username}"' if self._credentials.username else "with the token given"

    async def _fetched(self, bearer: _Bearer, scopes: tuple[str, ...]) -> _Token:
        if not is_address(bearer.realm):
            raise Failure(
                self._host,
                f'its token server "{shown(bearer.realm)}" is not an address',
                kind=errors.FailedPrecondition,
            )
        server = public(urlsplit(bearer.realm).netloc)
        traced = tracing.span(
            "registry.auth",
            **{
                "server.address": server,
                "splitd.registry.host": self._host,
                "splitd.registry.scopes": " ".join(scopes)[:WORDS],
            },
        )
        self._asking = traced.ref()
        try:
            with traced.inside(), waits.noted(waits.TOKEN, f"getting a token from {server}", server):
                return await self._issued(bearer, scopes)
        except Failure as failure:  # of this host: another one may help
            traced.set(**failure.attributes)
            raise
        finally:
            traced.end()

    async def _issued(self, bearer: _Bearer, scopes: tuple[str, ...]) -> _Token:
        credentials = self._credentials
        if not credentials:
            return await self._answer(bearer, await self._get(bearer, scopes, None))
        form = {"service": bearer.service, "client_id": CLIENT, **({"scope": " ".join(scopes)} if scopes else {})}
        if credentials.username:
            form |= {"grant_type": "password", "username": credentials.username, "password": credentials.secret}
        else:
            form |= {"grant_type": "refresh_token", "refresh_token": credentials.secret}
        answer = await self._ask(
            "POST",
            bearer.realm,
            {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"},
            urlencode(form).encode(),
        )
        # Servers without OAuth answer 404 (GCR), 401 (Artifactory), 400 (ACR) or 405. containerd falls back for the
        # same.
        if answer[0] in (400, 401, 404) or (answer[0] == 405 and credentials.username):
            answer = await self._get(bearer, scopes, credentials)
        return await self._answer(bearer, answer)

    async def _get(
        self, bearer: _Bearer, scopes: tuple[str, ...], credentials: Credentials | None
    ) -> tuple[int, str, Any, bytes]:
        parts = urlsplit(bearer.realm)
        query = (
            parse_qsl(parts.query, keep_blank_values=True)
            + ([("service", bearer.service)] if bearer.service else [])
            + [("scope", each) for each in scopes]
        )
        return await self._ask(
            "GET",
            urlunsplit(parts._replace(query=urlencode(query))),
            {"Authorization": f"Basic {_basic(credentials)}"} if credentials else {},
            None,
        )

    async def _answer(self, bearer: _Bearer, answer: tuple[int, str, Any, bytes]) -> _Token:
        status, reason, headers, body = answer
        server = public(urlsplit(bearer.realm).netloc)
        if status >= 300:
            failure = answered(
                self._host,
                f"{server}, its token server, refused a token {self.described}",
                status,
                reason,
                headers,
                body,
            )
            if status in (400, 401, 403, 404):
                failure.kind = errors.Unauthenticated
            raise failure
        try:
            value, seconds = await parser_program.read(body, tokens.token_in)
        except gojson.Malformed as error:
            why = f"more than {TOKEN_LIMIT} bytes" if len(body) >= TOKEN_LIMIT else str(error)
            raise Failure(
                self._host, f"{server}, its token server, answered without a token: {why}", kind=errors.Unauthenticated
            ) from None
        if not value:
            raise Failure(
                self._host, f"{server}, its token server, answered without a token", kind=errors.Unauthenticated
            )
        if not value.isprintable() or not value.isascii():
            raise Failure(
                self._host,
                (
                    f"{server}, its token server, answered with a token that no header can hold: it has control "
                    "characters, or others than ASCII"
                ),
                kind=errors.Unauthenticated,
            )
        return _Token(value, self._clock() + max(seconds - MARGIN, seconds * 0.75) if seconds > 0 else None)


def _joined(scopes: Iterable[str], common: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({*scopes, *common}))


def _basic(credentials: Credentials) -> str:
    return base64.b64encode(f"{credentials.username}:{credentials.secret}".encode()).decode()
