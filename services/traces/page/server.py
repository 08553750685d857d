"""The page over HTTP:

    GET /                      the page; its files are beside it
    GET /api/traces            the list; ?operation=&image=&namespace=&failed=1&longer=SECONDS&since=SECONDS_AGO&limit=
                               (without an operation: all of OPERATIONS; operation=all: single calls, too)
    GET /api/traces/ID         a trace with its verdict; the beginning of an id is enough
    GET /api/causes            where the time of some traces went; ?of=ID.SPANS,ID.SPANS with their numbers of spans
    GET /api/compare/A/B       two verdicts, stage by stage
    GET /api/live              what is under way
    GET /api/health            processes, registries, and what the store holds

Who may ask: there is no password, as on the node's sockets of which the page is a window; so it belongs on loopback. A
site that lets its name point to 127.0.0.1 reaches this address from a browser here, but under its own name: requests
for hosts that are neither loopback nor configured are refused (421). Nothing can be changed here. The browser runs no
code but the files of this folder (Content-Security-Policy), which make text of whatever spans say, never markup.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import re
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs

from services.kit import errors, http_server, page_address
from services.kit.http_server import Request, Response
from services.traces import comparison, verdict
from services.traces.page import documents
from services.traces.page.source import Source
from services.traces.store import Query, Trace

T = TypeVar("T")

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}

_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^:\[\]]+))(?::[0-9]*)?")

OPERATIONS = frozenset({"pull", "push", "import", "export", "run", "exec", "delete"})
"""What a client wanted; other traces are of single calls, and of the node's own work."""
ALL = "all"

_WAITING = 8
"""Traces that may wait until the one before them has been worked out."""
_REMEMBERED = 1_000
"""Traces whose causes are remembered, as long as they have as many spans."""
_MOST = 1_000
"""Traces in a list."""


class Page:
    """Answers requests with what ``source`` tells. ``hosts`` are names under which the page may be asked for, besides
    loopback's. Its files are read once: later another release may be installed.
    """

    def __init__(self, source: Source, hosts: Collection[str] = ()) -> None:
        self._source = source
        self._hosts = frozenset(host.lower() for host in hosts)
        self._files = {f"/{each.name}": each.read_bytes() for each in (Path(__file__).parent / "static").iterdir()}
        self._files["/"] = self._files.pop("/index.html")
        self._thread = ThreadPoolExecutor(1, "verdicts")
        self._waiting = 0
        self._known_causes: dict[tuple[str, int], documents.Json] = {}

    async def serve(self, address: str) -> None:
        """Serve at ``address``, also under the name of its host; for :func:`services.kit.loops.running`, which begins
        anew where it is taken.
        """
        if isinstance(where := page_address.parse_address(address), tuple):
            self._hosts |= {where[0].lower()}
        await http_server.lasting("[traces] address", address, self.answer)

    async def answer(self, request: Request) -> Response:
        """The answer to any request."""
        if not self._known(request.headers.get("host", "")):
            return http_server.failure(421, "the page is not known by this name; [traces] hosts lists its names")
        try:
            found = await self._found(request)
        except errors.NotFound as error:
            found = http_server.failure(404, str(error))
        except errors.InvalidArgument as error:
            found = http_server.failure(400, str(error))
        except errors.ResourceExhausted as error:
            found = http_server.failure(503, str(error), **{"Retry-After": "1"})
        return Response(status=found.status, body=found.body, type=found.type, headers={**found.headers, **_HEADERS})

    def _known(self, host: str) -> bool:
        """Whether a Host header names this page. Ports do not matter: they may be forwarded."""
        parts = _HOST.fullmatch(host.lower())
        if parts is None:
            return False
        name = parts[1] or parts[2]
        if name in self._hosts or name == "localhost" or name.endswith(".localhost"):
            return True
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False

    async def _found(self, request: Request) -> Response:
        path = request.path
        if (file := self._files.get(path)) is not None:
            return Response(body=file, type=_TYPES["." + path.rpartition(".")[2] if path != "/" else ".html"])
        parts = path.removeprefix("/api/").split("/") if path.startswith("/api/") else []
        match parts:
            case ["traces"]:
                return _json(await self._traces(request.query))
            case ["traces", identity]:
                return await self._worked_out(_judged, *await self._with_others(identity))
            case ["causes"]:
                return _json(await self._causes(request.query))
            case ["compare", a, b]:
                (first, others), (second, more) = await self._with_others(a), await self._with_others(b)
                return await self._worked_out(_compared, first, second, [*others, *more])
            case ["live"]:
                return _json(documents.live(await self._source.live()))
            case ["health"]:
                node, figures = await asyncio.gather(self._source.node(), self._source.figures())
                return _json({**documents.node(node), "store": documents.figures(figures), "now": time.time() * 1e3})
        raise errors.NotFound(path)

    async def _traces(self, text: str) -> documents.Json:
        query = _query(text)
        if query.operation in ("", ALL):
            # What a client wanted is looked for among the calls that were recorded as samples.
            found = await self._source.traces(replace(query, operation="", limit=_MOST))
            found = [each for each in found if query.operation == ALL or each.operation in OPERATIONS][: query.limit]
        else:
            found = await self._source.traces(query)
        return {"now": time.time() * 1e3, "traces": [documents.summary(each) for each in found]}

    async def _causes(self, text: str) -> documents.Json:
        wanted = _of(text)
        for key in wanted:
            if key not in self._known_causes:
                try:
                    of_it = await self._in_thread(_brief, *await self._with_others(key[0]))
                except errors.NotFound:  # removed in between
                    continue
                while len(self._known_causes) >= _REMEMBERED:
                    del self._known_causes[next(iter(self._known_causes))]
                self._known_causes[key] = of_it
        return {key[0]: self._known_causes[key] for key in wanted if key in self._known_causes}

    async def _with_others(self, prefix: str) -> tuple[Trace, list[Trace]]:
        """A trace, and those that it waited for."""
        found, others = await self._source.trace(prefix), list[Trace]()
        if not found.spans:
            raise errors.NotFound(f"trace {prefix}")
        wanted = verdict.wanted(found)
        for other in wanted:
            with contextlib.suppress(errors.NotFound):
                others.append(await self._source.trace(other))
        if wanted:
            others = verdict.with_open(others, wanted, await self._source.live())
        return found, others

    async def _worked_out(self, work: Callable[..., documents.Json], *what: Any) -> Response:
        """The JSON of what ``work`` makes of something."""
        return Response(body=await self._in_thread(lambda: _encoded(work(*what))), type="application/json")

    async def _in_thread(self, work: Callable[..., T], *what: Any) -> T:
        """Run ``work`` in the one thread for what takes long. ResourceExhausted if too much waits for it."""
        if self._waiting >= _WAITING:
            raise errors.ResourceExhausted("too many traces are asked for at once")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work(*what))
        finally:
            self._waiting -= 1


