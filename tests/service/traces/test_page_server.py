"""The page over HTTP: what it answers, and to whom."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from services.kit import http_server
from services.kit.http_server import Request, Response
from services.traces.page.server import Page
from services.traces.store import Trace
from tests.made_traces import REGISTRY, MadeSource, hostile, pull

pytestmark = pytest.mark.once

A, B, HOSTILE = "a" * 32, "b" * 32, "d" * 32


@pytest.fixture
async def source() -> MadeSource:
    now, made = time.time_ns(), MadeSource()
    await made.keep(pull(A, now - 10**11), pull(B, now - 2 * 10**11, rate=90.0), hostile(HOSTILE, now - 3 * 10**11))
    return made


async def get(
    page: Page, path: str, query: str = "", host: str = "localhost:7799"
) -> tuple[int, Any, Mapping[str, str]]:
    answer = await page.answer(Request("GET", path, query, {"host": host}))
    content = json.loads(answer.body) if answer.type == "application/json" else answer.body.decode()
    return answer.status, content, answer.headers


@pytest.fixture
async def where(source: MadeSource) -> AsyncIterator[tuple[str, int]]:
    async with http_server.serving("127.0.0.1:0", Page(source).answer) as server:
        host, _, port = server.address.rpartition(":")
        yield host, int(port)


async def test_it_is_asked_over_http(where: tuple[str, int]) -> None:
    """The page and its list come; nothing but GET and HEAD is taken."""
    for method, path, status in (
        ("GET", "/", 200),
        ("HEAD", "/api/traces", 200),
        ("POST", "/api/traces", 405),
        ("DELETE", f"/api/traces/{A}", 405),
    ):
        reader, writer = await asyncio.open_connection(*where)
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: {where[0]}:{where[1]}\r\nConnection: close\r\n\r\n".encode())
        assert int((await reader.readline()).split()[1]) == status
        writer.close()


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("localhost", True),
        ("LOCALHOST:80", True),
        ("127.0.0.1:7799", True),
        ("127.8.8.8", True),
        ("[::1]:7799", True),
        ("a.localhost", True),
        ("node7.internal:7799", True),
    ]
    + [
        (name, False)
        for name in (
            "",
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "10.0.0.1",
            "0.0.0.0",
            "[::1].evil",
            "[",
            "node7.internal.evil",
        )
    ],
)
async def test_only_loopback_and_configured_names_are_answered(source: MadeSource, host: str, known: bool) -> None:
    """A stranger's name that was made to point here reaches neither data nor the page."""
    page = Page(source, ["Node7.internal"])
    for path in ("/", "/page.js", "/api/traces", "/api/health"):
        assert (await get(page, path, host=host))[0] == (200 if known else 421)


async def test_no_answer_lets_a_browser_run_what_is_not_ours(source: MadeSource) -> None:
    """Errors say so too."""
    page = Page(source)
    for path in ("/", "/page.css", "/api/traces", f"/api/traces/{HOSTILE}", "/nothing", "/api/nothing"):
        _, _, headers = await get(page, path)
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


async def test_the_files_are_those_of_its_folder(source: MadeSource) -> None:
    """No other path leads to a file."""
    page = Page(source)
    assert (await get(page, "/"))[1].startswith("<!doctype html>")
    for path in (
        "/index.html",
        "/../server.py",
        "/static/page.js",
        "//page.js",
        "/page.js/",
        "/etc/passwd",
        "/%2e%2e/server.py",
    ):
        assert (await get(page, path))[0] == 404, path


async def test_a_query_is_the_stores(source: MadeSource) -> None:
    """What is no number is refused, with the name of the field."""
    page = Page(source)
    status, found, _ = await get(
        page, "/api/traces", "operation=pull&image=team/app&longer=1.5&failed=1&since=3600&limit=7"
    )
    assert (status, found["traces"]) == (200, [])
    asked = source.asked[-1]
    assert (asked.operation, asked.image, asked.longer, asked.failed, asked.limit) == ("pull", "team/app", 1.5, True, 7)
    assert abs(asked.since / 1e9 - (time.time() - 3600)) < 60
    assert [each["id"] for each in (await get(page, "/api/traces", "operation=all"))[1]["traces"]] == [A, B, HOSTILE]
    assert [each["id"] for each in (await get(page, "/api/traces"))[1]["traces"]] == [A, B], "a single call"
    assert [each["id"] for each in (await get(page, "/api/traces", "limit=1"))[1]["traces"]] == [A]
    await get(page, "/api/traces", "operation=pull&limit=100000000")
    assert source.asked[-1].limit == 1_000
    for wrong in (
        "longer=x",
        "longer=-1",
        "longer=nan",
        "longer=inf",
        "since=1e99",
        "limit=x",
        "&".join(f"a{n}=1" for n in range(100)),
    ):
        assert (await get(page, "/api/traces", wrong))[0] == 400, wrong
    for wrong, unit in (
        ("limit=-1", "traces"),
        ("limit=x", "traces"),
        ("longer=-1", "seconds"),
        ("since=x", "seconds"),
    ):
        key, _, value = wrong.partition("=")
        answer = await page.answer(Request("GET", "/api/traces", wrong, {"host": "localhost"}))
        assert f"{key}={value!r} is not a number of {unit}".encode() in answer.body
    answer = await page.answer(Request("GET", "/api/traces/", "", {"host": "localhost"}))
    assert (answer.status, b"the id of a trace is empty" in answer.body) == (400, True)


