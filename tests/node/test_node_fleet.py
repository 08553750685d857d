"""A node in a fleet: a second node beside it gives it blobs and gets some, the fleet wants pulls of it and has its images,
containers and traces, etcd goes away and comes back, and the configuration changes while the node is up.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from deploy.processes import NAMES
from deploy.samples import Image
from services.etcd.client import connect
from services.etcd.config import EtcdConfig
from services.etcd.store import Etcd
from services.fleet.local import FleetNode
from services.fleet.store import Image as FleetImage
from services.fleet.store import Target
from services.kit import loops
from services.kit.rpc import Channel
from tests import fake_registry
from tests.etcd_servers import DEBIAN, Cluster, etcd
from tests.fake_registry import Authority, FakeRegistry
from tests.fleet import PeerNode, client, peer_node
from tests.pulls import Client, config_of, made
from tests.support import TOP, Node, eventually, eventually_async, short_directory

pytestmark = [pytest.mark.node, pytest.mark.root, pytest.mark.timeout(240)]

PREFIX = "/splitd/fleet"


@dataclass
class Member:
    """The node ``a``, the etcd of its fleet, and where it gives blobs."""

    node: Node
    cluster: Cluster
    authority: Authority
    address: str
    config: str

    async def fleet(self, *words: str, ok: bool | None = True) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(self.node.splitd, "fleet", *words, ok=ok)

    async def listed(self, *words: str) -> list[dict[str, object]]:
        found: list[dict[str, object]] = json.loads((await self.fleet(*words, "--json")).stdout)
        return found


@pytest.fixture(scope="module")
def member() -> Iterator[Member]:
    with short_directory() as place, etcd(DEBIAN) as cluster:
        authority = Authority(place / "authority")
        cert, key = authority.issue("a")
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{taken.getsockname()[1]}"
        config = f"""
[fleet]
name = "a"
listen = "{address}"
ca = "{authority.certificate}"
cert = "{cert}"
key = "{key}"

[fleet.etcd]
endpoints = ["{cluster.endpoints[0]}"]
"""
        node = Node(place, config=config)
        node.up()
        try:
            yield Member(node, cluster, authority, address, config)
        finally:
            print((node.root / "log/fleet.log").read_text())
            node.down()


@pytest.fixture
async def channel(member: Member) -> AsyncIterator[Channel]:
    async with Channel(member.node.socket) as channel:
        yield channel


@pytest.fixture
async def keys(member: Member) -> AsyncIterator[Etcd]:
    """The fleet's etcd."""
    found = connect(EtcdConfig(endpoints=member.cluster.endpoints))
    yield found
    await found.close()


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as running:
        yield running


@pytest.fixture
async def other(keys: Etcd) -> AsyncIterator[FleetNode]:
    """Another node of the fleet, ``b``, that pulls nothing."""
    node = FleetNode(keys, PREFIX, "b", "", ["default"])
    async with loops.running("the fleet", node.keep):
        await eventually_async(lambda: asyncio.sleep(0, not node.trouble), node.trouble)
        yield node


@contextlib.asynccontextmanager
async def beside(member: Member, keys: Etcd, place: Path) -> AsyncIterator[tuple[PeerNode, FleetNode]]:
    """Another node of the fleet, ``b``."""
    async with peer_node(place / "b", member.authority, name="b") as peer:
        fleet = FleetNode(keys, PREFIX, "b", peer.address, ["default"])
        fleet.arriving = peer.arriving
        async with loops.running("the fleet", fleet.keep):
            await eventually_async(lambda: asyncio.sleep(0, not fleet.trouble), fleet.trouble)
            yield peer, fleet


async def told(keys: Etcd, digest: str, node: str) -> bool:
    return await keys.get(f"{PREFIX}/has/{digest}/{node}".encode()) is not None


async def gets(member: Member, certificate: tuple[Path, Path], digest: str) -> tuple[int, bytes]:
    """What another node gets of a blob of this one."""
    connector = aiohttp.TCPConnector(ssl=client(member.authority, certificate))
    async with (
        aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=20)) as session,
        session.get(f"https://{member.address}/v2/blobs/{digest}") as answer,
    ):
        return answer.status, await answer.read()


