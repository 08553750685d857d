"""A registry that misbehaves on request: in this process, on loopback, images in memory.

::

    async with FakeRegistry() as registry:
        reference = registry.add(image([...]), "box:1")               # an image of deploy.samples
        registry.inject("blob", cut(after=1000))                      # the next GET of a blob
        registry.inject("manifest", status(503), times=2)
        ...
        registry.seen                                                 # every request with its headers

Or for other programs: ``python -m tests.fake_registry [--cut N] [--slow BYTES] [--status CODE]`` prints what to pull,
and serves until it is killed.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import functools
import json
import ssl
import subprocess
import time
import urllib.parse
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from deploy.samples import Image
from services.oci.digests import digest_of

Serve = Callable[[], Awaitable[web.StreamResponse]]
Fault = Callable[[web.Request, Serve], Awaitable[web.StreamResponse]]
"""Answers a request in its own way, or with the registry's own answer (``serve()``)."""


@dataclass(frozen=True)
class Seen:
    """A request as it arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    status: int = 0


@dataclass
class Auth:
    """The credentials that a client must show: a token of our own token server (``bearer``), or user and password.
    Tokens are valid for ``seconds``; ``told`` is what the server says about that.
    """

    scheme: str = "bearer"
    user: str = ""
    password: str = ""
    identity: str = ""
    seconds: float = 300
    told: float | None = None
    post: int = 200
    """The status with which a POST for a token is answered: 404 for a server that supports only GET."""
    realm: str = ""
    tokens: dict[str, tuple[float, set[str]]] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic


class FakeRegistry:
    """A registry on a loopback ``address``; an async context manager. ``tls`` is a server's context."""

    def __init__(
        self,
        *,
        tls: ssl.SSLContext | None = None,
        auth: Auth | None = None,
        ranges: bool = True,
        relative: bool = False,
        head: bool = True,
        address: str = "127.0.0.1",
    ) -> None:
        self.address = address
        self.tls = tls
        self.auth = auth
        self.ranges = ranges
        self.relative = relative
        self.head = head
        self.blobs: dict[str, bytes] = {}
        self.repositories: dict[str, set[str]] = {}
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self.uploads: dict[str, bytearray] = {}
        self.seen: list[Seen] = []
        self.answering = 0
        """The number of requests that are being answered."""
        self.port = 0
        self._writers: list[tuple[str, AbstractStreamWriter]] = []
        self._faults: list[list[Any]] = []
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{tail:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.address, self.port, ssl_context=self.tls)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Disappear, like a machine that crashed; ``async with`` starts it again on the same port."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @property
    def host(self) -> str:
        return f"{self.address}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host}"

    def add(self, what: Image, name: str) -> str:
        """Serve an image or index as ``REPOSITORY:TAG``; returns its reference."""
        repository, tag = name.rsplit(":", 1)
        for digest, data in what.blobs.items():
            self.add_blob(repository, data)
            found = None
            if data[:1] == b"{" and isinstance(found := json.loads(data), dict) and "schemaVersion" in found:
                self.manifests[repository, digest] = (found["mediaType"], data)
        self.manifests[repository, tag] = (what.media_type, what.blobs[what.digest])
        return f"{self.host}/{name}"

    def add_blob(self, repository: str, data: bytes) -> str:
        """Serve a blob; returns its digest."""
        digest = digest_of(data)
        self.blobs[digest] = data
        self.repositories.setdefault(repository, set()).add(digest)
        return digest

    def inject(self, where: str, fault: Fault, *, times: int = 1, method: str = "") -> None:
        """Let ``fault`` answer the next ``times`` requests of a kind (``manifest``, ``blob``, ``upload``, ``token``, or
        part of a path).
        """
        self._faults.append([where, fault, times, method])

    def heal(self) -> None:
        """Answer correctly from now on."""
        self._faults.clear()

    def asked(self, method: str = "", part: str = "") -> list[Seen]:
        """The number of requests so far."""
        return [each for each in self.seen if (not method or each.method == method) and part in each.path]

    def served(self, part: str = "") -> int:
        """Bytes sent so far, headers included (less than 1 KiB for each request)."""
        return sum(writer.output_size for path, writer in self._writers if part in path)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self._writers.append((request.path, request.writer))
        self.answering += 1
        try:
            return await self._answered(request)
        finally:
            self.answering -= 1

    async def _answered(self, request: web.Request) -> web.StreamResponse:
        place = len(self.seen)
        self.seen.append(Seen(request.method, request.path_qs, dict(request.headers)))

        async def serve() -> web.StreamResponse:
            return await self._serve(request)

        for entry in self._faults:
            where, fault, times, method = entry
            if times > 0 and (where == _kind(request) or where in request.path) and method in ("", request.method):
                entry[2] -= 1
                answer = await fault(request, serve)
                break
        else:
            answer = await serve()
        before = self.seen[place]
        self.seen[place] = Seen(before.method, before.path, before.headers, answer.status)
        return answer

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        path = urllib.parse.unquote(request.path)
        if path == "/token":
            return await self._token(request)
        if (refused := self._refused(request, path)) is not None:
            return refused
        if path.endswith("/blobs/uploads/") or "/blobs/uploads/" in path:
            return await self._upload(request, path)
        for kind in ("manifests", "blobs"):
            repository, found, name = path.removeprefix("/v2/").rpartition(f"/{kind}/")
            if found:
                return await (self._manifest if kind == "manifests" else self._blob)(request, repository, name)
        return web.json_response({})

    # -- who may

    def _refused(self, request: web.Request, path: str) -> web.Response | None:
        auth = self.auth
        if auth is None:
            return None
        given = request.headers.get("Authorization", "")
        if auth.scheme == "basic":
            if given == "Basic " + base64.b64encode(f"{auth.user}:{auth.password}".encode()).decode():
                return None
            return self._unauthorized('Basic realm="fake"')
        repository = path.removeprefix("/v2/").rsplit("/manifests/")[0].split("/blobs/")[0]
        actions = "pull" if request.method in ("GET", "HEAD") else "pull,push"
        until, scopes = auth.tokens.get(given.removeprefix("Bearer "), (0.0, set()))
        realm = auth.realm or f"{self.url}/token"
        challenge = f'Bearer realm="{realm}",service="fake",scope="repository:{repository}:{actions}"'
        wanted = {f"repository:{repository}:{action}" for action in actions.split(",")}
        if source := request.query.get("from"):
            wanted.add(f"repository:{source}:pull")
        if not given:
            return self._unauthorized(challenge)
        if until < auth.clock():
            return self._unauthorized(challenge + ',error="invalid_token"')
        return None if wanted <= scopes else self._unauthorized(challenge + ',error="insufficient_scope"')

    def _unauthorized(self, challenge: str) -> web.Response:
        return web.json_response(
            {"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]},
            status=401,
            headers={"WWW-Authenticate": challenge},
        )

    async def _token(self, request: web.Request) -> web.Response:
        auth = self.auth
        assert auth is not None
        if request.method == "POST":
            if auth.post != 200:
                return web.json_response({}, status=auth.post)
            form = await request.post()
            scopes = str(form.get("scope", "")).split()
            right = (
                (form.get("username"), form.get("password")) == (auth.user, auth.password)
                if form.get("grant_type") == "password"
                else form.get("refresh_token") == auth.identity
            )
        else:
            scopes = [part for each in request.query.getall("scope", []) for part in each.split()]
            given = request.headers.get("Authorization", "")
            right = given == (
                "Basic " + base64.b64encode(f"{auth.user}:{auth.password}".encode()).decode() if auth.user else ""
            )
        if not right:
            return web.json_response(
                {"errors": [{"code": "UNAUTHORIZED", "message": "incorrect username or password"}]}, status=401
            )
        token = uuid.uuid4().hex
        granted = {
            f"{scope.rsplit(':', 1)[0]}:{action}" for scope in scopes for action in scope.rsplit(":", 1)[1].split(",")
        }
        auth.tokens[token] = (auth.clock() + auth.seconds, granted)
        told = auth.seconds if auth.told is None else auth.told
        return web.json_response({"token": token, **({"expires_in": told} if told else {})})

    # -- what is read

    async def _manifest(self, request: web.Request, repository: str, name: str) -> web.StreamResponse:
        if request.method == "PUT":
            data = await request.read()
            media_type = request.headers["Content-Type"]
            self.manifests[repository, name] = self.manifests[repository, digest_of(data)] = (media_type, data)
            return web.Response(status=201, headers={"Docker-Content-Digest": digest_of(data)})
        if request.method == "HEAD" and not self.head:
            return web.Response(status=405)
        found = self.manifests.get((repository, name))
        if found is None:
            return web.json_response(
                {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}, status=404
            )
        media_type, data = found
        return web.Response(body=data, content_type=media_type, headers={"Docker-Content-Digest": digest_of(data)})

    async def _blob(self, request: web.Request, repository: str, digest: str) -> web.StreamResponse:
        if digest not in self.repositories.get(repository, ()) or digest not in self.blobs:
            return web.json_response(
                {"errors": [{"code": "BLOB_UNKNOWN", "message": "blob unknown to registry"}]}, status=404
            )
        if request.method == "HEAD" and not self.head:
            return web.Response(status=405)
        data = self.blobs[digest]
        headers = {"Docker-Content-Digest": digest, **({"Accept-Ranges": "bytes"} if self.ranges else {})}
        wanted = request.headers.get("Range", "")
        if wanted and self.ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) + 1 if last else len(data), len(data))
            if start >= len(data):
                return web.Response(status=416)
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
            return web.Response(
                status=206, body=data[start:end], headers=headers, content_type="application/octet-stream"
            )
        return web.Response(body=data, headers=headers, content_type="application/octet-stream")

    # -- what is written

    async def _upload(self, request: web.Request, path: str) -> web.StreamResponse:
        repository, _, name = path.removeprefix("/v2/").partition("/blobs/uploads/")
        if request.method == "POST":
            mount, source = request.query.get("mount", ""), request.query.get("from", "")
            if mount and mount in self.repositories.get(source, ()):
                self.repositories.setdefault(repository, set()).add(mount)
                return web.Response(
                    status=201, headers={"Location": f"/v2/{repository}/blobs/{mount}", "Docker-Content-Digest": mount}
                )
            name = uuid.uuid4().hex
            self.uploads[name] = bytearray()
            return self._where(202, repository, name)
        if name not in self.uploads:
            return web.json_response(
                {"errors": [{"code": "BLOB_UPLOAD_UNKNOWN", "message": "blob upload unknown to registry"}]}, status=404
            )
        if request.method == "GET":
            return self._where(204, repository, name)
        if (said := request.headers.get("Content-Range")) and int(said.partition("-")[0]) != len(self.uploads[name]):
            return self._where(416, repository, name)
        async for part in request.content.iter_any():
            self.uploads[name] += part
        if request.method == "PATCH":
            return self._where(202, repository, name)
        digest = request.query["digest"]
        data = bytes(self.uploads.pop(name))
        if digest_of(data) != digest:
            return web.json_response(
                {"errors": [{"code": "DIGEST_INVALID", "message": "provided digest did not match uploaded content"}]},
                status=400,
            )
        self.add_blob(repository, data)
        return web.Response(
            status=201, headers={"Location": f"/v2/{repository}/blobs/{digest}", "Docker-Content-Digest": digest}
        )

    def _where(self, status: int, repository: str, name: str) -> web.Response:
        location = f"/v2/{repository}/blobs/uploads/{name}?_state=a%2Fb%3D"
        headers = {"Location": location if self.relative else self.url + location}
        if self.uploads[name]:
            headers["Range"] = f"0-{len(self.uploads[name]) - 1}"
        return web.Response(status=status, headers=headers)


