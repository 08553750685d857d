"""The parts of the registry client that need no registry: challenges, failures, memory of hosts, proxies."""

from __future__ import annotations

import asyncio
import re

import pytest

from services.images.documents import manifests
from services.images.registry import failure, host_memory
from services.images.registry.challenge import Challenge, parse
from services.images.registry.failover import Failover
from services.images.registry.failure import Blame, Failure, combined, explanation, retry_after
from services.images.registry.host import same_host
from services.images.registry.host_memory import HostMemory
from services.images.registry.proxy import proxy_for
from services.images.registry_timeouts import Retry
from services.kit import errors, gojson
from services.oci import media_types

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        (
            ['Bearer realm="https://auth.test/token",service="registry.test",scope="repository:a/b:pull,push"'],
            [
                Challenge(
                    "bearer",
                    {
                        "realm": "https://auth.test/token",
                        "service": "registry.test",
                        "scope": "repository:a/b:pull,push",
                    },
                )
            ],
        ),
        (
            ['Basic realm="x"', "Bearer realm=https://auth.test/token , service = registry.test"],
            [
                Challenge("bearer", {"realm": "https://auth.test/token", "service": "registry.test"}),
                Challenge("basic", {"realm": "x"}),
            ],
        ),
        (
            ['Negotiate, Basic realm="a \\"b\\" \\\\", BEARER Realm="r"'],
            [Challenge("bearer", {"realm": "r"}), Challenge("basic", {"realm": 'a "b" \\'})],
        ),
        (["Basic"], [Challenge("basic", {})]),
        (['Bearer realm="unclosed'], [Challenge("bearer", {})]),
        (["", ",,,", "= = =", 'Digest realm="x", nonce="y"'], []),
    ],
)
def test_challenges(headers: list[str], found: list[Challenge]) -> None:
    """There may be several in one header or in several headers, quoted or not; a token is preferred to a password."""
    assert parse(headers) == found


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("https://a.test/v2/", "https://a.test:443/x", True),
        ("https://a.test/", "https://b.a.test/", False),
        ("https://a.test/", "https://a.test:8443/", False),
        ("https://a.test/", "http://a.test/", False),
        ("http://a.test/", "https://a.test/", True),
        ("http://a.test:5000/", "https://a.test:5000/", True),
        ("http://a.test:5000/", "https://a.test/", False),
        ("https://A.test/", "https://a.TEST/", True),
        ("https://a.test@evil.test/", "https://a.test/", False),
    ],
)
def test_the_hosts_that_may_get_a_hosts_secrets(one: str, other: str, same: bool) -> None:
    """Scheme, name and port have to be the same, or TLS replaces plain http; never the other way."""
    assert same_host(one, other) is same


def test_retry_after() -> None:
    """Seconds or a date."""
    assert retry_after("120") == 120
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT", now=1445412470.0) == 10
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT", now=1445412490.0) == 0
    assert retry_after("soon") is retry_after("") is retry_after("-1") is retry_after("\u00b2") is None


def test_explanations() -> None:
    """Registries' error messages are shown without line breaks, and cut to a limit."""
    assert (
        explanation(b'{"errors": [{"code": "DENIED", "message": "no\\n access", "detail": {}}]}') == "DENIED: no access"
    )
    assert explanation(b'{"details": "incorrect username or password"}') == "incorrect username or password"
    assert explanation(b'{"error": "invalid_grant"}') == "invalid_grant"
    assert len(explanation(b'{"message": "' + b"x" * 1000 + b'"}')) == 300
    assert [
        explanation(each)
        for each in (
            b"<html>",
            b"[]",
            b"{}",
            b'{"errors": []}',
            b'{"errors": "x"}',
            b"\xff",
            b"[" * 5000,
            b'{"errors":' * 20_000,
        )
    ] == [""] * 8
    assert explanation(b'{"message": "' + b"x" * (1 << 16) + b'"}') == ""
    assert explanation(b'{"Errors":[{"Code":"\\ud800"}],"x":' + b"[" * 5000 + b"]" * 5000 + b"}") == "\ufffd"


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (b'{"schemaVersion":1}', media_types.SCHEMA_1[0]),
        (b'{"MediaType":"a/b"}', "a/b"),
        (b'{"manifests":[]}', media_types.INDEX),
        (b'{"layers":[],"config":{},"x":' + b"[" * 5000 + b"]" * 5000 + b"}", media_types.MANIFEST),
        (b'{"layers":[]}', ""),
    ],
)
def test_the_media_type_in_a_manifest(data: bytes, media_type: str) -> None:
    """It is read however odd it is."""
    assert manifests.media_type_in(data) == media_type


