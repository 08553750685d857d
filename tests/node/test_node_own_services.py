"""Services of one's own on a node: the commands of docs/write-a-service.md, and the examples in the place of ours."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.samples import Registry
from tests.peer import containerd
from tests.support import TOP, Node, OwnService, directory_with_attributes, eventually, listening, short_directory

pytestmark = [pytest.mark.node, pytest.mark.root, pytest.mark.timeout(300)]

DOCUMENT = (TOP / "docs/write-a-service.md").read_text()
COMMANDS = [
    line.removeprefix("$ ")
    for block in re.findall(r"```console\n(.*?)```", DOCUMENT, re.DOTALL)
    for line in block.splitlines()
]


class Shell:
    """A user's shell in ``place``/w: its splitd is this clone's, for the node at ``place``/state. /run is below
    ``place``; /var/lib and /tmp are ``stores``.
    """

    def __init__(self, place: Path, stores: Path) -> None:
        self.place, self.stores, self.work = place, stores, place / "w"
        for name in ("w", "bin", "run"):
            (place / name).mkdir()
        command = place / "bin/splitd"
        command.write_text(f'#!/bin/sh\nPYTHONPATH={TOP} exec {sys.executable} -P -m deploy "$@"\n')
        command.chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{place}/bin:{os.environ['PATH']}",
            "SPLITD_ROOT": str(place / "root"),
            "SPLITD_STATE": str(place / "state"),
            "TMPDIR": str(stores),
        }
        self._programs: list[subprocess.Popen[str]] = []

    def run(self, line: str) -> str:
        """Run a line as it is in the document; one that ends in & goes on, and its socket is waited for."""
        line = line.replace("/run/", f"{self.place}/run/").replace("/var/lib/", f"{self.stores}/")
        words = shlex.split(line.removesuffix(" &"))
        if line.endswith(" &"):
            self._programs.append(
                subprocess.Popen(words, cwd=self.work, env=self.environment, stderr=subprocess.DEVNULL, text=True)
            )
            eventually(lambda: listening(Path(words[words.index("--address") + 1])), f"{line} does not serve")
            return ""
        done = subprocess.run(
            words, cwd=self.work, env=self.environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{line}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def close(self) -> None:
        """End the programs that go on; each ends cleanly."""
        for program in self._programs:
            program.terminate()
        assert [program.wait(20) for program in self._programs] == [0 for _ in self._programs]


def test_every_command_of_the_document_works(place: Path) -> None:
    """One after the other, on a node; the configuration that it shows is one."""
    node = Node(place)
    memory = Path("/dev/shm") if os.path.isdir("/dev/shm") else None  # rules that wait for a disk take half a minute
    with directory_with_attributes(memory) as stores:
        shell = Shell(place, stores)
        try:
            node.up()
            for line in COMMANDS:
                shell.run(line)
            shell.close()
        finally:
            node.clear()
    services, exports = map(tomllib.loads, re.findall(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL))
    assert {plugin["type"] for plugin in services["proxy_plugins"].values()} == {"snapshot", "content"}
    assert exports["proxy_plugins"].keys() <= services["proxy_plugins"].keys()


@pytest.fixture(scope="module")
def examples() -> Iterator[dict[str, OwnService]]:
    """The examples as processes, on the disk."""
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(OwnService(TOP / f"examples/{name}.py", stack.enter_context(short_directory())))
            for name in ("overlay", "blobs")
        }


def test_images_are_pulled_and_run_from_the_examples(
    examples: dict[str, OwnService], registry: Registry, place: Path
) -> None:
    """A node whose content and overlayfs are the examples pulls an image and runs it, ours stay empty; after a kill -9
    of both everything is there; and what is removed is collected from them.
    """
    overlay, blobs = examples["overlay"], examples["blobs"]
    node = Node(
        place,
        config=f'[proxy_plugins.overlayfs]\ntype = "snapshot"\naddress = "{overlay.sockets[0]}"\n'
        f'[proxy_plugins.content]\ntype = "content"\naddress = "{blobs.sockets[0]}"\n',
    )
    reference = f"{registry.host}/box:1"

    def run(name: str) -> bool:
        return node.out("run", "--rm", reference, name, "echo", "hello") == "hello\n"

    def stored() -> tuple[int, int]:
        return len(os.listdir(overlay.root / "snapshots")), len([*blobs.root.glob("blobs/*/*")])

    try:
        node.up()
        node.splitd("pull", "--plain-http", reference)
        assert run("one")
        assert all(stored())
        assert not [path for path in (node.root / "content").rglob("*") if path.is_file() and len(path.name) == 64]
        assert not any((node.root / "snapshots/overlayfs/snapshots").iterdir())
        for each in (overlay, blobs):
            each.kill()
            each.start()
        eventually(lambda: run("two"), "nothing runs after a kill -9", 30)
        node.out("images", "rm", "--sync", reference)
        eventually(lambda: stored() == (0, 0), "what was removed stays in the examples", 30)
    finally:
        node.clear()


def test_the_snapshotter_works_below_debians_containerd(
    examples: dict[str, OwnService], registry: Registry, place: Path
) -> None:
    """As a proxy plugin: containerd unpacks images onto it and runs containers from it."""
    overlay = examples["overlay"]
    more = f'[proxy_plugins.mine]\ntype = "snapshot"\naddress = "{overlay.sockets[0]}"\n'
    with containerd(place, more=more) as socket:
        node = Node(place)
        node.socket = socket
        reference = f"{registry.host}/box:1"
        node.ctr("images", "pull", "--plain-http", "--snapshotter", "mine", reference)
        assert node.out("run", "--rm", "--snapshotter", "mine", reference, "hello", "echo", "hello") == "hello\n"
        assert any((overlay.root / "snapshots").iterdir())
