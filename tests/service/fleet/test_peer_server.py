"""A node's blobs as its peers get them, over HTTPS with certificates on both sides."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from unittest.mock import ANY

import aiohttp
import pytest

from services.fleet.arriving import MOST, Arriving
from services.fleet.peer_server import ARRIVING
from services.kit import errors
from services.oci.digests import Digest, digest_of
from tests.fake_registry import Authority
from tests.fleet import PeerNode, client, peer_node
from tests.support import eventually_async

pytestmark = pytest.mark.once

DATA = os.urandom(3_000_000)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
async def node(tmp_path: Path, authority: Authority) -> AsyncIterator[PeerNode]:
    async with peer_node(tmp_path / "node", authority) as node:
        yield node


Answer = tuple[int, dict[str, str], bytes]


class Peer:
    """Another node."""

    def __init__(self, node: PeerNode, session: aiohttp.ClientSession) -> None:
        self._url = f"https://{node.address}"
        self._session = session

    async def get(self, path: str | Digest, wanted: str = "", method: str = "GET") -> Answer:
        url = f"{self._url}{f'/v2/blobs/{path}' if isinstance(path, Digest) else path}"
        async with self._session.request(method, url, headers={"Range": wanted} if wanted else {}) as answer:
            return answer.status, dict(answer.headers), await answer.read()


@contextlib.asynccontextmanager
async def peer_of(node: PeerNode, context: ssl.SSLContext) -> AsyncIterator[Peer]:
    connector = aiohttp.TCPConnector(ssl=context)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=20)) as session:
        yield Peer(node, session)


@pytest.fixture
async def peer(node: PeerNode, authority: Authority) -> AsyncIterator[Peer]:
    async with peer_of(node, client(authority, node.certificate)) as peer:
        yield peer


async def test_a_blob_and_its_ranges(node: PeerNode, peer: Peer) -> None:
    """As in RFC 9110: a range that makes no sense does not count, one beyond the end is refused."""
    digest = await node.put(DATA)
    size = len(DATA)
    for wanted, start, end in (
        ("bytes=0-9", 0, 10),
        ("bytes=1000000-2999999", 1_000_000, size),
        ("bytes=2999999-9999999", size - 1, size),
        ("bytes=5-", 5, size),
        ("bytes=-7", size - 7, size),
    ):
        status, headers, body = await peer.get(digest, wanted)
        assert (status, body) == (206, DATA[start:end])
        assert headers["Content-Range"] == f"bytes {start}-{end - 1}/{size}"
    for wanted in ("", "bytes=9-5", "bytes=-", "bytes=1-2,4-5", "lines=1-2", "bytes=0-", "bytes=-9999999"):
        status, headers, body = await peer.get(digest, wanted)
        assert (status, body) == (200, DATA)
        assert "Content-Range" not in headers and ARRIVING not in headers
    for wanted in ("bytes=3000000-", "bytes=9000000-9000001", "bytes=-0"):
        status, headers, _ = await peer.get(digest, wanted)
        assert (status, headers["Content-Range"]) == (416, f"bytes */{size}")
    status, headers, body = await peer.get(digest, "bytes=0-9", method="HEAD")
    assert (status, headers["Content-Length"], body) == (206, "10", b"")


async def test_no_other_path_and_nothing_of_the_node_in_an_error(node: PeerNode, peer: Peer, tmp_path: Path) -> None:
    """What is not a blob of a shared namespace does not exist, and the answer names nothing of the node."""
    digest = await node.put(DATA)
    unknown = Digest.parse(digest_of(b"unknown"))
    for path in (
        unknown,
        "/",
        "/v2/",
        "/v2/blobs/",
        f"/v2/blobs/{digest}/",
        f"/v2/blobs/{digest}?x=1",
        f"/v2/x/blobs/{digest}",
        "/v2/blobs/sha256:../../store-id",
        "/v2/blobs/md5:00000000000000000000000000000000",
        "/v2/blobs/sha256:00",
        "/metrics",
    ):
        status, _, body = await peer.get(path)
        assert status == 404
        assert str(tmp_path).encode() not in body and b"default" not in body
    status, _, body = await peer.get(digest, method="POST")
    assert (status, str(tmp_path).encode() in body) == (405, False)


async def test_a_blob_whose_file_was_cut_is_not_served(node: PeerNode, peer: Peer, tmp_path: Path) -> None:
    """It is damaged, so for a peer it is not there."""
    digest = await node.put(DATA)
    assert (await peer.get(digest))[0] == 200
    file = tmp_path / "node/blobs/sha256" / digest.hex
    file.unlink()
    file.symlink_to("/etc/passwd")
    assert (await peer.get(digest))[0] == 503
    file.unlink()
    assert (await peer.get(digest))[0] == 404


async def test_a_blob_arrives_at_two_nodes_at_once(node: PeerNode, peer: Peer, tmp_path: Path) -> None:
    """A reader gets what is there, and what comes while it reads; its answer says that it is not verified."""
    digest, file = Digest.parse(digest_of(DATA)), tmp_path / "data"
    file.touch()
    part = node.arriving.begin(digest, str(file), len(DATA))
    reading = asyncio.ensure_future(peer.get(digest, "bytes=1000-"))
    for have in (900, 5000, 1_000_000, 2_000_000, len(DATA)):
        with file.open("ab") as output:
            output.write(DATA[output.tell() : have])
        part.grown(have)
        await asyncio.sleep(0)
    status, headers, body = await reading
    assert (status, body) == (206, DATA[1000:])
    assert int(headers[ARRIVING]) > 1000
    node.arriving.end(digest)
    assert (await peer.get(digest))[0] == 404


async def test_a_fetch_that_stands_still_or_ends_ends_its_readers(node: PeerNode, peer: Peer, tmp_path: Path) -> None:
    """They can ask elsewhere at once: before the head by a 503, after it by the end of the connection. So it is if the
    fetch begins again, since its bytes may have been wrong.
    """
    digest, file = Digest.parse(digest_of(DATA)), tmp_path / "data"
    file.write_bytes(DATA[:100_000])
    part = node.arriving.begin(digest, str(file), len(DATA))
    assert (await peer.get(digest))[0] == 503, "nothing has come for a while"
    part.grown(100_000)
    assert await peer.get(digest, "bytes=0-99999") == (206, ANY, DATA[:100_000])
    with pytest.raises(aiohttp.ClientPayloadError):
        await peer.get(digest)
    assert (await peer.get(digest, "bytes=100000-"))[0] == 503
    reading = asyncio.ensure_future(peer.get(digest))
    await eventually_async(lambda: _is(node.peers.sent >= 300_000))
    part.grown(0)
    with pytest.raises(aiohttp.ClientPayloadError):
        await reading
    assert (await peer.get(digest))[0] == 404
    node.arriving.end(digest)


async def test_a_reader_learns_that_the_fetch_is_alive(tmp_path: Path, authority: Authority) -> None:
    """Though none of its bytes come, as while others have its turn. It may ask again, until no sign of life comes."""
    async with (
        peer_node(tmp_path / "node", authority, silence=2.0, wait=0.1) as node,
        peer_of(node, client(authority, node.certificate)) as peer,
    ):
        digest, file = Digest.parse(digest_of(DATA)), tmp_path / "data"
        file.write_bytes(DATA)
        part = node.arriving.begin(digest, str(file), len(DATA))
        signs = 0

        async def asked() -> bool:
            nonlocal signs
            part.grown(5, signs := signs + 1)
            status, headers, _ = await peer.get(digest, "bytes=5-")
            assert (status, headers[ARRIVING], headers["Retry-After"]) == (503, "5", "0")
            return signs == 10

        await eventually_async(asked)

        async def silent() -> bool:
            status, headers, _ = await peer.get(digest, "bytes=5-")
            return status == 503 and ARRIVING not in headers and headers["Retry-After"] == "5"

        await eventually_async(silent)
        part.grown(len(DATA))
        assert (await peer.get(digest, "bytes=5-"))[2] == DATA[5:]
        node.arriving.end(digest)


async def test_a_blob_that_is_about_to_arrive_is_waited_for(tmp_path: Path, authority: Authority) -> None:
    """The others learn that a node is to fetch a blob before its own process does."""
    async with (
        peer_node(tmp_path / "node", authority, wait=0.2) as node,
        peer_of(node, client(authority, node.certificate)) as peer,
    ):
        digest, file = Digest.parse(digest_of(DATA)), tmp_path / "data"
        file.write_bytes(DATA)
        with node.arriving.expected(digest), node.arriving.expected(digest):
            status, headers, _ = await peer.get(digest)
            assert (status, headers[ARRIVING]) == (503, "0")
            reading = asyncio.ensure_future(peer.get(digest))
            await asyncio.sleep(0)
            node.arriving.begin(digest, str(file), len(DATA)).grown(len(DATA))
            status, _, body = await reading
            while status == 503:  # it was asked before, on a machine that is slow
                status, _, body = await peer.get(digest)
            assert body == DATA
            node.arriving.end(digest)
        assert not node.arriving.expects(str(digest))
        assert (await peer.get(digest))[0] == 404


async def _is(fact: bool) -> bool:
    return fact


async def test_what_is_arriving_is_bounded_and_checked(tmp_path: Path) -> None:
    """One fetch of a blob, a regular file, and no more of them than a node can fetch."""
    arriving, file = Arriving(), tmp_path / "data"
    file.touch()
    (tmp_path / "link").symlink_to(file)
    os.mkfifo(tmp_path / "pipe")
    digest = Digest.parse(digest_of(b"x"))
    for path in ("", "\0", str(tmp_path), str(tmp_path / "no"), str(tmp_path / "link"), str(tmp_path / "pipe")):
        with pytest.raises(errors.InvalidArgument):
            arriving.begin(digest, path, 1)
    with pytest.raises(errors.InvalidArgument, match="invalid size"):
        arriving.begin(digest, str(file), 0)
    arriving.begin(digest, str(file), 1)
    with pytest.raises(errors.AlreadyExists):
        arriving.begin(digest, str(file), 1)
    others = [Digest.parse(digest_of(str(number).encode())) for number in range(MOST)]
    for each in others[:-1]:
        arriving.begin(each, str(file), 1)
    with pytest.raises(errors.ResourceExhausted):
        arriving.begin(others[-1], str(file), 1)
    before = len(os.listdir("/proc/self/fd"))
    for each in (digest, *others):
        arriving.end(each)
    assert len(os.listdir("/proc/self/fd")) == before - MOST


async def test_all_readers_together_keep_to_the_limit(tmp_path: Path, authority: Authority) -> None:
    """3 MB at 6 MB/s take half a second for one reader as for three; who comes when much is waiting is refused."""
    async with (
        peer_node(tmp_path / "node", authority, rate=6e6) as node,
        peer_of(node, client(authority, node.certificate)) as peer,
    ):
        digest = await node.put(DATA)
        begun = time.monotonic()
        answers = await asyncio.gather(*(peer.get(digest, f"bytes={at}000000-{at}999999") for at in range(3)))
        took = time.monotonic() - begun
        assert b"".join(body for _, _, body in answers) == DATA
        assert took >= 0.4
        node.peers._upload._free = node.peers._upload._clock() + 60
        status, headers, _ = await peer.get(digest)
        assert (status, headers["Retry-After"]) == (503, "5")


async def test_only_the_fleets_certificates_count_and_they_may_be_replaced(
    tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    """A client of another authority is refused. After the files are replaced, new connections use the new ones; after
    a mistake, those from before, and the log says so.
    """
    other = Authority(tmp_path / "other")
    mine = Authority(tmp_path / "mine")
    async with peer_node(tmp_path / "node", mine) as node:
        digest = await node.put(DATA)

        async def status(of: Authority, who: Authority) -> int:
            context = ssl.create_default_context(cafile=of.certificate)
            context.load_cert_chain(*who.issue("reader"))
            async with peer_of(node, context) as peer:
                return (await peer.get(digest, "bytes=0-0"))[0]

        assert await status(mine, mine) == 206
        with pytest.raises(aiohttp.ClientError):
            await status(mine, other)
        node.certificate[0].write_text("nothing")
        assert await status(mine, mine) == 206
        assert f"peers are served with the certificates from before: cert {node.certificate[0]}" in caplog.text
        shutil.copy(other.certificate, mine.certificate)
        for target, source in zip(node.certificate, other.issue("n"), strict=True):
            shutil.copy(source, target)
        assert await status(other, other) == 206
