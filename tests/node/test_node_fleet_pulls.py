"""Images and containers of a node in a fleet, pulls that the fleet wants of it, and its traces, as the command has them."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest

from services.etcd.client import connect
from services.etcd.config import EtcdConfig
from services.fleet.local import FleetNode
from services.fleet.store import Image, Target
from services.kit import loops
from tests import fake_registry
from tests.etcd_servers import DEBIAN, Cluster, etcd
from tests.fake_registry import Authority, FakeRegistry
from tests.pulls import made
from tests.support import TOP, Node, eventually_async, short_directory

pytestmark = [pytest.mark.node, pytest.mark.root, pytest.mark.timeout(240)]


@dataclass
class Member:
    """The node ``a`` of a fleet."""

    node: Node
    cluster: Cluster

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
            yield Member(node, cluster)
        finally:
            print((node.root / "log/fleet.log").read_text())
            node.down()


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as running:
        yield running


@pytest.fixture
async def other(member: Member) -> AsyncIterator[FleetNode]:
    """Another node of the fleet, ``b``, that pulls nothing."""
    found = connect(EtcdConfig(endpoints=member.cluster.endpoints))
    node = FleetNode(found, "/splitd/fleet", "b", "", ["default"])
    async with loops.running("the fleet", node.keep):
        await eventually_async(lambda: asyncio.sleep(0, not node.trouble), node.trouble)
        yield node
    await found.close()


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


async def _not(answer: object) -> bool:
    return not await answer  # type: ignore[misc]


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
    other.tell_images([Image("b", "default", reference, Target(digest, 700), 1)])
    await registry.stop()

    async def told() -> bool:
        return any(each["name"] == reference for each in await member.listed("images", "--node", "b"))

    await eventually_async(told, "it is not told", 60)
    refused = await asyncio.to_thread(member.node.splitd, "pull", "--plain-http", reference, ok=False)
    assert f"; and no node of the fleet gives {digest}" in refused.stderr
