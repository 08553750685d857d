"""A node whose records are in etcd: etcd goes away and comes back, the mirror is damaged, and the records move."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator

import pytest

from tests.etcd_servers import DEBIAN, Cluster, etcd
from tests.support import Node, eventually, short_directory, within

pytestmark = [pytest.mark.node, pytest.mark.root, pytest.mark.timeout(240)]

CONFIG = """
[metadata]
store = "{}"

[metadata.etcd]
endpoints = ["{}"]
prefix = "/splitd/one"
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with etcd(DEBIAN) as running:
        yield running


@pytest.fixture(scope="module")
def node(cluster: Cluster) -> Iterator[Node]:
    with short_directory() as directory:
        running = Node(directory, config=CONFIG.format("etcd", cluster.endpoints[0]))
        try:
            running.up()
            yield running
        finally:
            running.clear()


def containers(node: Node) -> set[str]:
    return set(node.out("containers", "ls", "-q").split())


def test_etcd_goes_away_and_comes_back(node: Node, box: str, cluster: Cluster) -> None:
    """Containers run on, reads are answered, writes say what to do. So it stays when services are restarted meanwhile.
    A container that ends meanwhile has its exit afterwards.
    """
    node.ctr("run", "-d", box, "stays", "sleep", "1000")
    node.ctr("run", "-d", box, "ends", "sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.05; done")
    tasks = node.tasks()
    cluster.members[0].kill()

    def refused() -> bool:
        with within(15):
            said = str(node.ctr("containers", "create", box, "other", ok=False).stderr)
        return "while etcd is away" in said and "repeat it once etcd is back" in said

    eventually(refused, "a write does not say what to do")
    shown = node.splitd("status", ok=False).stdout
    assert re.search(r"records in etcd: etcd away for \d+ s; reads go on until .+, nothing is written", shown)
    assert re.search(r"^metadata .*etcd has been away since", shown, re.MULTILINE)

    for service in ("metadata", "gateway", "tasks"):
        node.kill(service)
    eventually(lambda: containers(node) == {"stays", "ends"}, "reads end with a restart", 30)
    eventually(lambda: node.tasks() == tasks, "the containers do not run on", 30)
    assert box in node.out("images", "ls", "-q")
    os.kill(tasks["ends"][0], signal.SIGTERM)
    eventually(lambda: node.tasks()["ends"][1] == "STOPPED", "nobody sees the end")

    cluster.members[0].start()
    node.wait_healthy(30)
    assert "non-zero exit code 7" in node.ctr("tasks", "rm", "ends").stderr
    node.ctr("containers", "rm", "ends")
    assert node.tasks() == {"stays": tasks["stays"]}
    assert node.out("run", "--rm", box, "again", "echo", "works") == "works\n"
    assert "records in etcd: in step, revision " in node.splitd("status").stdout


def test_a_damaged_mirror_is_made_anew(node: Node, box: str) -> None:
    """Nobody has to do anything, and nothing is held back."""
    for number in range(4):
        node.ctr("containers", "create", box, f"c{number}", "true")
    before = containers(node)
    mirror = node.state / "metadata" / "mirror.db"
    node.kill("metadata")
    with mirror.open("r+b") as file:
        file.seek(mirror.stat().st_size // 2 & ~16383)
        file.write(b"\xff" * 32768)
    log = node.root / "log" / "metadata.log"
    eventually(lambda: "the mirror of etcd's records is made anew" in log.read_text(), "nobody notices", 30)
    node.wait_healthy(30)
    assert containers(node) == before
    assert "held" not in node.splitd("status").stdout
    node.ctr("containers", "rm", *(f"c{number}" for number in range(4)))


def test_the_records_move_to_sqlite_and_back(node: Node, box: str, cluster: Cluster) -> None:
    """They are compared on the way, and containers run on."""
    assert node.config is not None
    before = containers(node), node.out("images", "ls"), node.tasks()
    for to in ("sqlite", "etcd"):
        node.down(containers=False)
        moved = node.splitd("metadata", "migrate", "--to", to).stdout
        assert re.search(r"it has now \d+ records", moved), moved
        node.config.write_text(CONFIG.format(to, cluster.endpoints[0]))
        node.up()
        assert (containers(node), node.out("images", "ls"), node.tasks()) == before
        assert (node.state / "metadata" / "mirror.db").exists() is (to == "etcd")
