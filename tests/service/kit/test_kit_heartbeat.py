"""The heartbeats of a process, as its supervisor receives them; on both transports."""

from __future__ import annotations

import os
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.kit import rpc
from services.kit.heartbeat import ALIVE, READY, SOCKET, STOPPING
from tests.support import ServiceProcess

pytestmark = pytest.mark.once


@pytest.fixture
def heard(place: Path) -> Iterator[socket.socket]:
    """The socket to which the processes of a node at STATE send."""
    (place / "s").mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        ear.settimeout(15)
        ear.bind(str(place / "s" / SOCKET))
        yield ear


@pytest.fixture(params=rpc.TRANSPORTS)
def content(request: pytest.FixtureRequest, place: Path, heard: socket.socket) -> Iterator[ServiceProcess]:
    """A content service that beats six times a second."""
    config = place / "config.toml"
    config.write_text("[watchdog]\nsilence = '1s'\n")
    (place / "faults").mkdir()
    with ServiceProcess(
        "services.content",
        place / "r",
        place / "s",
        config=config,
        env={"SPLITD_GRPC_TRANSPORT": request.param, "SPLITD_FAULTS": str(place / "faults")},
    ) as running:
        yield running


def beat(ear: socket.socket) -> tuple[bytes, int]:
    """Return the word of the next heartbeat, and its sender's pid, which the kernel gives."""
    word, ancillary, _, _ = ear.recvmsg(64, socket.CMSG_SPACE(12))
    [(_, _, credentials)] = ancillary
    return word, struct.unpack("3i", credentials)[0]


def test_a_process_beats_from_when_it_serves_until_it_is_told_to_end(
    content: ServiceProcess, heard: socket.socket
) -> None:
    """READY comes first, then one heartbeat after another, all from its own pid, and STOPPING last."""
    assert beat(heard) == (READY, content.pid)
    assert [beat(heard) for _ in range(3)] == [(ALIVE, content.pid)] * 3
    os.kill(content.pid, signal.SIGTERM)
    while (said := beat(heard)) == (ALIVE, content.pid):
        pass
    assert said == (STOPPING, content.pid)
    assert content.wait() == 0


def test_a_loop_that_hangs_is_silent(content: ServiceProcess, heard: socket.socket, place: Path) -> None:
    """It is silent while the process lives, and whatever its other threads do."""
    beat(heard)
    (place / "faults" / "content.loop").write_text("hang-in-c")
    heard.settimeout(2)
    with pytest.raises(TimeoutError):
        for _ in range(1000):
            beat(heard)
    os.kill(content.pid, 0)
    content.kill()


def test_no_listener_is_no_error(content: ServiceProcess, heard: socket.socket) -> None:
    """A supervisor goes away and comes back: the process goes on, and its heartbeats arrive again."""
    path = heard.getsockname()
    os.rename(path, path + ".away")
    while True:  # what was sent before is still there
        heard.settimeout(1)
        try:
            beat(heard)
        except TimeoutError:
            break
    os.rename(path + ".away", path)
    heard.settimeout(15)
    assert beat(heard) == (ALIVE, content.pid)
