"""Sockets of a node that an external program removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import Node, eventually, short_directory

pytestmark = [pytest.mark.node, pytest.mark.root, pytest.mark.once, pytest.mark.timeout(120)]


def sockets(state: Path) -> dict[str, int]:
    """Return name to inode."""
    return {
        path.name: path.stat().st_ino
        for path in state.iterdir()
        if path.is_socket() and not path.name.startswith("supervisor.sock.")
    }


def test_every_socket_of_a_node_that_is_removed_is_made_again() -> None:
    """Its own process makes it again, without a restart: clients and splitd reach the node, access rights are as
    before, and the watchdog hears its processes.
    """
    with short_directory() as directory:
        node = Node(directory)
        try:
            node.up()
            before, pids = sockets(node.state), node.pids()
            modes = {name: (node.state / name).stat().st_mode for name in before}
            assert {
                "containerd.sock",
                "containerd.sock.ttrpc",
                "internal.sock",
                "supervisor.sock",
                "watchdog.sock",
                "diff.sock",
                "snapshots-native.sock",
            } <= set(before)
            for name in before:
                (node.state / name).unlink()
            eventually(lambda: sockets(node.state).keys() == before.keys(), "sockets are missing", 20)
            node.wait_healthy()
            assert node.pids() == pids
            assert {name: (node.state / name).stat().st_mode for name in before} == modes
            assert "Server:" in node.out("version")
            assert "the socket " in node.splitd("logs", "content", "-n", "5").stdout
            node.splitd("restart", "content")
            node.wait_healthy()
        finally:
            node.clear()


def test_a_socket_of_another_in_the_place_of_ours_is_left_alone(tmp_path: Path) -> None:
    """The gateway reports the file in its way, and listens again once that is removed."""
    with short_directory() as directory:
        node = Node(directory)
        try:
            node.up()
            node.socket.unlink()
            node.socket.write_text("another's")
            eventually(
                lambda: "is not the socket of this process" in node.splitd("logs", "gateway", "-n", "5").stdout,
                "nothing is said",
                20,
            )
            assert node.socket.read_text() == "another's"
            node.socket.unlink()
            node.wait_healthy()
        finally:
            node.clear()
