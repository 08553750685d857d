"""Foreign services in place of the node's own, and the node's own below a real containerd: only an address in the
configuration is needed.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.samples import Registry
from tests.peer import SNAPSHOTTERS, below, program
from tests.support import Node, ServiceProcess, eventually, short_directory

pytestmark = [pytest.mark.node, pytest.mark.root, pytest.mark.timeout(300)]


def pulled_and_run(node: Node, registry: Registry, snapshotter: str, ctr: str = "ctr") -> str:
    """Return the output of a container of a pulled image."""
    reference = f"{registry.host}/box:1"
    node.ctr("images", "pull", "--plain-http", "--snapshotter", snapshotter, reference, program=ctr)
    return node.out("run", "--rm", "--snapshotter", snapshotter, reference, "hello", "echo", "hello", program=ctr)


@pytest.mark.parametrize("kind", ["overlayfs", "native"])
def test_a_snapshotter_of_another_process_stands_beside_ours(kind: str, registry: Registry, place: Path) -> None:
    """[proxy_plugins.other]: images are unpacked there, containers run from there, it has its row among the plugins,
    and its death affects only its own calls.
    """
    sockets = ("snapshots-overlayfs.sock", "snapshots-native.sock", "diff.sock")
    with (
        short_directory() as elsewhere,
        ServiceProcess("services.snapshots", elsewhere / "r", elsewhere / "s", sockets=sockets) as other,
    ):
        node = Node(
            place, config=f'[proxy_plugins.other]\ntype = "snapshot"\naddress = "{elsewhere}/s/snapshots-{kind}.sock"\n'
        )
        try:
            node.up()
            assert pulled_and_run(node, registry, "other") == "hello\n"
            assert any((elsewhere / "r" / "snapshots" / kind / "snapshots").iterdir())
            assert not any((node.root / "snapshots" / kind / "snapshots").iterdir())
            rows = {tuple(line.split()[:2]): line.split()[-1] for line in node.out("plugins", "ls").splitlines()}
            assert rows["io.containerd.snapshotter.v1", "other"] == "ok"
            assert pulled_and_run(node, registry, kind) == "hello\n"
            other.kill()
            eventually(lambda: pulled_and_run(node, registry, kind) == "hello\n", "ours fails with the other's death")
            node.ctr("snapshots", "--snapshotter", "other", "usage", "nothing", ok=False)
            other.start()
            eventually(lambda: pulled_and_run(node, registry, "other") == "hello\n", "the other is not used again")
        finally:
            node.clear()


def test_a_content_store_of_another_process_takes_the_place_of_ours(registry: Registry, place: Path) -> None:
    """[proxy_plugins.NAME] of type content: every blob is there, ours stays empty."""
    with short_directory() as elsewhere, ServiceProcess("services.content", elsewhere / "r", elsewhere / "s"):
        node = Node(place, config=f'[proxy_plugins.other]\ntype = "content"\naddress = "{elsewhere}/s/content.sock"\n')
        try:
            node.up()
            assert pulled_and_run(node, registry, "overlayfs") == "hello\n"
            digests = set(node.out("content", "ls", "-q").split())
            assert digests == {
                f"sha256:{path.name}" for path in (elsewhere / "r" / "content" / "blobs" / "sha256").iterdir()
            }
            assert not [path for path in (node.root / "content").rglob("*") if path.is_file() and len(path.name) == 64]
        finally:
            node.clear()


@pytest.mark.parametrize("snapshotter", [f"splitd-{name}" for name in SNAPSHOTTERS])
@pytest.mark.parametrize("generation", [1, 2])
def test_our_services_work_below_a_containerd(
    generation: int, snapshotter: str, registry: Registry, place: Path
) -> None:
    """containerd's own [proxy_plugins], its content plugin disabled: it keeps blobs in our content process, unpacks
    images onto our snapshots, runs containers from them, and its collector leaves nothing behind.
    """
    daemon, ctr = (name if generation == 1 else program(name) for name in ("containerd", "ctr"))
    with below(place, daemon) as under:
        node = Node(place)
        node.socket = under.socket
        assert pulled_and_run(node, registry, snapshotter, ctr) == "hello\n"
        snapshots = under.root / "snapshots" / snapshotter.removeprefix("splitd-") / "snapshots"
        blobs = under.root / "content" / "blobs" / "sha256"
        assert {f"sha256:{path.name}" for path in blobs.iterdir()} == set(node.out("content", "ls", "-q").split())
        assert any(blobs.iterdir())
        assert any(snapshots.iterdir())
        node.ctr("images", "rm", "--sync", f"{registry.host}/box:1")
        eventually(lambda: not any(blobs.iterdir()) and not any(snapshots.iterdir()), "not collected")


def test_status_has_a_row_for_each_proxy_plugin_and_blames_none_of_ours(place: Path) -> None:
    """An absent snapshotter beside ours has its own row; a content store in place of ours counts for the node, and our
    idle process is fine.
    """
    with short_directory() as elsewhere:
        content = ServiceProcess("services.content", elsewhere / "r", elsewhere / "s")
        node = Node(
            place,
            config=f'[proxy_plugins.absent]\ntype = "snapshot"\naddress = "{elsewhere}/none.sock"\n'
            f'[proxy_plugins.theirs]\ntype = "content"\naddress = "{elsewhere}/s/content.sock"\n',
        )

        def rows() -> dict[str, tuple[bool, bool]]:
            return {each["name"]: (each["in_place"], each["healthy"]) for each in node.status()["proxy_plugins"]}

        try:
            with content:
                node.up()
                eventually(lambda: rows() == {"absent": (False, False), "theirs": (True, True)}, "not as they are")
                shown = node.splitd("status").stdout  # exit code 0
                assert f"{elsewhere}/none.sock does not answer the gateway" in shown
            eventually(lambda: rows()["theirs"] == (True, False), "its end is not seen")
            found = node.status()
            assert {each["name"]: each["trouble"] for each in found["services"]} == dict.fromkeys(node.pids(), "")
            assert not found["healthy"]
            assert f"{elsewhere}/s/content.sock does not answer the gateway" in node.splitd("status", ok=False).stdout
            assert (
                f"theirs, which replaces our content service, is away: {elsewhere}/s/content.sock"
                in node.splitd("up", ok=False).stderr
            )
        finally:
            node.clear()