def blobs(box: Image) -> dict[str, int]:
    return {digest: len(data) for digest, data in box.blobs.items()}


async def status(member: Member) -> tuple[int, str]:
    done = await asyncio.to_thread(member.node.splitd, "status", ok=None)
    return done.returncode, done.stdout


async def test_blobs_come_from_another_node_and_go_to_it(
    member: Member, channel: Channel, keys: Etcd, registry: FakeRegistry, tmp_path: Path
) -> None:
    """A pull takes from the other node what it has. What the node has then is told, given, and no more told once it is
    gone.
    """
    box = made(2, 1500)
    reference = registry.add(box, "box:1")
    async with beside(member, keys, tmp_path) as (peer, fleet):
        for data in box.blobs.values():
            await peer.put(data)
        fleet.blobs(blobs(box))
        await eventually_async(lambda: told(keys, box.digest, "b"))
        puller = Client(channel, "default")
        await puller.pull(reference, unpack=False)
        assert registry.asked("GET", "blobs/") == []
        assert peer.peers.sent >= 3_000_000
        for digest, data in box.blobs.items():
            await eventually_async(lambda digest=digest: told(keys, digest, "a"), f"{digest} is not told")  # type: ignore[misc]
            assert await gets(member, peer.certificate, digest) == (200, data)
        found = json.loads((await asyncio.to_thread(member.node.splitd, "fleet", "why", box.digest, "--json")).stdout)
        size = len(box.blobs[box.digest])
        assert found["nodes"] == [
            {"name": "a", "address": member.address, "size": size, "have": size},
            {"name": "b", "address": peer.address, "size": size, "have": size},
        ]
        listed = json.loads((await asyncio.to_thread(member.node.splitd, "fleet", "nodes", "--json")).stdout)
        assert [(each["name"], each["address"]) for each in listed["nodes"]] == [
            ("a", member.address),
            ("b", peer.address),
        ]
        assert (listed["node"], listed["troubles"]) == ("a", [])
        code, said = await status(member)
        assert code == 0
        assert f"fleet: node a gives blobs at {member.address}, tells of " in said
        await asyncio.to_thread(member.node.splitd, "images", "remove", "--sync", reference)
        for digest in box.blobs:
            await eventually_async(lambda digest=digest: _not(told(keys, digest, "a")), f"{digest} is told", 60)  # type: ignore[misc]


async def _not(answer: object) -> bool:
    return not await answer  # type: ignore[misc]


