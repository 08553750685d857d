"""A host as one pull or push uses it: its URLs, its authorization, its redirects.

This module keeps secrets where they belong. Authorization, the headers of hosts.toml and those of the request go only
to the configured host: same scheme, name and port. The target of a redirect, or of an upload's Location, is another
host. It gets the request, but nothing that identifies us; if it asks for credentials, the request has failed. A token
server gets the credentials that the host asked for in its name, and the headers of hosts.toml only if it is on the same
machine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol
from urllib.parse import quote, urljoin, urlsplit

from services.images.registry.auth import Authorizer
from services.images.registry.credentials import Source
from services.images.registry.failure import Blame, Failure, answered
from services.images.registry.host import Capability, Host, is_address, name_and_port, origin, public, same_host, shown
from services.images.registry.http_debug import NO_DEBUG, HttpDebug
from services.images.registry.limits import TOKEN_LIMIT
from services.images.registry.transport import ERROR_BODY, USER_AGENT, Answer, Role, Session
from services.images.registry_timeouts import Timeouts
from services.kit import errors
from services.oci.descriptors import Descriptor
from services.oci.references import Reference

REDIRECTS = frozenset({301, 302, 303, 307, 308})
PATH = "/%:@+~"
"""Characters of the path of hosts.toml that are not quoted; the path may be encoded already."""
HEAD_REFUSALS = frozenset({400, 401, 403, 405, 501})
"""Answers to HEAD that GET may not get: of servers without HEAD, and for URLs that are signed for GET (GitLab's object
storage; moby issue 50065).
"""
HOPS = 10
"""Redirects that are followed, as many as containerd follows."""

Headers = Mapping[str, str]
Body = Callable[[], AsyncIterator[bytes] | bytes]
"""Makes a request's body, each time the request is sent."""


