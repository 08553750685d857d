"""The trace of a slow pull says what was slow: name resolution, connection, TLS, token, first byte, bytes, pauses, and
which host was tried first.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

from services.images import waits
from services.images.registry.client import Client, Registry
from services.images.registry.credentials import Credentials
from services.images.registry.download import NoParts
from services.images.registry.hosts import Hosts
from services.images.registry_timeouts import Retry
from services.kit import errors, loops, metrics, tracing
from services.kit.spans import state
from tests.fake_registry import (
    Auth,
    Authority,
    FakeRegistry,
    Serve,
    authorized,
    cut,
    hang_up,
    no_ranges,
    redirect,
    silent,
    slow,
    status,
)
from tests.service.images.registry.conftest import HASTY, QUICK
from tests.service.images.registry.pulls import LAYER, certs, dead_port, described, fetched, small_image
from tests.spans import RecordedSpan, Spans, attribute, milliseconds, recorded
from tests.support import eventually_async

pytestmark = pytest.mark.once


@pytest.fixture
def spans() -> Iterator[Spans]:
    with recorded() as found:
        yield found


def failed(spans: Spans) -> list[str]:
    """The names of the spans that count as errors."""
    return [each.name for each in spans.all() if each.status.failed]


def said(span: RecordedSpan, name: str) -> object:
    """An attribute of a span, if it has it."""
    return (span.attributes or {}).get(name)


def mine(registry: Registry) -> Client:
    async def source(_: str) -> Credentials:
        return Credentials("me", "secret")

    return registry.client(source, plain_http=True)


def plain(registry: Registry) -> Client:
    """A client that does not try TLS first, which it would for loopback."""
    return registry.client(plain_http=True)


def through_mirror(directory: Path, mirror: str, origin: str, more: str = "") -> Hosts:
    return Hosts((certs(directory / "certs.d", "images.test", f'server = "{origin}"\n[host."{mirror}"]\n{more}'),))


async def test_the_spans_of_a_pull(spans: Spans, tmp_path: Path) -> None:
    """A resolve and a fetch over TLS, whose connection is lost once."""
    authority = Authority(tmp_path / "ca")
    async with FakeRegistry(tls=authority.server()) as fake:
        fake.add(small_image(), "box:1")
        fake.add_blob("box", LAYER)
        fake.inject("blob", cut(300_000))
        server = fake.url.replace("127.0.0.1", "localhost")
        hosts = Hosts(
            (certs(tmp_path / "certs.d", "images.test", f'server = "{server}"\nca = "{authority.certificate}"\n'),)
        )
        async with Registry(hosts, timeouts=QUICK, retry=HASTY) as registry:
            client = registry.client()
            await client.resolve("images.test/box:1")
            assert (await fetched(client, "images.test/box:1", described(LAYER)))[0] == LAYER
    resolved, fetch = spans.one("registry.resolve"), spans.one("registry.fetch")
    host = server.removeprefix("https://")
    assert attribute(resolved, "server.address") == host
    assert attribute(resolved, "container.image.name") == "images.test/box:1"
    assert (attribute(fetch, "splitd.registry.attempts"), attribute(fetch, "splitd.bytes")) == (2, len(LAYER))
    assert attribute(fetch, "oci.layer.digest") == described(LAYER).digest

    first, second, third = spans.named("registry.request")
    assert [spans.parent(each).name for each in (first, second, third)] == [resolved.name, fetch.name, fetch.name]
    assert [attribute(each, "http.request.method") for each in (first, second, third)] == ["HEAD", "GET", "GET"]
    assert [attribute(each, "splitd.registry.attempt") for each in (first, second, third)] == [1, 1, 2]
    assert [said(each, "error.type") for each in (first, second, third)] == [None, "lost", None]
    assert [attribute(each, "http.response.status_code") for each in (first, second, third)] == [200, 200, 206]
    for phase in ("dns", "connect", "tls", "first_byte"):
        assert attribute(first, f"splitd.registry.{phase}_ms"), phase
        for each in spans.named(f"registry.{phase}"):
            assert spans.parent(each).name == "registry.request"
    assert attribute(second, "splitd.registry.connection_reused")
    assert said(second, "splitd.registry.connect_ms") is None
    # a pause of our own is between the attempts, and says why
    pause = spans.one("wait.pause")
    assert spans.parent(pause).name == fetch.name
    assert (attribute(pause, "splitd.pause.reason"), attribute(pause, "error.type")) == ("retry", "lost")
    # the bytes of both attempts are in their transfers
    transfers = spans.named("registry.transfer")
    assert sum(int(str(attribute(each, "splitd.bytes"))) for each in transfers) == len(LAYER)
    assert not failed(spans)


async def test_a_host_that_cannot_be_reached(spans: Spans) -> None:
    """The request's span has the cause in one word and in full; the operation is the error."""
    async with Registry(timeouts=QUICK, retry=HASTY) as registry:
        with pytest.raises(errors.Unavailable, match="Connection refused"):
            await registry.client().resolve("127.0.0.1:9/box:1")
    request = spans.named("registry.request")[0]
    assert (attribute(request, "error.type"), attribute(request, "error.message")) == (
        "connect",
        "no connection: Connection refused",
    )
    assert failed(spans) == ["registry.resolve"]