@pytest.mark.parametrize("data", [b"[]", b"[" * 5000, b"\xff", b"", b'{"schemaVersion":"2"}', b'{"mediaType":{}}'])
def test_a_document_that_is_no_manifest_is_malformed(data: bytes) -> None:
    """The error says why."""
    with pytest.raises(gojson.Malformed):
        manifests.media_type_in(data)


@pytest.mark.parametrize(
    ("status", "kind", "transient"),
    [
        (401, errors.Unauthenticated, False),
        (403, errors.PermissionDenied, False),
        (404, errors.NotFound, False),
        (400, errors.Unknown, False),
        (429, errors.ResourceExhausted, True),
        (500, errors.Unavailable, True),
        (503, errors.Unavailable, True),
        (520, errors.Unavailable, True),
        (501, errors.Unimplemented, False),
    ],
)
def test_statuses(status: int, kind: type[errors.NodeError], transient: bool) -> None:
    """The class of error of an answer, and whether a retry is worthwhile."""
    found = failure.answered("h", "GET /x", status, "Reason", {})
    assert (found.kind, found.transient, str(found)) == (kind, transient, f"h: GET /x: {status} Reason")


def test_the_error_of_several_hosts() -> None:
    """Every host is named; the host that came furthest decides the class."""
    away, absent, denied = (
        Failure("a", "no connection"),
        Failure("b", "404", kind=errors.NotFound, status=404),
        Failure("c", "403", kind=errors.PermissionDenied, status=403),
    )
    assert type(combined("x", [away, absent])) is errors.NotFound
    assert type(combined("x", [away])) is errors.Unavailable
    assert type(combined("x", [absent, denied, away])) is errors.PermissionDenied
    assert (
        str(combined("x", [absent, away], ["d: not asked"])) == "x: b: 404; a: no connection; d: not asked: not found"
    )


# ------------------------------------------------------------------------------------------ memory


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_dead_host_rests_longer_each_time() -> None:
    """30 s, then twice that, up to ten minutes; after each rest one request may try."""
    clock = Clock()
    memory = HostMemory(clock)
    for rest in (30, 60, 120, 240, 480, 600, 600):
        memory.failed("http://a", "refused", dead=True)
        assert memory.is_avoided("http://a")
        clock.now += rest - 0.1
        assert memory.is_avoided("http://a")
        clock.now += 0.2
        assert not memory.is_avoided("http://a")
        assert memory.is_avoided("http://a"), "the others wait for what comes of it"
    memory.worked("http://a")
    assert not memory.is_avoided("http://a")
    (state,) = memory.snapshot()
    assert (state.state, state.failures, state.last_error, state.since) == ("good", 0, "refused", clock.now)


def test_requests_that_were_under_way_do_not_lengthen_the_rest() -> None:
    """Eight layers that fail together count as one failure of the host."""
    clock = Clock()
    memory = HostMemory(clock)
    for _ in range(8):
        memory.failed("http://a", "refused", dead=True)
    assert memory.snapshot()[0].rests_until == clock.now + 30


def test_three_bad_moments_are_as_bad_as_dead() -> None:
    """A success in between resets the count."""
    memory = HostMemory(Clock())
    for _ in range(2):
        memory.failed("http://a", "503")
    memory.worked("http://a")
    for _ in range(2):
        memory.failed("http://a", "503")
    assert memory.state("http://a") == host_memory.GOOD
    memory.failed("http://a", "503")
    assert memory.state("http://a") == host_memory.DEAD


def test_throughput() -> None:
    """It is an average that weighs recent values more."""
    memory = HostMemory(Clock())
    memory.measured("http://a", 1000, 1)
    memory.measured("http://a", 3000, 1)
    assert memory.snapshot()[0].throughput == 1600


class Place:
    def __init__(self, name: str) -> None:
        self.name = name
        self.key = f"http://{name}"