class Place(Protocol):
    """Something that can serve a blob."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def key(self) -> str:
        """For :mod:`.host_memory`."""
        ...

    async def get(self, reference: Reference, descriptor: Descriptor, headers: Headers) -> Answer:
        """The answer (200 or 206) to a request for the blob, or a Failure."""
        ...


class Endpoint:
    """``host``, for ``namespace``. ``then``: the host that can be asked after it, so it has less time."""

    def __init__(
        self,
        host: Host,
        session: Session,
        *,
        namespace: str,
        source: Source | None,
        headers: Iterable[tuple[str, str]] = (),
        timeouts: Timeouts,
        then: str = "",
        watch: HttpDebug = NO_DEBUG,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = public(host.host)
        self.key = host.key
        self.can: Capability = host.capabilities
        self._host = host
        self._scheme = host.scheme
        self._session = session
        self._query = [("ns", namespace)] if host.is_proxy_for(namespace) else []
        self._headers = [*headers, *host.header]
        self._timeouts = timeouts
        self._watch = watch
        self._role = Role(bool(then), then, traceparent=host.traceparent, perhaps_plain=host.fallback)
        self._connect = host.dial_timeout or (timeouts.mirror_connect if then else timeouts.connect)
        self._stall = timeouts.mirror_stall if then else timeouts.stall
        self._authorizer = Authorizer(self.name, source, self._ask, clock)

    def url(self, reference: Reference, path: str, query: Iterable[tuple[str, str]] = ()) -> str:
        """The URL of ``path`` (``blobs/sha256:...``) in the reference's repository."""
        pairs = "&".join(f"{quote(k)}={quote(v, safe=':')}" for k, v in (*query, *self._query))
        top = f"{self._scheme}://{self._host.host}{quote(self._host.path, safe=PATH)}/{quote(reference.repository)}"
        return f"{top}/{quote(path, safe='/:')}{f'?{pairs}' if pairs else ''}"

    def absolute(self, location: str, base: str) -> str:
        """The address in an upload's Location, which may be relative, or even lack its scheme. A Failure if it is
        malformed.
        """
        if (
            "://" not in location
            and not location.startswith(("/", "?", "."))
            and "/" in location
            and ("." in (first := location.partition("/")[0]) or ":" in first)
        ):
            location = f"{self._scheme}://{location}"
        try:
            found = urljoin(base, location)
        except ValueError:
            found = ""
        if not is_address(found):
            raise Failure(
                self.name, f'its Location "{shown(location)}" is not an address', kind=errors.FailedPrecondition
            )
        return found

    async def get(self, reference: Reference, descriptor: Descriptor, headers: Headers) -> Answer:
        """As :meth:`Place.get`."""
        path = f"{'manifests' if descriptor.is_root else 'blobs'}/{descriptor.digest}"
        return await self.send("GET", self.url(reference, path), headers=headers, scopes=pull_scopes(reference))

    async def send(
        self,
        method: str,
        url: str,
        *,
        headers: Headers,
        scopes: Iterable[str] = (),
        body: Body | None = None,
        stall: float | None = None,
    ) -> Answer:
        """Make a request, with authorization and redirects as the host wants them. Returns an answer below 300, or
        raises a Failure.

        If HEAD is refused, by the host or by the target of its redirect, GET is sent instead, which also shows the
        reason: see :attr:`Answer.method`.
        """
        scopes = tuple(scopes)
        refused, hops, own, head_refused = 0, 0, True, 0
        while True:
            url = self._with_scheme(url)
            own = own and same_host(f"{self._scheme}://{self.name}", url)
            used = await self._authorizer.header(scopes) if own else ""
            answer = await self._exchange(method, url, headers, used, own=own, body=body, stall=stall)
            url = self._with_scheme(url)
            if answer.status < 300:
                return answer
            said = await _explanation(answer, method, expected=answer.status == 401 and not used)
            if answer.status == 401 and own and refused < 2:
                refused += 1
                if await self._authorizer.challenged(answer.challenges(), scopes, used):
                    continue
            elif answer.status in REDIRECTS and (location := answer.headers.get("Location")) and hops < HOPS:
                hops += 1
                url = self.absolute(location, url)
                if answer.status == 303 and method not in ("GET", "HEAD"):
                    method, body = "GET", None
                continue
            if method == "HEAD" and (answer.status in HEAD_REFUSALS or (not own and answer.status == 404)):
                method, head_refused = "GET", answer.status
                continue
            raise self._failed("HEAD" if answer.status == head_refused else method, url, answer, said, own=own)

    async def _exchange(
        self,
        method: str,
        url: str,
        headers: Headers,
        authorization: str,
        *,
        own: bool,
        body: Body | None,
        stall: float | None,
    ) -> Answer:
        while True:
            merged = _merged(
                [("User-Agent", USER_AGENT), ("Accept", "*/*"), ("Accept-Encoding", "identity")],
                self._headers if own else [],
                headers.items(),
                [("Authorization", authorization)] if authorization else [],
            )
            try:
                return await self._session.exchange(
                    method,
                    url,
                    headers=merged,
                    body=body() if body is not None else None,
                    connect=self._connect,
                    stall=stall or self._stall,
                    foreign=not own,
                    watch=self._watch,
                    role=self._role
                    if own
                    else replace(self._role, via=self.name, traceparent=False, perhaps_plain=False),
                )
            except Failure as failure:
                unreachable = failure.blame is Blame.DEAD and not name_and_port(self.name)[1]
                if not (own and self._host.fallback and url.startswith("https:") and (failure.plain or unreachable)):
                    if not own:
                        failure.args = (f"{failure} ({self.name} sent us there)",)
                    raise
                self._scheme = "http"
                url = self._with_scheme(url)

    def _with_scheme(self, url: str) -> str:
        """A URL of this host, corrected if it was made before the host was found to speak plain http."""
        secure = f"https://{self._host.host}/"
        return (
            f"http://{self._host.host}/{url.removeprefix(secure)}"
            if self._scheme == "http" and self._host.fallback and url.startswith(secure)
            else url
        )

    def _failed(self, method: str, url: str, answer: Answer, body: bytes, *, own: bool) -> Failure:
        """The failure that an answer of 300 and above means, with the server's own explanation."""
        path = urlsplit(url).path
        failure = answered(answer.host, f"{method} {path}", answer.status, answer.reason, answer.headers, body)
        words = str(failure)
        if answer.status == 401 and own:
            words += f" (access denied {self._authorizer.described}; the repository may not exist, or want others)"
        elif answer.status in REDIRECTS:
            failure.kind = errors.FailedPrecondition
            words += f" (redirect number {HOPS + 1})" if answer.headers.get("Location") else " (a redirect to nowhere)"
        failure.args = (words if own else f"{words} ({self.name} sent us there)",)
        return failure

    async def _ask(
        self, method: str, url: str, headers: dict[str, str], body: bytes | None
    ) -> tuple[int, str, Any, bytes]:
        """Make a request to a token server (:class:`.auth.Ask`). Redirects are followed for GET only, and credentials
        are sent only to the same host.
        """
        first, own = origin(url), f"{self._scheme}://{self.name}"
        near = name_and_port(self.name)[0] == urlsplit(url).hostname
        host = public(urlsplit(url).netloc)
        try:
            async with asyncio.timeout(self._timeouts.token):
                for _ in range(HOPS):
                    same = origin(url) == first
                    merged = _merged(
                        [("User-Agent", USER_AGENT), ("Accept", "application/json")],
                        self._headers if near and same else [],
                        headers.items() if same else [],
                    )
                    answer = await self._session.exchange(
                        method,
                        url,
                        headers=[each for each in merged if same or each[0] != "Authorization"],
                        body=body,
                        connect=self._connect,
                        stall=self._timeouts.token,
                        foreign=not near,
                        watch=self._watch,
                        private=True,
                        role=replace(
                            self._role, via=self.name, traceparent=self._role.traceparent and same_host(own, url)
                        ),
                    )
                    try:
                        location = answer.headers.get("Location")
                        if answer.status not in REDIRECTS or method != "GET" or not location:
                            found = await answer.read(TOKEN_LIMIT)
                            return answer.status, answer.reason, answer.headers, found
                    finally:
                        answer.release()
                    url = self.absolute(location, url)
        except TimeoutError:
            raise Failure(
                self.name,
                f"{host}, its token server, did not answer within {self._timeouts.token:g} s",
                transient=True,
                blame=Blame.TROUBLE,
                named="token",
            ) from None
        except Failure as failure:
            raise Failure(
                self.name,
                f"no token: {failure}",
                kind=failure.kind,
                transient=failure.transient,
                blame=Blame.TROUBLE if failure.transient else Blame.NOBODY,
                named="token",
            ) from None
        raise Failure(
            self.name, f"{host}, its token server, redirects without end", kind=errors.FailedPrecondition, named="token"
        )


