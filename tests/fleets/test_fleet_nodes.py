"""Three real nodes on networks of their own, one registry behind a slow link, and an etcd of three members: what one
node has, the others get from it, and whatever fails, they have the right bytes or say why not.

``FLEET_HARMS=all`` does one harm of tests/fleets/harms.py after the other, each in the middle of a pull of its own
(``make fleet-harms``); that takes half an hour. Without it a few are done at once.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import ssl
import subprocess
from collections.abc import Iterator, Sequence

import pytest

from tests.fleets import harms
from tests.fleets.harms import SECONDS, Harm
from tests.fleets.nodes import PEER_PORT, Fleet, FleetMember, fleet, made, runs, size_of
from tests.support import eventually

pytestmark = [pytest.mark.node, pytest.mark.root, pytest.mark.timeout(600)]

ALL = os.environ.get("FLEET_HARMS") == "all"
RATE = 10_000_000
"""Bytes a second that the registry sends."""


@pytest.fixture(scope="module")
def whole() -> Iterator[Fleet]:
    """A fleet of three, whose registry is slow."""
    with fleet() as running:
        for name in ("n1", "n2", "n3"):
            running.node(name, more=f'[images]\nconfig_path = "{running.plain()}"\n')
        running.up()
        running.registry.host.limit(RATE)
        yield running


@pytest.fixture
def nodes(whole: Fleet) -> Iterator[list[FleetMember]]:
    """Its nodes, all of them in the fleet."""
    together(whole)
    yield list(whole.nodes.values())
    whole.check()


def together(whole: Fleet) -> None:
    """Wait until all nodes know each other."""
    wanted = set(whole.nodes)
    eventually(lambda: all(node.known() == wanted for node in whole.nodes.values()), "they do not know each other", 60)


@contextlib.contextmanager
def sent(whole: Fleet) -> Iterator[list[int]]:
    """The bytes that the registry sends during the block."""
    before = whole.registry.host.sent()
    found: list[int] = []
    yield found
    found.append(whole.registry.host.sent() - before)


def pulled(nodes: Sequence[FleetMember], reference: str, *words: str) -> list[str]:
    """What each says that pulls an image, all at once; empty if it has it."""
    begun = [node.begin(reference, *words) for node in nodes]
    return [pull.end(SECONDS) for pull in begun]


@contextlib.contextmanager
def busy(processors: int) -> Iterator[None]:
    """So many processors have other work, as long as the block lasts."""
    loops = [subprocess.Popen(["timeout", "120", "sh", "-c", "while :; do :; done"]) for _ in range(processors)]
    try:
        yield
    finally:
        for each in loops:
            each.terminate()  # timeout passes it on
            each.wait()


@pytest.mark.parametrize("processors", [0, len(os.sched_getaffinity(0))] if ALL else [0])
def test_three_nodes_pull_an_image_at_once(whole: Fleet, nodes: list[FleetMember], processors: int) -> None:
    """The registry sends it little more than once, also if the processors have other work."""
    box = made(8)
    reference = whole.registry.push(box, f"once{processors}:1")
    with busy(processors), sent(whole) as came:
        assert pulled(nodes, reference) == ["", "", ""]
    assert came[0] <= 1.2 * size_of(box)
    for node in nodes:
        assert node.has(box)
        runs(node, reference)


def test_the_registry_is_cut_off_after_one_node_has_the_image(whole: Fleet, nodes: list[FleetMember]) -> None:
    """The others get it by its tag."""
    box = made()
    reference = whole.registry.push(box, "cut:1")
    assert pulled(nodes[:1], reference) == [""]
    eventually(lambda: nodes[1].knows(reference), "the fleet is not told of the image", 30)
    whole.registry.host.unplug()
    try:
        assert pulled(nodes[1:], reference) == ["", ""]
    finally:
        whole.registry.host.plug()
    for node in nodes[1:]:
        assert node.has(box)
        runs(node, reference)


def test_a_peer_that_gives_wrong_bytes_is_named(whole: Fleet, nodes: list[FleetMember]) -> None:
    """Its blob is damaged on its disk. The others have the right bytes, from the registry, and do not ask it again, nor
    does a process that was started anew.
    """
    one, two, _ = nodes
    box = made(1)
    reference = whole.registry.push(box, "wrong:1")
    assert pulled([one], reference) == [""]
    digest = box.layers[-1]
    eventually(lambda: two.why(digest) >= {"n1"}, "the fleet is not told of the blob", 30)
    file, right = one.blob(digest), box.blobs[digest]
    file.write_bytes(bytes([right[0] ^ 1]) + right[1:])
    try:
        assert pulled([two], reference) == [""]
        assert two.has(box)
        assert "peer n1 is not asked for blobs for 60 minutes" in two.splitd("logs", "-n", "50", "images").stdout
    finally:
        file.write_bytes(right)
    two.kill("images")
    eventually(lambda: _not_asked(two), "the blame is forgotten", 60)
    (two.state / "images" / "blamed-peers.json").unlink()
    two.kill("images")
    two.wait_healthy(60)


def _not_asked(node: FleetMember) -> bool:
    return "peer n1 is not asked for blobs: " in node.splitd("logs", "-n", "50", "images").stdout


def test_one_command_pulls_an_image_on_all_nodes(whole: Fleet, nodes: list[FleetMember]) -> None:
    """From the registry once. A tag that has moved since is renewed on the nodes that are named, and each node then has
    what it was told to have.
    """
    box, newer = made(2, 2 << 10), made(2, 2 << 10)
    reference = whole.registry.push(box, "wanted:1")
    with sent(whole) as came:
        said = nodes[0].splitd("fleet", "pull", reference, "--nodes", "all", "--json", seconds=SECONDS).stdout
    assert said.splitlines()[-1].startswith('{"outcome": "done"'), said
    assert came[0] <= 1.2 * size_of(box)
    assert all(node.has(box) for node in nodes)
    whole.registry.push(newer, "wanted:1")
    with sent(whole) as came:
        said = nodes[1].splitd("fleet", "pull", reference, "--on", "n2,n3", seconds=SECONDS).stdout
    assert came[0] <= 1.2 * size_of(newer)
    assert nodes[1].has(newer) and nodes[2].has(newer), said
    for node, digest in zip(nodes, (box.digest, newer.digest, newer.digest), strict=True):
        assert digest in node.ctr("images", "ls", f"name=={reference}").stdout
    # a node that has neither asks the others, of which more have the newer one
    nodes[0].ctr("images", "rm", "--sync", reference)
    eventually(lambda: nodes[0].holders(reference) == {"n2", "n3"}, "the fleet is not told of the images", 60)
    whole.registry.host.unplug()
    try:
        assert pulled(nodes[:1], reference) == [""]
    finally:
        whole.registry.host.plug()
    assert nodes[0].has(newer)
    runs(nodes[0], reference)


def test_a_blob_of_a_namespace_that_is_not_shared_stays(whole: Fleet, nodes: list[FleetMember]) -> None:
    """The fleet does not learn of it, nobody gets it, and the registry is asked for it again."""
    one, two, _ = nodes
    box = made(1, 2 << 10)
    reference, digest = whole.registry.push(box, "own:1"), box.layers[-1]
    assert pulled([one], reference, "-n", "own") == [""]
    context = ssl.create_default_context(cafile=whole.authority.certificate)
    context.load_cert_chain(*whole.authority.issue("asking"))

    def asked() -> int:
        connection = http.client.HTTPSConnection(one.host.address, PEER_PORT, timeout=20, context=context)
        with contextlib.closing(connection):
            connection.request("GET", f"/v2/blobs/{digest}")
            return connection.getresponse().status

    assert two.host.call(asked) == 404
    assert two.why(digest) == set()
    with sent(whole) as came:
        assert pulled([two], reference) == [""]
    assert came[0] >= size_of(box) - len(box.blobs[box.layers[0]])
    eventually(lambda: one.why(digest) == {"n2"}, "the fleet is not told of the blob", 30)


def test_pulls_and_runs_go_on_without_etcd(whole: Fleet, nodes: list[FleetMember]) -> None:
    """Each node then asks the registry. When etcd is back, they are in the fleet again."""
    box = made(1, 2 << 10)
    reference = whole.registry.push(box, "away:1")
    whole.etcd.stop()
    try:
        assert pulled(nodes, reference) == ["", "", ""]
        for node in nodes:
            assert node.has(box)
        runs(nodes[0], reference)
    finally:
        whole.etcd.heal()
    together(whole)


AT_ONCE = [harms.killed("fleet", 0), harms.killed("images", 1, (1,)), harms.member_killed(0), harms.dead(2)]


@pytest.mark.parametrize(
    "done", [[harm] for harm in harms.ALL] if ALL else [AT_ONCE], ids=lambda done: ", ".join(harm.name for harm in done)
)
def test_whatever_fails(whole: Fleet, nodes: list[FleetMember], done: list[Harm]) -> None:
    """Each pull ends with the right bytes, or says why it does not. Only a node that is harmed itself may fail."""
    harms.suffered(whole, made(), f"harmed{len(whole.registry.pushes)}:1", done)