async def test_what_is_not_shared_stays_in_the_node(
    member: Member, channel: Channel, keys: Etcd, registry: FakeRegistry, tmp_path: Path
) -> None:
    """Another namespace's pull asks the registry although a peer has it, etcd learns nothing, and peers get nothing."""
    box = made(1, 1500)
    reference = registry.add(box, "box:1")
    layer = max(box.blobs, key=lambda digest: len(box.blobs[digest]))
    async with beside(member, keys, tmp_path) as (peer, fleet):
        await peer.put(box.blobs[layer])
        fleet.blobs({layer: len(box.blobs[layer])})
        await eventually_async(lambda: told(keys, layer, "b"))
        await Client(channel, "private").pull(reference, unpack=False)
        assert registry.asked("GET", layer)
        assert (peer.peers.sent, await gets(member, peer.certificate, layer)) == (
            0,
            (404, b"404 Not Found: no such blob\n"),
        )
        member.node.ctr("content", "ingest", "seen", stdin=b"seen", text=False)
        await eventually_async(lambda: told(keys, "sha256:" + _sha256(b"seen"), "a"))  # events come in order
        assert not await told(keys, layer, "a")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def test_an_image_is_pulled_and_told(member: Member, registry: FakeRegistry) -> None:
    """Then the fleet knows the image, its containers and the pull."""
    box = made(2, 1500)
    reference = registry.add(box, "box:1")
    done = await member.fleet("pull", reference, "--nodes", "all", "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[-1] == {
        "outcome": "done",
        "image": reference,
        "digests": [box.digest],
        "pulled": ["a"],
        "present": [],
        "failed": {},
    }
    ours = [line for line in lines if line.get("node") == "a"]
    assert ours[0]["state"] == "waiting"
    assert ours[-1] == {
        "node": "a",
        "state": "done",
        "bytes": sum(map(len, box.blobs.values())),
        "total": sum(map(len, box.blobs.values())),
        "digest": box.digest,
    }

    async def told() -> list[dict[str, object]]:
        return [each for each in await member.listed("images") if each["name"] == reference]

    (image,) = await eventually_async(told, "it is not told", 60)
    assert (image["digest"], image["size"]) == (box.digest, len(box.blobs[box.digest]))
    assert [each["name"] for each in image["nodes"]] == ["a"]  # type: ignore[attr-defined]
    again = await member.fleet("pull", reference, "--nodes", "1")
    assert again.stdout.splitlines()[-1].endswith("pulled on 0 nodes; 1 node had an image of this name")
    member.node.ctr("containers", "create", "--snapshotter", "native", reference, "held", "sleep")

    async def held() -> list[dict[str, object]]:
        return [each for each in await member.listed("containers") if each["container"] == "held"]

    (container,) = await eventually_async(held, "it is not told", 60)
    assert (container["node"], container["namespace"], container["image"]) == ("a", "default", reference)

    async def traced() -> list[dict[str, object]]:
        found = json.loads((await member.fleet("trace", "--json")).stdout)
        assert found["troubles"] == {}
        return [each for each in found["pulls"] if each["image"] == reference and each["outcome"] == "ok"]

    pull = (await eventually_async(traced, "no trace comes", 60))[0]
    assert (pull["node"], pull["namespace"]) == ("a", "default")
    assert pull["sentence"]
    member.node.ctr("containers", "delete", "held")
    await eventually_async(lambda: _not(held()), "it is told on", 60)