def _kind(request: web.Request) -> str:
    if request.path == "/token":
        return "token"
    for kind in ("manifest", "upload", "blob"):
        if f"/{kind}s/" in request.path:
            return kind
    return ""


# ------------------------------------------------------------------------------------------ faults


def status(code: int, **headers: str) -> Fault:
    """Another status, with a registry's error text."""

    async def fault(request: web.Request, serve: Serve) -> web.StreamResponse:
        said = {"errors": [{"code": "TROUBLE", "message": "injected"}]}
        return web.Response(
            body=json.dumps(said).encode(),
            status=code,
            headers={name.replace("_", "-"): value for name, value in headers.items()},
        )

    return fault


def says(body: str) -> Fault:
    """This text, as JSON, with status 200."""

    async def fault(request: web.Request, serve: Serve) -> web.StreamResponse:
        return web.Response(body=body.encode(), content_type="application/json")

    return fault


def cut(after: int, *, seconds: float = 0.05) -> Fault:
    """The right answer, but the connection is lost after ``after`` bytes of its body, ``seconds`` later: the bytes
    before that are sent.
    """

    async def fault(request: web.Request, serve: Serve) -> web.StreamResponse:
        right = await serve()
        assert isinstance(right, web.Response)
        assert isinstance(right.body, bytes)
        broken = web.StreamResponse(status=right.status, headers=right.headers)
        broken.content_length = len(right.body)
        await broken.prepare(request)
        await broken.write(right.body[:after])
        await asyncio.sleep(seconds)
        assert request.transport is not None
        request.transport.abort()
        return broken

    return fault


