"""A node that systemd starts, as far as can be tested without systemd: the messages to NOTIFY_SOCKET, and their
times.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import TOP, Node, short_directory

pytestmark = [pytest.mark.node, pytest.mark.root, pytest.mark.timeout(120)]


def test_systemd_is_told_when_the_node_listens_and_when_it_ends() -> None:
    """READY comes once containerd.sock takes connections, although the socket of an earlier node still exists; STOPPING
    comes at SIGTERM. No process of the node has the variable, since runc would use it.
    """
    with short_directory() as directory, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        node = Node(directory)
        node.state.mkdir()
        with socket.socket(socket.AF_UNIX) as before:
            before.bind(str(node.socket))
        systemd.bind(str(directory / "notify"))
        systemd.settimeout(60)
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "deploy",
            "up",
            "--foreground",
            "--root",
            node.root,
            "--state",
            node.state,
        ]
        with subprocess.Popen(
            command,
            cwd=TOP,
            env={**os.environ, "NOTIFY_SOCKET": str(directory / "notify")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        ) as supervisord:
            try:
                assert systemd.recv(100) == b"READY=1"
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(str(node.socket))
                node.wait_healthy()
                for pid in node.pids().values():
                    assert b"NOTIFY_SOCKET" not in Path(f"/proc/{pid}/environ").read_bytes()
                supervisord.send_signal(signal.SIGTERM)
                assert systemd.recv(100) == b"STOPPING=1"
                assert supervisord.wait(60) == 0
            finally:
                if supervisord.poll() is None:
                    supervisord.terminate()
    assert "\nType=notify\n" in (TOP / "deploy/splitd.service").read_text()
