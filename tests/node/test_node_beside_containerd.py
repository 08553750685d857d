"""``splitd up`` with containerd's own configuration, beside a containerd that runs with it: nothing of that containerd
is taken, and one line says what to change.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.foreign import BUNDLES
from tests.peer import containerd
from tests.support import short_directory, splitd

pytestmark = [pytest.mark.node, pytest.mark.root, pytest.mark.timeout(120)]


@dataclass(frozen=True)
class Peer:
    """A running containerd."""

    directory: Path
    version: int
    """The version of its configuration file."""

    @property
    def config(self) -> Path:
        """Return a file with its root, state and address, as ``containerd config default`` of that version writes
        it.
        """
        address = f'address = "{self.socket}"\n'
        form = {
            2: f"[grpc]\n{address}",
            4: f"[plugins.'io.containerd.server.v1.grpc']\n{address}[plugins.'io.containerd.server.v1.metrics']\naddress = ''\n",
        }[self.version]
        path = self.directory / f"theirs{self.version}.toml"
        path.write_text(f'version = {self.version}\nroot = "{self.directory}/r"\nstate = "{self.directory}/s"\n{form}')
        return path

    @property
    def socket(self) -> Path:
        return self.directory / "s" / "containerd.sock"

    def files(self) -> list[str]:
        """Return the files in its root and its state."""
        return sorted(str(path) for top in ("r", "s") for path in (self.directory / top).glob("*"))

    def uuid(self) -> str:
        """Return the uuid of the server at its socket."""
        done = subprocess.run(
            ["ctr", "-a", str(self.socket), "version"], capture_output=True, text=True, timeout=30, check=True
        )
        (found,) = re.findall(r"UUID: (\S+)", done.stdout)
        assert found == (self.directory / "r" / "io.containerd.grpc.v1.introspection" / "uuid").read_text().strip()
        return str(found)


@pytest.fixture(scope="module")
def running() -> Iterator[Path]:
    """The directory of a running containerd whose socket is in its state directory."""
    with short_directory() as directory, containerd(directory, socket=directory / "s" / "containerd.sock"):
        yield directory


@pytest.fixture(params=[2, 4])
def peer(running: Path, request: pytest.FixtureRequest) -> Peer:
    return Peer(running, request.param)


def test_a_running_containerd_keeps_its_files(peer: Peer) -> None:
    """The error names root, state and socket with the file that has them; no file is written, in the foreground
    neither.
    """
    uuid, before = peer.uuid(), peer.files()
    for more in ([], ["--foreground"]):
        done = splitd("up", "--config", peer.config, *more, ok=False)
        line = done.stderr.splitlines()[-1]
        assert (
            f"the root {peer.directory}/r is a containerd's (io.containerd.metadata.v1.bolt is in it); {peer.socket} "
            "is served by containerd (pid "
        ) in line
        assert (
            f"choose another root (root in {peer.config}, or --root) and another state (state in {peer.config}, or "
            "--state)"
        ) in line
    assert peer.files() == before
    assert peer.uuid() == uuid


def test_its_socket_alone_is_refused_too(peer: Peer) -> None:
    """The root is the node's own."""
    before = peer.files()
    done = splitd("up", "--config", peer.config, "--root", peer.directory / "other", ok=False)
    assert re.search(
        rf"splitd: {peer.socket} is served by containerd \(pid \d+\), not by this node: choose another state \(state in ",
        done.stderr,
    )
    assert peer.files() == before
    assert not (peer.directory / "other").exists()


def test_with_directories_of_its_own_a_node_runs_beside_it(peer: Peer) -> None:
    """The rest of containerd's file is used; a warning says that its address has no effect."""
    with short_directory() as directory:
        where: list[str | Path] = ["--config", peer.config, "--root", directory / "r", "--state", directory / "s"]
        done = splitd("up", *where)
        try:
            assert f"the node is up: {directory}/s/containerd.sock" in done.stdout
            assert peer.uuid()
        finally:
            splitd("down", *where)


def test_directories_that_a_stopped_containerd_left_are_refused(place: Path) -> None:
    """Its socket has no listener, but a bundle is there, which the node would take for its own task's."""
    (place / "s" / BUNDLES / "default" / "box").mkdir(parents=True)
    done = splitd("up", "--root", place / "r", "--state", place / "s", ok=False)
    assert (
        f"{place}/s is a containerd's (io.containerd.runtime.v2.task/default/box is in it): choose another state "
        "(--state)"
    ) in done.stderr
    assert not (place / "r").exists()