async def test_the_order_of_hosts() -> None:
    """Good hosts come in their order, then slow ones, then dead ones. A dead one is left out once the origin has
    answered; the origin is never left out.
    """
    memory = HostMemory(Clock())
    a, b, c = places = [Place(name) for name in "abc"]
    asked: list[str] = []

    async def act(place: Place) -> None:
        asked.append(place.name)
        raise Failure(place.name, "404", kind=errors.NotFound, status=404)

    async def run() -> str:
        asked.clear()
        with pytest.raises(errors.NotFound) as raised:
            await Failover("x", places, memory, Retry(rounds=2, first=0.01)).run(act)  # type: ignore[type-var]
        return "".join(asked) + "|" + str(raised.value)

    assert await run() == "abc|x: a: 404; b: 404; c: 404: not found"
    memory.was_slow(b.key, "slow")
    assert (await run()).startswith("acb|")
    memory.failed(a.key, "refused", dead=True)
    assert re.fullmatch(r"cb\|x: b: 404; c: 404; a: not asked, dead for \d s: refused: not found", await run())
    memory.failed(c.key, "refused", dead=True)
    memory.worked(a.key)
    memory.worked(b.key)
    assert (await run()).startswith("abc|"), "a mirror's 404 is not the origin's"


async def test_a_host_that_asks_for_time_is_not_asked_before() -> None:
    """Another host may be asked at once meanwhile."""
    a, b = places = [Place("a"), Place("b")]
    asked: list[str] = []

    async def act(place: Place) -> str:
        asked.append(place.name)
        if asked.count("b") < 3:
            raise Failure(
                place.name, "429", transient=True, blame=Blame.NOBODY, status=429, wait=5.0 if place is a else None
            )
        return place.name

    async with asyncio.timeout(2):
        assert await Failover("x", places, HostMemory(), Retry(first=0.01)).run(act) == "b"  # type: ignore[type-var]
    assert asked == ["a", "b", "b", "b"]
    assert b.name == "b"


async def test_a_host_that_asks_for_fewer_requests_is_busy_and_not_dead() -> None:
    """Three times 429 in a row shows that it works. Other hosts are asked before it for a while; failures of another
    kind still make it dead, and a success makes it good.
    """
    memory = HostMemory(Clock())
    place = Place("a")

    async def act(place: Place) -> str:
        raise Failure(place.name, "429 Too Many Requests", transient=True, blame=Blame.TROUBLE, status=429)

    with pytest.raises(errors.NodeError):
        await Failover("x", [place], memory, Retry(rounds=host_memory.TROUBLES, first=0.001)).run(act)  # type: ignore[type-var]
    (found,) = memory.snapshot()
    assert (found.state, found.last_error) == ("busy", "429 Too Many Requests")
    assert memory.is_avoided(place.key)
    for _ in range(host_memory.TROUBLES):
        assert memory.state(place.key) == host_memory.BUSY
        memory.failed(place.key, "502 Bad Gateway")
    assert memory.state(place.key) == host_memory.DEAD
    memory.worked(place.key)
    memory.failed(place.key, "429", limited=True)
    assert memory.state(place.key) == host_memory.GOOD


# ------------------------------------------------------------------------------------------ proxies


@pytest.mark.parametrize(
    ("url", "rules", "direct"),
    [
        ("https://quay.io/v2/", "", False),
        ("https://quay.io/v2/", "*", True),
        ("https://quay.io/v2/", "quay.io", True),
        ("https://cdn.quay.io/v2/", "quay.io", True),
        ("https://cdn.quay.io/v2/", ".quay.io", True),
        ("https://notquay.io/", "quay.io", False),
        ("https://quay.io/", "a.test, QUAY.IO", True),
        ("https://quay.io:5000/", "quay.io:5000", True),
        ("https://quay.io:5001/", "quay.io:5000", False),
        ("https://10.1.2.3/", "10.0.0.0/8", True),
        ("https://11.1.2.3/", "10.0.0.0/8", False),
        ("https://[fd00::1]/", "fd00::/8", True),
        ("https://127.0.0.1:5000/", "", True),
        ("https://localhost/", "", True),
    ],
)
def test_no_proxy(url: str, rules: str, direct: bool) -> None:
    """Names, subdomains, networks and ports; loopback never goes through a proxy."""
    assert proxy_for(url, {"HTTPS_PROXY": "proxy.test:3128", "NO_PROXY": rules}) == (
        None if direct else "http://proxy.test:3128"
    )


def test_proxies_by_scheme() -> None:
    """Each scheme has its own variable, in either case."""
    assert proxy_for("http://quay.io/", {"HTTPS_PROXY": "http://p"}) is None
    assert proxy_for("http://quay.io/", {"http_proxy": "http://user:pw@p:1"}) == "http://user:pw@p:1"