@pytest.mark.parametrize(("code", "reason"), [(429, "429"), (503, "Retry-After")])
async def test_a_pause_that_was_asked_for(spans: Spans, code: int, reason: str) -> None:
    """It is a span of its own with the host, and lasts as long as was asked."""
    async with FakeRegistry() as fake, Registry(timeouts=QUICK, retry=Retry(first=0.01, longest_asked=0.3)) as registry:
        reference = fake.add(small_image(), "box:1")
        fake.inject("manifest", status(code, Retry_After="3"))
        await plain(registry).resolve(reference)
    pause = spans.one("wait.pause")
    assert attribute(pause, "splitd.pause.reason") == reason
    assert attribute(pause, "server.address") == fake.host
    assert attribute(pause, "splitd.wait.for") == f"waiting for {fake.host}: asked to wait 3 s ({code})"
    planned = float(str(attribute(pause, "splitd.pause.ms")))  # less what has passed since the answer
    assert 10.0 < planned <= 300.0
    assert milliseconds(pause) >= planned - 1
    assert spans.parent(pause).name == "registry.resolve"
    assert [said(each, "error.type") for each in spans.named("registry.request")] == [str(code), None]
    assert not failed(spans)


async def test_a_token(spans: Spans, quick: Registry) -> None:
    """Getting it has a span with the token server. Layers that wait for the same token say so, with a link to it. The
    401 before it is no error.
    """
    async with FakeRegistry(auth=Auth(user="me", password="secret", post=404)) as fake:
        reference = fake.add(small_image(), "box:1")
        fake.add_blob("box", LAYER)
        fake.inject("token", silent(0.2))
        client = mine(quick)
        await asyncio.gather(client.resolve(reference), fetched(client, reference, described(LAYER)))
    auth = spans.one("registry.auth")
    assert (attribute(auth, "server.address"), attribute(auth, "splitd.registry.host")) == (fake.host, fake.host)
    assert milliseconds(auth) >= 199
    assert all(spans.linked(each) == [auth] for each in spans.named("wait.lock") if each.links)
    assert any(each.links for each in spans.named("wait.lock"))
    assert {said(each, "error.type") for each in spans.named("registry.request")} == {None}
    assert not failed(spans)


async def test_a_token_that_is_refused(spans: Spans, quick: Registry) -> None:
    """Then the operation has failed."""
    async with FakeRegistry(auth=Auth(user="me", password="other")) as fake:
        reference = fake.add(small_image(), "box:1")
        with pytest.raises(errors.Unauthenticated):
            await mine(quick).resolve(reference)
    assert attribute(spans.named("registry.auth")[0], "error.type") == "401"
    assert failed(spans) == ["registry.resolve"]