def hang_up() -> Fault:
    """No answer at all: the connection is closed."""

    async def fault(request: web.Request, serve: Serve) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    return fault


def taking(registry: FakeRegistry, after: int) -> Fault:
    """An upload to ``registry`` of which some bytes are accepted; then the connection is closed."""

    async def fault(request: web.Request, serve: Serve) -> web.StreamResponse:
        upload = registry.uploads[urllib.parse.unquote(request.path).rpartition("/")[2]]
        while len(upload) < after:
            upload += await request.content.read(after - len(upload))
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    return fault


def no_ranges(code: int) -> Fault:
    """A request for a part is refused with this status."""

    async def fault(request: web.Request, serve: Serve) -> web.StreamResponse:
        return await (status(code)(request, serve) if "Range" in request.headers else serve())

    return fault


def odd_parts(content_range: str, content_type: str = "application/octet-stream") -> Fault:
    """A request for a part is answered with 206 and this Content-Range; "" for none."""

    async def fault(request: web.Request, serve: Serve) -> web.StreamResponse:
        right = await serve()
        if right.status != 206:
            return right
        assert isinstance(right, web.Response)
        return web.Response(
            status=206,
            body=right.body,
            headers={"Content-Type": content_type, **({"Content-Range": content_range} if content_range else {})},
        )

    return fault