async def test_errors_are_named_and_ctrl_c_leaves_what_has_begun(member: Member, registry: FakeRegistry) -> None:
    """The error of a pull is the node's own. An interrupted command says what becomes of the rest."""
    failed = await member.fleet("pull", f"{registry.host}/none:1", "--on", "a", ok=False)
    assert failed.returncode == 1
    assert f"a  failed  failed to resolve image: {registry.host}/none:1" in failed.stdout
    box = made(1, 1500)
    reference = registry.add(box, "slow:1")
    registry.inject("blob", held := Held(), times=100)
    here = member.node
    command = subprocess.Popen(
        [sys.executable, "-m", "deploy", "fleet", "pull", reference, "--on", "a", "--json", "--state", str(here.state)],
        cwd=TOP,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        await eventually_async(lambda: asyncio.sleep(0, held.asked), seconds=60)
    finally:
        command.send_signal(signal.SIGINT)
    out, err = await asyncio.to_thread(command.communicate)
    assert command.returncode == 130
    assert "cancelled; nodes that have begun go on, the others were withdrawn" in err
    assert json.loads(out.splitlines()[-1])["outcome"] == "failed"
    held.go.set()

    async def told() -> bool:
        return any(each["name"] == reference for each in await member.listed("images"))

    await eventually_async(told, "the pull did not go on", 60)


class Held:
    """Holds the registry's answers back."""

    def __init__(self) -> None:
        self.asked = False
        self.go = asyncio.Event()

    async def __call__(self, request: object, serve: fake_registry.Serve) -> fake_registry.web.StreamResponse:
        self.asked = True
        await self.go.wait()
        return await serve()


async def test_a_tag_whose_registry_is_away(member: Member, registry: FakeRegistry, other: FleetNode) -> None:
    """It is what the other node has, says who pulls; that gives no bytes here, so the error names the digest."""
    reference = f"127.0.0.1:{registry.port}/gone:1"
    digest = "sha256:" + "5" * 64
    other.tell_images([FleetImage("b", "default", reference, Target(digest, 700), 1)])
    await registry.stop()

    async def told() -> bool:
        return any(each["name"] == reference for each in await member.listed("images", "--node", "b"))

    await eventually_async(told, "it is not told", 60)
    refused = await asyncio.to_thread(member.node.splitd, "pull", "--plain-http", reference, ok=False)
    assert f"; and no node of the fleet gives {digest}" in refused.stderr


async def test_etcd_goes_and_comes_back(member: Member, channel: Channel, registry: FakeRegistry) -> None:
    """Meanwhile the node is healthy, pulls from the registry, and its status says why it is not in the fleet."""
    member.cluster.members[0].kill()
    try:
        box = made(1, 1500)
        await Client(channel, "default").pull(registry.add(box, "away:1"), unpack=False)
        assert registry.asked("GET", f"blobs/{config_of(box)}")

        async def said() -> bool:
            code, text = await status(member)
            assert code == 0
            return "fleet: etcd " in text

        await eventually_async(said, "status does not tell", 60)
        refused = await asyncio.to_thread(member.node.splitd, "fleet", "nodes", ok=False)
        assert member.cluster.endpoints[0] in refused.stderr
        restarted = await asyncio.to_thread(member.node.splitd, "restart", "fleet")
        assert restarted.stdout.startswith("restarted fleet: ")
    finally:
        await asyncio.to_thread(member.cluster.heal)
    await eventually_async(lambda: asyncio.to_thread(_in_the_fleet, member.node), "it does not come back", 60)


def _in_the_fleet(node: Node) -> bool:
    return node.status()["fleet"]["troubles"] == []


async def test_a_fleet_process_that_is_away_or_hangs(member: Member, channel: Channel, registry: FakeRegistry) -> None:
    """Pulls go to the registry; the node is healthy."""
    pid = member.node.pid("fleet")
    os.kill(pid, signal.SIGSTOP)
    try:
        hung = made(1, 1500)
        await Client(channel, "default").pull(registry.add(hung, "hung:1"), unpack=False)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert registry.asked("GET", f"blobs/{config_of(hung)}")
    await asyncio.to_thread(member.node.splitd, "down", "fleet")
    gone = made(1, 1500)
    await Client(channel, "default").pull(registry.add(gone, "gone:1"), unpack=False)
    code, text = await status(member)
    assert (code, "STOPPED" in text) == (0, True)
    up = await asyncio.to_thread(member.node.splitd, "up")
    assert up.stdout.startswith("started fleet: ")


def test_a_killed_process_is_in_the_fleet_again_at_once(member: Member) -> None:
    """It has its name, though the lease of the one before lasts on."""
    eventually(lambda: _in_the_fleet(member.node), "it is not in the fleet", 60)
    before = member.node.kill("fleet")
    eventually(lambda: member.node.pid("fleet") not in (0, before), "it is not started again", 30)

    def back() -> bool:
        found = member.node.status()
        assert "choose another" not in json.dumps(found["fleet"])
        return found["healthy"] and found["fleet"] is not None and found["fleet"]["troubles"] == []

    eventually(back, "it is not back", 60)


def test_a_configuration_without_a_fleet_and_with_one_again(member: Member) -> None:
    """Up ends the process and removes what was kept of it, restart starts it again."""
    node = member.node
    assert node.config is not None
    assert list(node.pids()) == [*NAMES, "fleet"]
    node.config.write_text("")
    said = node.splitd("up").stdout
    assert "stopped fleet, which the configuration has no more" in said
    assert list(node.pids()) == list(NAMES)
    refused = node.splitd("restart", "fleet", ok=False).stderr
    assert (
        f"this node has no service fleet: [fleet.etcd] endpoints is not in its configuration ({node.config})" in refused
    )
    assert "is in no fleet: write [fleet.etcd] endpoints" in node.splitd("fleet", ok=False).stderr
    found = node.status()
    assert (found["healthy"], found["fleet"], found["etcd"]) == (True, None, [])
    node.config.write_text(member.config)
    said = node.splitd("restart", "images").stdout
    assert said.startswith("started fleet, which the configuration has now\nrestarted images: ")
    assert list(node.pids()) == [*NAMES, "fleet"]
    eventually(lambda: _in_the_fleet(node), "it is not in the fleet", 60)