async def test_a_dead_mirror(spans: Spans, tmp_path: Path) -> None:
    """It was tried first, and what that cost is the length of its request. The pull is no error."""
    mirror = f"http://127.0.0.1:{await dead_port()}"
    async with FakeRegistry() as origin:
        origin.add(small_image(), "box:1")
        async with Registry(through_mirror(tmp_path, mirror, origin.url), timeouts=QUICK, retry=HASTY) as registry:
            await registry.client().resolve("images.test/box:1")
            await registry.client().resolve("images.test/box:1")
    first, *others = spans.named("registry.request")
    assert (attribute(first, "server.address"), attribute(first, "splitd.registry.mirror")) == (mirror[7:], True)
    assert attribute(first, "error.type") == "connect"
    assert [attribute(each, "splitd.registry.mirror") for each in others] == [False, False]
    one, other = spans.named("registry.resolve")
    assert str(attribute(one, "splitd.registry.failures")).startswith(f"{mirror[7:]}: no connection")
    assert str(attribute(other, "splitd.registry.resting")).startswith(f"{mirror[7:]}: dead for ")
    assert not failed(spans)


async def test_a_slow_first_byte(spans: Spans, quick: Registry) -> None:
    """The time is that of the phase, below the request."""
    async with FakeRegistry() as fake:
        fake.add_blob("box", LAYER)
        fake.inject("blob", silent(0.3))
        await fetched(plain(quick), f"{fake.host}/box:1", described(LAYER))
    waited = spans.one("registry.first_byte")
    assert milliseconds(waited) >= 299
    assert spans.parent(waited) is spans.one("registry.request")


async def test_throttled_bytes(spans: Spans, quick: Registry) -> None:
    """The transfer has the bytes, the rate, and the time in which none came; the fetch has the same."""
    rate = 4 << 20
    async with FakeRegistry() as fake:
        fake.add_blob("box", LAYER)
        fake.inject("blob", slow(rate, piece=1 << 16))
        await fetched(plain(quick), f"{fake.host}/box:1", described(LAYER))
    transfer, fetch = spans.one("registry.transfer"), spans.one("registry.fetch")
    assert spans.parent(transfer) is spans.one("registry.request")
    assert (attribute(transfer, "splitd.bytes"), attribute(fetch, "splitd.bytes")) == (len(LAYER), len(LAYER))
    # the last piece is followed by a pause that nobody waits for
    least = 15 / 16 * len(LAYER) / rate * 1000
    assert milliseconds(transfer) >= 0.99 * least
    assert float(str(attribute(transfer, "splitd.rate"))) <= 16 / 15 * rate * 1.02
    assert float(str(attribute(fetch, "splitd.bytes_ms"))) >= 0.9 * least


async def test_a_host_without_parts(spans: Spans, quick: Registry) -> None:
    """A part that it does not serve is no error: the whole blob is asked for."""
    async with FakeRegistry() as fake:
        fake.add_blob("box", LAYER)
        fake.inject("blob", no_ranges(400), times=2)
        client = plain(quick)
        with pytest.raises(NoParts):
            async with client.fetch(f"{fake.host}/box:1", described(LAYER), 1000, 1000, part_only=True):
                pass
    assert attribute(spans.one("registry.fetch"), "splitd.registry.no_parts")
    assert not failed(spans)


async def test_a_refused_head_and_a_missing_manifest(spans: Spans, quick: Registry) -> None:
    """Neither is a failure of a request; that the image is missing is the operation's answer."""
    async with FakeRegistry(head=False) as fake:
        await plain(quick).resolve(fake.add(small_image(), "box:1"))
        with pytest.raises(errors.NotFound):
            await plain(quick).resolve(f"{fake.host}/box:2")
    assert {said(each, "error.type") for each in spans.named("registry.request")} == {None}