async def test_a_trace_comes_with_its_verdict(source: MadeSource) -> None:
    """The beginning of an id is enough; one that nobody has is 404."""
    page = Page(source)
    status, found, _ = await get(page, f"/api/traces/{A[:8]}")
    assert (status, found["id"], len(found["spans"])) == (200, A, len((await source.trace(A)).spans))
    assert "registry.internal:5000" in found["verdict"]["sentence"]
    assert (await get(page, "/api/traces/ffff"))[0] == 404
    assert (await get(page, f"/api/traces/{HOSTILE}"))[0] == 200


async def test_a_list_is_told_where_the_time_of_its_traces_went(source: MadeSource) -> None:
    """Once for each trace, and anew when it has more spans. Those that were removed are left out."""
    read: list[str] = []

    class Counting(MadeSource):
        async def trace(self, prefix: str) -> Trace:
            read.append(prefix)
            return await source.trace(prefix)

    page = Page(Counting())
    status, found, _ = await get(page, "/api/causes", f"of={A}.10,{B}.10,{'e' * 32}.1")
    assert (status, set(found)) == (200, {A, B})
    assert found[A]["shares"][0][0] == "network"
    assert abs(sum(share for _, share in found[A]["shares"]) - 1) < 1e-6
    assert REGISTRY in found[A]["sentence"]
    assert (await get(page, "/api/causes", f"of={A}.10"))[1] == {A: found[A]}
    await get(page, "/api/causes", f"of={A}.11")
    assert [prefix for prefix in read if prefix != "e" * 32] == [A, B, A]
    for wrong in (
        "",
        "of=",
        f"of={A}",
        f"of={A}.x",
        "of=a.1",
        "of=" + ",".join([f"{A}.1"] * 11),
        "of=../x.1",
        f"of={A}.1&a=b",
    ):
        assert (await get(page, "/api/causes", wrong))[0] == 400, wrong


async def test_two_traces_are_compared(source: MadeSource) -> None:
    """The rows of each side add up to its time."""
    status, found, _ = await get(Page(source), f"/api/compare/{B}/{A}")
    assert (status, found["first"]["id"], found["second"]["id"]) == (200, B, A)
    for side, letter in (("first", "a"), ("second", "b")):
        assert abs(sum(row[letter] for row in found["rows"]) - found[side]["wall"]) < 1e-6
    assert (await get(Page(source), f"/api/compare/{A}/ffff"))[0] == 404
    assert (await get(Page(source), f"/api/compare/{A}"))[0] == 404


async def test_a_trace_without_spans_is_not_there() -> None:
    """The store may have removed them in between."""

    class Emptied(MadeSource):
        async def trace(self, prefix: str) -> Trace:
            return Trace(prefix, ())

    assert (await get(Page(Emptied()), f"/api/traces/{A}"))[0] == 404
    assert (await get(Page(Emptied()), f"/api/compare/{A}/{B}"))[0] == 404


async def test_a_trace_under_way_has_its_open_spans_until_now(source: MadeSource) -> None:
    """Also if no span of it has ended yet. One that has ended is not open, whatever the last report said."""
    now = time.time_ns()
    whole = pull("f" * 32, now - 4 * 10**9, rate=3.0)
    still = [span for span in whole.spans if span.start < now < span.end]
    source.running(*still)
    for ended in ([], [span for span in whole.spans if span.end <= now], [still[0]]):
        await source.store.add(ended)
        status, found, _ = await get(Page(source), "/api/traces/FFFF")
        open_spans = [span for span in found["spans"] if span.get("open")]
        assert (status, found["id"]) == (200, "f" * 32)
        assert all(3.5e6 < span["start"] + span["length"] < 60e6 for span in open_spans)
    assert len(open_spans) == len(still) - 1
    assert found["verdict"]["sentence"]


async def test_few_traces_are_worked_out_at_once(source: MadeSource) -> None:
    """Those that come on top are told to try again; then it goes on."""
    page = Page(source)
    answers: list[Response] = await asyncio.gather(
        *(page.answer(Request("GET", f"/api/traces/{A}", "", {"host": "localhost"})) for _ in range(30))
    )
    statuses = [answer.status for answer in answers]
    assert set(statuses) == {200, 503}
    assert statuses.count(200) == 8
    assert (await get(page, f"/api/traces/{A}"))[0] == 200


async def test_the_nodes_health_comes_with_what_the_store_holds(source: MadeSource) -> None:
    """Trouble with asking is told, and is no failure of the page."""
    source.trouble = "the gateway does not answer"
    status, found, _ = await get(Page(source), "/api/health")
    assert (status, found["trouble"], found["store"]["traces"]) == (200, source.trouble, 3)
    assert {each["name"] for each in found["processes"]} >= {"gateway", "images"}
    assert (await get(Page(source), "/api/live"))[1]["operations"] == []
