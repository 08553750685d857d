"""Services killed at random moments of many pulls: existing blobs and snapshots are right, and those without a record
are removed.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import threading
from collections.abc import Callable

import pytest

from deploy.samples import Registry, busybox_layer, image, tar_of
from tests.support import Node, eventually, short_directory

pytestmark = [pytest.mark.node, pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(900)]

PULLS = int(os.environ.get("CRASHED_PULLS", "10"))
VICTIMS = ("content", "snapshots", "metadata", "gateway")


def layers(seed: int) -> list[bytes]:
    """A base, and two layers that no other image has, so that each pull writes, commits and unpacks."""
    generator = random.Random(seed)
    return [
        busybox_layer(),
        *(
            tar_of([(f"data/{seed}-{k}-{i}", {"data": generator.randbytes(250_000)}) for i in range(12)])
            for k in range(2)
        ),
    ]


def check_blobs(node: Node) -> None:
    """Check that every blob on disk matches the digest in its name."""
    for path in (node.root / "content/blobs").glob("*/*"):
        assert hashlib.new(path.parent.name, path.read_bytes()).hexdigest() == path.name, f"{path} is damaged"


def leftovers(node: Node) -> list[str]:
    """Return files on disk that no record names: blobs, ingests, snapshot directories."""
    recorded = set(node.out("content", "ls", "-q").split())
    found = [
        f"blob {p.name}"
        for p in (node.root / "content/blobs").glob("*/*")
        if f"{p.parent.name}:{p.name}" not in recorded
    ]
    active = len(node.out("content", "active").splitlines()[1:])
    ingests = list((node.root / "content/ingest").glob("*"))
    if len(ingests) > active:
        found.append(f"{len(ingests)} ingests, {active} recorded")
    snapshots = len(node.out("snapshots", "ls").splitlines()[1:])
    directories = [p for p in (node.root / "snapshots/overlayfs/snapshots").iterdir() if p.is_dir()]
    if len(directories) != snapshots:
        found.append(f"{len(directories)} snapshot directories, {snapshots} recorded")
    return found


def test_kills_during_many_pulls(registry: Registry, records: Callable[[], str]) -> None:
    """content, snapshots, metadata or gateway die at random moments of PULLS pulls; then a pull succeeds, digests are
    right, and a collection leaves no leftovers.
    """
    generator = random.Random(int(os.environ.get("SPLITD_TEST_SEED", "1")))
    references = [registry.push(image(layers(i)), f"crash{i}:1") for i in range(PULLS)]
    with short_directory() as directory:
        node = Node(directory, config=records())
        try:
            node.up()
            failed = 0
            kills: dict[str, int] = dict.fromkeys(VICTIMS, 0)
            for reference in references:
                victim = generator.choice(VICTIMS)
                strike = threading.Timer(generator.uniform(0.0, 0.5), os.kill, (node.pid(victim), signal.SIGKILL))
                pull = subprocess.Popen(
                    ["ctr", "-a", str(node.socket), "images", "pull", "--plain-http", reference],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                )
                strike.start()
                try:
                    _, _ = pull.communicate(timeout=60)
                except subprocess.TimeoutExpired:  # ctr retries an ingest for ever; the user would press ^C
                    pull.send_signal(signal.SIGINT)
                    pull.communicate(timeout=30)
                strike.join()
                failed += pull.returncode != 0
                kills[victim] += 1
                node.wait_healthy()
            print(f"{failed} of {PULLS} pulls failed under {kills}")

            for reference in references[-3:]:
                node.ctr("images", "pull", "--plain-http", reference)
            assert node.out("run", "--rm", references[-1], "after", "echo", "alive") == "alive\n"
            check_blobs(node)

            names = node.out("images", "ls", "-q").split()
            assert set(references[-3:]) <= set(names)
            for lease in node.out("leases", "ls", "-q").split():  # of pulls that were cut off: they would hold for 24 h
                node.ctr("leases", "rm", lease, ok=None)
            node.ctr("images", "rm", "--sync", references[-1])
            for name in names:
                if name != references[-1]:
                    node.ctr("images", "check", f"name=={name}")
            eventually(lambda: not leftovers(node), f"after a collection there are left: {leftovers(node)}", 30)
            for name in names:
                if name != references[-1]:
                    assert node.out("run", "--rm", name, "again", "echo", "ok") == "ok\n"
                    node.ctr("images", "rm", "--sync", name)
            for ref in [line.split()[0] for line in node.out("content", "active").splitlines()[1:]]:
                node.ctr("content", "rm", ref, ok=None)
            eventually(
                lambda: not list((node.root / "content/blobs").glob("*/*")), "blobs stay though no image does", 30
            )
            eventually(
                lambda: not [p for p in (node.root / "snapshots/overlayfs/snapshots").iterdir() if p.is_dir()],
                "snapshots stay though no image does",
                30,
            )
        except BaseException:
            print(node.logs())
            raise
        finally:
            node.clear()