@pytest.mark.parametrize("where", ["token", "manifest", "blob"])
@pytest.mark.parametrize("after", [0, 5])
async def test_a_cancelled_pull_leaves_no_span_open(spans: Spans, quick: Registry, where: str, after: int) -> None:
    """Neither before nor within a body: it would be shown as in flight for ever."""
    async with FakeRegistry(auth=Auth(user="me", password="secret", post=404)) as fake:
        reference = fake.add(small_image(), "box:1")
        fake.add_blob("box", LAYER)
        entered, client = asyncio.Event(), mine(quick)

        async def stuck(request: web.Request, serve: Serve) -> web.StreamResponse:
            entered.set()
            return await silent(60, after)(request, serve)

        fake.inject(where, stuck if where == "token" else authorized(stuck), times=9, method="GET")

        async def pulled() -> None:
            await client.manifest(reference, await client.resolve(reference))
            await fetched(client, reference, described(LAYER))

        pulling = asyncio.ensure_future(pulled())
        await entered.wait()
        if after:
            await eventually_async(
                lambda: asyncio.sleep(0, any("http.response.status_code" in each.attributes for each in state.open)),
                "the head of the answer does not come",
            )
        pulling.cancel()
        await asyncio.wait((pulling,))
    assert not state.open
    assert not failed(spans)


async def test_a_request_that_aiohttp_repeats(spans: Spans, quick: Registry) -> None:
    """A connection that was idle turns out to be closed, and the request is sent again on another one: each phase ends,
    and the request is one.
    """
    async with FakeRegistry() as fake:
        fake.add_blob("box", LAYER)
        reference, client = f"{fake.host}/box:1", plain(quick)
        await fetched(client, reference, described(LAYER))
        fake.inject("blob", hang_up())
        assert (await fetched(client, reference, described(LAYER)))[0] == LAYER
    assert len(fake.seen) == 3
    assert not state.open
    _, second = spans.named("registry.request")
    assert said(second, "error.type") is None
    assert len([each for each in spans.named("registry.first_byte") if spans.parent(each) is second]) == 2


# ---------------------------------------------------------------------------------------------- what registries see


async def test_the_registrys_name_of_a_request(spans: Spans, quick: Registry) -> None:
    """It is on the span, and in the error."""
    async with FakeRegistry() as fake:
        reference = fake.add(small_image(), "box:1")
        fake.inject("manifest", status(403, x_amz_request_id="F00D"), times=2)
        with pytest.raises(errors.PermissionDenied, match=r"403 Forbidden: .*injected \(request id F00D\)"):
            await plain(quick).resolve(reference)
    assert {attribute(each, "splitd.registry.request_id") for each in spans.named("registry.request")} == {"F00D"}


@pytest.mark.parametrize("how", ["hosts.toml", "config", "neither"])
async def test_trace_context_goes_to_hosts_that_are_named(
    how: str, spans: Spans, tmp_path: Path, other: FakeRegistry
) -> None:
    """As hosts.toml or the config says; never to the target of a redirect."""
    async with FakeRegistry() as mirror:
        for each in (mirror, other):
            each.add(small_image(), "box:1")
            each.add_blob("box", LAYER)
        mirror.inject("blob", redirect(f"{other.url}/"))
        hosts = through_mirror(tmp_path, mirror.url, other.url, "traceparent = true" if how == "hosts.toml" else "")
        if how == "config":
            hosts = Hosts(hosts.directories, traceparent=frozenset({mirror.host}))
        async with Registry(hosts, timeouts=QUICK, retry=HASTY) as registry:
            with tracing.span("a pull") as pull:
                await registry.client().resolve("images.test/box:1")
                await fetched(registry.client(), "images.test/box:1", described(LAYER))
    trace = pull.ref().partition("-")[0]
    ours = [each.headers.get("traceparent", "") for each in mirror.seen]
    requests = [each.context for each in spans.named("registry.request") if said(each, "server.address") == mirror.host]
    if how == "neither":
        assert set(ours) == {""}
    else:
        assert [each[:53] for each in ours] == [f"00-{trace}-{each.span_id:016x}-" for each in requests if each]
    assert other.seen
    assert not any("traceparent" in each.headers for each in other.seen)