def closed_ranges_only() -> Fault:
    """Like go-containerregistry's registry: a range without an end, or with one beyond the blob's, is refused."""

    async def fault(request: web.Request, serve: Serve) -> web.StreamResponse:
        last = request.headers.get("Range", "").partition("-")[2]
        whole = await serve()
        total = int(whole.headers.get("Content-Range", "/0").partition("/")[2])
        right = "Range" not in request.headers or (last.isdigit() and int(last) < total)
        return whole if right else await status(416)(request, serve)

    return fault


def encoded(registry: FakeRegistry, coding: str, encode: Callable[[bytes], bytes], *, parts: bool = False) -> Fault:
    """The answer encoded by ``encode``, with a Content-Encoding. ``parts``: for a range, a part of the encoded bytes
    (as an object store that has them encoded); otherwise all of them.
    """

    once = functools.lru_cache(maxsize=2)(encode)  # of a blob that is requested in parts

    async def fault(request: web.Request, serve: Serve) -> web.StreamResponse:
        right = await serve()
        if right.status not in (200, 206):
            return right
        assert isinstance(right, web.Response)
        whole = (
            registry.blobs[urllib.parse.unquote(request.path).rpartition("/")[2]] if right.status == 206 else right.body
        )
        assert isinstance(whole, bytes)
        data = once(whole)
        headers = {
            "Content-Type": right.headers["Content-Type"],
            "Content-Encoding": coding,
            **{
                name: right.headers[name]
                for name in ("Docker-Content-Digest", "Accept-Ranges")
                if name in right.headers
            },
        }
        if parts and (wanted := request.headers.get("Range")):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            if int(first) >= len(data):
                return web.Response(status=416)
            part = data[int(first) : int(last) + 1]
            return web.Response(
                status=206,
                body=part,
                headers={**headers, "Content-Range": f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"},
            )
        return web.Response(body=data, headers=headers)

    return fault


def then(first: Fault, second: Fault) -> Fault:
    """``second`` applied to the answer of ``first``."""

    async def fault(request: web.Request, serve: Serve) -> web.StreamResponse:
        return await second(request, lambda: first(request, serve))

    return fault


def sliced(most: int, aligned: int = 1) -> Fault:
    """Parts of at most ``most`` bytes that begin at a multiple of ``aligned``: less than was asked for, as some content
    delivery networks answer.
    """

    async def fault(request: web.Request, serve: Serve) -> web.StreamResponse:
        right = await serve()
        if right.status != 206:
            return right
        assert isinstance(right, web.Response)
        assert isinstance(right.body, bytes)
        where, _, total = right.headers["Content-Range"].removeprefix("bytes ").partition("/")
        first = int(where.partition("-")[0])
        cut_off = first % aligned
        whole = bytes(cut_off) + right.body  # what precedes the part does not matter: it is dropped
        part = whole[: most + cut_off]
        headers = {
            **right.headers,
            "Content-Range": f"bytes {first - cut_off}-{first - cut_off + len(part) - 1}/{total}",
        }
        headers.pop("Content-Length", None)
        return web.Response(status=206, body=part, headers=headers)

    return fault


def odd_http() -> Fault:
    """The right answer, written as only Go understands it: two lengths, a blank before a colon, a large header, a body
    for HEAD too.
    """

    async def fault(request: web.Request, serve: Serve) -> web.StreamResponse:
        right = await serve()
        assert isinstance(right, web.Response)
        body = right.body if isinstance(right.body, bytes) else b""
        lines = [
            f"HTTP/1.1 {right.status} {right.reason}",
            *(f"{name}: {value}" for name, value in right.headers.items() if name != "Content-Length"),
            *[f"Content-Length: {len(body)}"] * 2,
            "X-Odd : 1",
            "X-Large: " + "x" * 50_000,
            "",
            "",
        ]
        assert request.transport is not None
        request.transport.write("\r\n".join(lines).encode() + body)
        request.transport.close()
        return web.Response()

    return fault


def redirect(to: str, code: int = 307) -> Fault:
    """A redirect to ``to``, or below it if it ends with a slash."""

    async def fault(request: web.Request, serve: Serve) -> web.StreamResponse:
        where = f"{to.rstrip('/')}{request.path_qs}" if to.endswith("/") else to
        return web.Response(status=code, headers={"Location": where})

    return fault


def authorized(fault: Fault) -> Fault:
    """``fault`` for authorized requests; others are refused as usual."""

    async def faulty(request: web.Request, serve: Serve) -> web.StreamResponse:
        right = await serve()
        return right if right.status == 401 else await fault(request, serve)

    return faulty


def slow(rate: float, piece: int = 1024) -> Fault:
    """At most ``rate`` bytes a second."""

    async def fault(request: web.Request, serve: Serve) -> web.StreamResponse:
        right = await serve()
        assert isinstance(right, web.Response)
        assert isinstance(right.body, bytes)
        answer = web.StreamResponse(status=right.status, headers=right.headers)
        answer.content_length = len(right.body)
        await answer.prepare(request)
        for at in range(0, len(right.body), piece):
            await answer.write(right.body[at : at + piece])
            await asyncio.sleep(piece / rate)
        return answer

    return fault


def silent(seconds: float = 60.0, after: int = 0) -> Fault:
    """Silence for a long time; after ``after`` bytes of the body if that is not 0."""

    async def fault(request: web.Request, serve: Serve) -> web.StreamResponse:
        right = await serve()
        if after:
            assert isinstance(right, web.Response)
            assert isinstance(right.body, bytes)
            answer = web.StreamResponse(status=right.status, headers=right.headers)
            answer.content_length = len(right.body)
            await answer.prepare(request)
            await answer.write(right.body[:after])
            await asyncio.sleep(seconds)
            return answer
        await asyncio.sleep(seconds)
        return right

    return fault


def deaf(seconds: float = 60.0) -> Fault:
    """A server that never reads the request's body."""

    async def fault(request: web.Request, serve: Serve) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        return web.Response(status=500)

    return fault


def other(data: bytes, *, chunked: bool = False, pause: float = 0.0) -> Fault:
    """Other bytes than those asked for, with a ``pause`` in seconds in their middle."""

    async def fault(request: web.Request, serve: Serve) -> web.StreamResponse:
        right = await serve()
        headers = {k: v for k, v in right.headers.items() if k not in ("Content-Length", "Docker-Content-Digest")}
        if not chunked:
            return web.Response(body=data, headers=headers)
        answer = web.StreamResponse(headers=headers)
        answer.enable_chunked_encoding()
        await answer.prepare(request)
        await answer.write(data[: len(data) // 2])
        await asyncio.sleep(pause)
        await answer.write(data[len(data) // 2 :])
        return answer

    return fault


def endless(piece: bytes = b"x" * 65536) -> Fault:
    """A body without a length and without an end."""

    async def fault(request: web.Request, serve: Serve) -> web.StreamResponse:
        right = await serve()
        answer = web.StreamResponse(headers={k: v for k, v in right.headers.items() if k != "Content-Length"})
        answer.enable_chunked_encoding()
        await answer.prepare(request)
        while True:
            await answer.write(piece)

    return fault


# ------------------------------------------------------------------------------------------ certificates


class Authority:
    """A certificate authority of our own, made by the openssl program below ``directory``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.certificate = directory / "ca.crt"
        directory.mkdir(parents=True, exist_ok=True)
        self._openssl(
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=a test's authority",
            "-keyout",
            "ca.key",
            "-out",
            "ca.crt",
            "-addext",
            "basicConstraints=critical,CA:TRUE",
            "-addext",
            "keyUsage=critical,keyCertSign",
        )

    def issue(self, name: str, *, names: str = "IP:127.0.0.1,IP:::1,DNS:localhost", days: int = 2) -> tuple[Path, Path]:
        """A certificate and its key, for this machine's loopback or for other ``names``. One of -1 ``days`` expired
        yesterday.
        """
        self._openssl(
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-subj",
            f"/CN={name}",
            "-keyout",
            f"{name}.key",
            "-out",
            f"{name}.csr",
        )
        extensions = self.directory / "extensions"
        extensions.write_text(f"subjectAltName={names}\n")
        self._openssl(
            "x509",
            "-req",
            "-in",
            f"{name}.csr",
            "-CA",
            "ca.crt",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            str(days),
            "-extfile",
            "extensions",
            "-out",
            f"{name}.crt",
        )
        return self.directory / f"{name}.crt", self.directory / f"{name}.key"

    def server(self, *, clients: bool = False) -> ssl.SSLContext:
        """A server's context; ``clients``: it requires one of our certificates."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*self.issue("server"))
        if clients:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.certificate)
        return context

    def _openssl(self, *words: str) -> None:
        subprocess.run(["openssl", *words], cwd=self.directory, check=True, capture_output=True)


# ------------------------------------------------------------------------------------------ as a program


async def _main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fake_registry", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cut", type=int, metavar="N", help="the first blob's connection is lost after N bytes")
    parser.add_argument("--slow", type=float, metavar="BYTES", help="blobs come at so many bytes a second")
    parser.add_argument("--status", type=int, metavar="CODE", help="the first request for a blob is answered so")
    parser.add_argument("--no-ranges", action="store_true")
    arguments = parser.parse_args()
    from deploy.samples import busybox_image

    async with FakeRegistry(ranges=not arguments.no_ranges) as registry:
        reference = registry.add(busybox_image(), "box:1")
        if arguments.cut is not None:
            registry.inject("blob", cut(arguments.cut))
        if arguments.status:
            registry.inject("blob", status(arguments.status))
        if arguments.slow:
            registry.inject("blob", slow(arguments.slow), times=1 << 30)
        print(reference, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main())