def _brief(found: Trace, others: list[Trace]) -> documents.Json:
    return documents.brief(verdict.judge(found, others))


def _judged(found: Trace, others: list[Trace]) -> documents.Json:
    shown, places = documents.trace(found)
    return {**shown, "verdict": documents.verdict(verdict.judge(found, others), found, places)}


def _compared(first: Trace, second: Trace, others: list[Trace]) -> documents.Json:
    return documents.comparison(comparison.compare(first, second, others), first, second)


def _json(content: object) -> Response:
    return Response(body=_encoded(content), type="application/json")


def _encoded(content: object) -> bytes:
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()


def _query(text: str) -> Query:
    try:
        given = {key: values[-1] for key, values in parse_qs(text, max_num_fields=20).items()}
        ago = _number(given, "since")
        return Query(
            since=int((time.time() - ago) * 1e9) if ago else 0,
            operation=given.get("operation", ""),
            image=given.get("image", ""),
            namespace=given.get("namespace", ""),
            failed=given.get("failed", "") not in ("", "0"),
            longer=_number(given, "longer"),
            limit=int(min(max(1, _number(given, "limit") or 200), _MOST)),
        )
    except (ValueError, OverflowError) as error:
        raise errors.InvalidArgument(f"the query: {error}") from None


def _number(given: Mapping[str, str], key: str) -> float:
    try:
        value = float(given.get(key) or 0)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise ValueError(f"{key}={given[key][:40]!r} is not a number of {'traces' if key == 'limit' else 'seconds'}")
    return value


def _of(text: str) -> list[tuple[str, int]]:
    """The traces that ?of= names, each with its number of spans."""
    try:
        (given,) = parse_qs(text, max_num_fields=1).get("of", [""])
    except ValueError as error:
        raise errors.InvalidArgument(f"the query: {error}") from None
    names = given.split(",")
    if len(names) > _TOGETHER or not all(_NAMED.fullmatch(name) for name in names):
        raise errors.InvalidArgument(f"of= names at most {_TOGETHER} traces as ID.SPANS")
    return [(name[:32], int(name[33:])) for name in names]


_TOGETHER = 10
_NAMED = re.compile(r"[0-9a-f]{32}\.[0-9]{1,9}")