@pytest.fixture
def counting() -> Iterator[None]:
    """Metrics are counted."""
    metrics.begin()
    yield
    metrics.end()


def with_user(text: str) -> str:
    """A URL with a name and a secret before its host."""
    return text.replace("://", "://somebody:hush@")


@pytest.mark.parametrize("ends", [False, True])
async def test_no_secret_of_an_address_is_told(spans: Spans, counting: None, tmp_path: Path, ends: bool) -> None:
    """Neither what is before the host, nor a presigned URL's query: not of a configured mirror, nor of the addresses
    that registries send: in no span, error or word for the user.
    """
    board = waits.Board()
    words: list[str] = []

    async def look() -> None:
        while True:
            if (told := board.told(0.0)) is not None:
                words.append(f"{told.words} {told.host}")
            await asyncio.sleep(0.001)

    said, auth = "", Auth(user="somebody", password="hush")
    async with FakeRegistry() as store, FakeRegistry(auth=auth) as origin, FakeRegistry() as mirror:
        auth.realm = with_user(f"{origin.url}/token")
        store.add_blob("box", LAYER)
        origin.add_blob("box", LAYER)
        mirror.inject("blob", status(503, Retry_After="0"))
        store.inject("blob", status(403) if ends else silent(0.05), times=20)
        place = f"{store.url}/v2/box/blobs/{described(LAYER).digest}?X-Amz-Signature=hush"
        origin.inject("blob", authorized(redirect(with_user(place))), times=20)
        hosts = through_mirror(tmp_path, with_user(mirror.url), origin.url)
        async with Registry(hosts, timeouts=QUICK, retry=HASTY) as registry, loops.running("the look", look):
            with board.active():
                try:
                    await fetched(registry.client(), "images.test/box:1", described(LAYER))
                except errors.NodeError as error:
                    said = str(error)
    assert ends is bool(said)
    assert "hush" not in said
    assert words
    assert not [each for each in words if "hush" in each]
    leaks = {
        f"{each.name} {name}"
        for each in spans.all()
        for name, value in (each.attributes or {}).items()
        if "hush" in str(value)
    }
    assert not leaks
    assert not [event for each in spans.all() for event in each.events if "hush" in str(event.attributes)]
    assert not [family.name for family in await metrics.collect() if "hush" in str(family)]


@pytest.mark.parametrize(
    ("location", "told"),
    [
        ("https://[::1/x?X-Amz-Signature=hush", "https://[::1/x"),
        ("http://host:99999/x?X-Amz-Signature=hush", "http://host:99999/x"),
        ("ftp://somebody:hush@host/x", "ftp://host/x"),
        ("https://somebody:hush@/x", "https:///x"),
    ],
)
@pytest.mark.parametrize("of", ["blob", "token"])
async def test_what_is_no_address_is_told_without_its_secrets(
    spans: Spans, quick: Registry, location: str, told: str, of: str
) -> None:
    """A redirect, or a token server, that a registry names wrongly."""
    async with FakeRegistry(auth=Auth(realm=location) if of == "token" else None) as fake:
        fake.add_blob("box", LAYER)
        fake.inject("blob", authorized(redirect(location)), times=20)
        with pytest.raises(errors.NodeError, match=re.escape(f'"{told}" is not an address')) as caught:
            await fetched(plain(quick), f"{fake.host}/box:1", described(LAYER))
    assert "hush" not in str(caught.value)
    assert not [each.name for each in spans.all() if "hush" in f"{each.attributes} {each.status.description}"]
