"""What a node tells its peers of its latest pulls, and what `splitd fleet trace` makes of that."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from deploy.fleet import trace
from services.fleet.arriving import Arriving
from services.fleet.peer_server import PeerServer, tls
from services.fleet.pulls_remote import MOST, Pulls
from services.fleet.upload_limit import UploadLimit
from services.kit import errors, http_server, rpc
from services.kit.addresses import Address
from services.kit.certificates import Certificates
from services.traces.live import OpenSpans
from services.traces.memory import MemoryStore
from services.traces.server import TracesServicer
from services.traces.store import Span
from tests.fake_registry import Authority
from tests.fleet import client
from tests.suites.traces import SECOND, span
from tests.support import short_directory

pytestmark = pytest.mark.once

BOX = "docker.io/library/box:1"


def root(
    image: str = BOX, *, namespace: str = "default", seconds: int = 4, ago: int = 10, more: Mapping[str, Any] = {}
) -> Span:
    """A pull's root span."""
    start = time.time_ns() - ago * SECOND
    attributes = {
        "splitd.operation": "pull",
        "splitd.namespace": namespace,
        "container.image.name": image,
        "splitd.outcome": "ok",
        "splitd.bytes": 1000,
        **more,
    }
    return span(name="Transfer", start=start, end=start + seconds * SECOND, attributes=attributes)


@pytest.fixture
def directory() -> Iterator[Path]:
    with short_directory() as place:
        yield place


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def pulls(store: MemoryStore, directory: Path) -> AsyncIterator[Pulls]:
    socket = directory / "traces.sock"
    async with rpc.serving(socket, [TracesServicer(store, OpenSpans())]), rpc.Channel(socket, "traces") as channel:
        yield Pulls(channel, ["default", "more"])


async def test_the_latest_pulls_of_shared_namespaces(pulls: Pulls, store: MemoryStore) -> None:
    """Each with where its time went; other operations and namespaces are not told. What waits were for is not, too."""
    pull = root(more={"splitd.bytes.peers": 250})
    other = root("secret.example/private:1", namespace="private", seconds=9)
    fetch = span(
        pull.trace,
        parent=pull.id,
        name="registry.fetch",
        start=pull.start,
        end=pull.start + 3 * SECOND,
        attributes={"server.address": "peer b", "splitd.peer": "b", "splitd.bytes": 1000},
    )
    run = root("x", more={"splitd.operation": "run"})
    await store.add([pull, fetch, other, run, root("failed", namespace="more", more={"splitd.outcome": "failed"})])
    data = await pulls.document()
    assert b"secret" not in data
    first, second = sorted(trace.read("a", data), key=lambda each: each.image)
    assert (first.node, first.trace, first.image, first.namespace) == ("a", pull.trace, BOX, "default")
    assert (first.seconds, first.bytes, first.peers, first.outcome) == (4.0, 1000, 250, "ok")
    assert 10 <= first.ago < 60
    assert sum(seconds for _, seconds, _ in first.causes) == pytest.approx(4)
    assert first.sentence.startswith("4.0 of 4.0 s: ")
    assert second.outcome == "failed"


async def test_they_are_bounded_and_not_worked_out_again(pulls: Pulls, store: MemoryStore) -> None:
    """So many of a namespace are told, and an answer is given again for a moment."""
    await store.add([root(f"x:{number}", ago=100 - number) for number in range(MOST + 5)])
    found = trace.read("a", await pulls.document())
    assert [each.image for each in found] == [f"x:{number}" for number in reversed(range(5, MOST + 5))]
    await store.add([root("new:1")])
    assert trace.read("a", await pulls.document()) == found


async def test_peers_get_it_over_mtls(pulls: Pulls, store: MemoryStore, tmp_path: Path) -> None:
    """As blobs. Without a traces service the answer is 503."""
    await store.add([root()])
    authority = Authority(tmp_path / "authority")
    certificate = authority.issue("a")
    files = Address(
        address="127.0.0.1:1", ca=str(authority.certificate), cert=str(certificate[0]), key=str(certificate[1])
    )
    known = [pulls.document]

    async def document() -> bytes:
        return await known[0]()

    async def away() -> bytes:
        raise errors.Unavailable("the traces service")

    server = PeerServer({}, Arriving(), UploadLimit(), pulls=document)
    stranger = ssl.create_default_context(cafile=authority.certificate)
    async with http_server.serving("127.0.0.1:0", server.answer, tls=tls(Certificates(files)), grace=0.1) as serving:
        url = f"https://{serving.address}/v2/pulls"
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=client(authority, certificate))) as session,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=stranger)) as other,
        ):
            async with session.get(url) as answer:
                assert [each.image for each in trace.read("a", await answer.read())] == [BOX]
            known[0] = away
            async with session.get(url) as answer:
                assert (answer.status, await answer.text()) == (503, "503 Service Unavailable: the traces are away\n")
            with pytest.raises(aiohttp.ClientError):
                async with other.get(url) as answer:
                    await answer.read()


@pytest.mark.parametrize(
    "data", [b"", b"[", b"[]", b"7", b'{"v":2}', b'{"v":1}', b"[" * 100_000, b"\xff", b'{"pulls":[]}']
)
def test_an_answer_that_is_none(data: bytes) -> None:
    """It is refused in words; an answer of a later version has nothing that is understood."""
    try:
        assert trace.read("a", data) == []
    except errors.Unavailable as error:
        assert str(error) == "its answer makes no sense"


def test_an_answer_whose_parts_make_no_sense() -> None:
    """What is no text is empty, what is no number is 0."""
    said = {
        "v": 1,
        "now": "x",
        "pulls": [7, {"image": 5, "seconds": -1, "bytes": 1 << 70, "causes": [3, {"kind": "\ud800"}]}],
    }
    (found,) = trace.read("a", json.dumps(said).encode())
    assert (found.image, found.seconds, found.bytes, found.causes) == ("", 0.0, 0, (("?", 0.0, ""),))
    assert trace.read("a", b'{"v":1,"now":1,"pulls":[{"seconds":NaN,"start":1e400}]}')[0].seconds == 0.0


def test_what_people_read(capsys: pytest.CaptureFixture[str]) -> None:
    """A row for each pull, and the sentence of the slowest."""
    pulls = [
        {
            "trace": "ab" * 16,
            "image": BOX,
            "outcome": "ok",
            "start": 0,
            "seconds": 8.0,
            "bytes": 4096,
            "peers": 1024,
            "sentence": "it took 8.0 s",
            "causes": [
                {"kind": "disk", "seconds": 2.0},
                {"kind": "peer", "seconds": 5.0},
                {"kind": "cpu", "seconds": 1.0},
            ],
        }
    ]
    trace._show(trace.read("node1", json.dumps({"v": 1, "now": 90 * SECOND, "pulls": pulls}).encode()))
    _, row, _, sentence, more = capsys.readouterr().out.splitlines()
    assert row.split() == [
        *("node1", "abababababab", "90", "seconds", "ago", "8.00", "s", "ok", "4.0", "KiB", "25%"),
        *("peer", "62%,", "disk", "25%", BOX),
    ]
    assert sentence == "The slowest, on node1: it took 8.0 s."
    assert more == "(splitd trace show abababababab, on that node, shows more)"