class ForeignUrl:
    """One of a descriptor's ``urls``: a third party's server, which learns only what we want."""

    def __init__(self, url: str, session: Session, timeouts: Timeouts, watch: HttpDebug = NO_DEBUG) -> None:
        self._url = url
        scheme, name, _ = origin(url)
        self.name = public(urlsplit(url).netloc)
        self.key = f"{scheme}://{self.name}"
        self._endpoint = Endpoint(
            Host(scheme, self.name), session, namespace=name, source=None, timeouts=timeouts, watch=watch
        )

    async def get(self, reference: Reference, descriptor: Descriptor, headers: Headers) -> Answer:
        """As :meth:`Place.get`."""
        return await self._endpoint.send("GET", self._url, headers=headers)


def pull_scopes(reference: Reference) -> tuple[str, ...]:
    """The scopes of a token for reading."""
    return (f"repository:{reference.repository}:pull",)


def push_scopes(reference: Reference, mount_from: str = "") -> tuple[str, ...]:
    """The scopes of a token for writing, and for mounting a blob of another repository."""
    return (f"repository:{reference.repository}:pull,push", *((f"repository:{mount_from}:pull",) if mount_from else ()))


async def _explanation(answer: Answer, method: str, *, expected: bool) -> bytes:
    """The body of an answer that is of no other use; this frees its connection.

    Answers of 400 and above are failures in the trace, except those that are part of asking: 401 without a token
    (``expected``), a refusal of HEAD, and 404.
    """
    said = b""
    try:
        if method != "HEAD":
            said = await answer.read(ERROR_BODY)
        return said
    except Failure:
        return said
    finally:
        probe = expected or answer.status == 404 or (method == "HEAD" and answer.status in HEAD_REFUSALS)
        if answer.status >= 400 and not probe:
            answer.blame(answered(answer.host, method, answer.status, answer.reason, answer.headers, said))
        answer.release()


def _merged(*lists: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Headers; a later list replaces those of the same name before it."""
    found: list[tuple[str, str]] = []
    for each in lists:
        pairs = list(each)
        names = {name.lower() for name, _ in pairs}
        found = [(name, value) for name, value in found if name.lower() not in names] + pairs
    return found
