"""The node's metrics: those of containers beside containerd's own, and what a pull leaves."""

from __future__ import annotations

import re
import socket
import subprocess
import urllib.request
from collections.abc import Iterator

import pytest

from deploy.samples import Registry
from tests.pages import series
from tests.peer import containerd
from tests.support import Node, eventually, short_directory

pytestmark = [pytest.mark.node, pytest.mark.root, pytest.mark.timeout(120)]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def shown(port: int) -> dict[str, float]:
    """Each series of the page with its value."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/metrics", timeout=20) as answer:
        return series(answer.read().decode())


def of_containers(found: dict[str, float]) -> set[tuple[str, frozenset[str]]]:
    """The containers' families, each with the names of its labels and without that of the service."""
    return {
        (name.partition("{")[0], frozenset(re.findall(r'([a-z_]+)="', name)) - {"service"})
        for name in found
        if name.startswith("container_")
    }


@pytest.fixture(scope="module")
def counted() -> Iterator[tuple[Node, int]]:
    """A node that serves its metrics, and the port."""
    port = free_port()
    with short_directory() as directory:
        node = Node(directory, config=f'[metrics]\naddress = "127.0.0.1:{port}"\n')
        node.up()
        try:
            node.wait_healthy()
            yield node, port
        finally:
            node.clear()


def test_a_pull_is_counted_by_registry_and_stage(counted: tuple[Node, int], registry: Registry) -> None:
    """Its outcome, its requests by status, the time of each stage, the worker's time, and the sizes of the stores."""
    node, port = counted
    node.splitd("pull", "--plain-http", "--namespace", "counted", f"{registry.host}/box:1")
    node.splitd("pull", "--plain-http", "--namespace", "counted", f"{registry.host}/nothing:1", ok=False)
    found = shown(port)
    for outcome in ("ok", "failed"):
        assert found[f'splitd_transfers_total{{operation="pull",outcome="{outcome}",service="images"}}'] == 1
    assert found['splitd_transfer_seconds_count{operation="pull",service="images"}'] == 2
    host = f'host="{registry.host}",service="images"'
    assert found[f'splitd_registry_requests_total{{{host},status="404"}}'] >= 1
    assert found[f'splitd_registry_requests_total{{{host},status="200"}}'] >= 1
    assert found[f"splitd_registry_received_bytes_total{{{host}}}"] > 100
    for stage in ("connect", "first_byte", "body"):
        assert found[f'splitd_registry_seconds_total{{{host},stage="{stage}"}}'] > 0
    assert found['splitd_queue_held{queue="layers",service="images"}'] == 0
    assert found['splitd_store_bytes{service="metadata",store="metadata"}'] > 0


def test_containers_have_containerds_metrics(counted: tuple[Node, int], registry: Registry) -> None:
    """The same families and labels as on containerd's own page, for the same container; they go with it.

    The two are in namespaces of their own: cgroups are named by namespace and container, and containerd kills whatever
    is in the cgroup of a task that it removes.
    """
    node, port = counted
    reference = f"{registry.host}/box:1"
    theirs_port = free_port()
    with (
        short_directory() as directory,
        containerd(directory, more=f'[metrics]\naddress = "127.0.0.1:{theirs_port}"\n') as address,
    ):
        for socket_path, namespace in ((node.socket, "default"), (address, "theirs")):
            for command in (
                ["images", "pull", "--plain-http", reference],
                ["run", "-d", reference, "counted", "sleep", "1000"],
            ):
                subprocess.run(
                    ["ctr", "-a", str(socket_path), "-n", namespace, *command],
                    check=True,
                    capture_output=True,
                    timeout=60,
                )
        try:
            # the kernel's notices of no memory, which containerd counts itself, are no part of a shim's figures
            theirs = {each for each in of_containers(shown(theirs_port)) if each[0] != "container_memory_oom_total"}
            ours = of_containers(shown(port))
            assert theirs
            assert theirs <= ours
            assert {name for name, _ in ours - theirs} <= {"container_memory_oom_total"}
        finally:
            subprocess.run(
                ["ctr", "-a", str(address), "-n", "theirs", "tasks", "rm", "-f", "counted"],
                check=True,
                capture_output=True,
                timeout=60,
            )
    found = shown(port)
    rss = [value for name, value in found.items() if name.startswith("container_memory_") and "usage" in name]
    assert max(rss) > 4096
    assert found['splitd_service_up{service="tasks"}'] == 1
    node.ctr("tasks", "rm", "-f", "counted")
    eventually(lambda: not of_containers(shown(port)), "a dead container is still shown")
