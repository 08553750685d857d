"""Containers whose layers the kernel mounts: the process that mounted them may be killed, and the machine may go down."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
from pathlib import Path

import pytest

from deploy.samples import Image, Registry, busybox_layer
from services.oci import platforms
from services.oci.digests import digest_of
from services.oci.media_types import CONFIG, EROFS_LAYER, MANIFEST
from tests.support import Node, eventually, mounts_below

pytestmark = [pytest.mark.node, pytest.mark.root, pytest.mark.timeout(600)]

NAMES = [f"c{number}" for number in range(10)]
EROFS = ("--snapshotter", "erofs")
PASSWD = "root:x:0:0:root:/root:/bin/sh\n"
COMMAND = ("sh", "-c", "cat /etc/passwd && exec sleep 1000")


@pytest.fixture(scope="module")
def box(node: Node, registry: Registry) -> str:
    """The reference of busybox, pulled as an erofs layer."""
    reference = f"{registry.host}/box:1"
    node.ctr("images", "pull", "--plain-http", *EROFS, reference)
    return reference


def layers(node: Node) -> dict[str, str]:
    """The mounted layers: where, and the kernel's number of the mount. Two at one place are an error."""
    found: dict[str, str] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        number, _, _, _, point, *_ = line.split()
        if point.startswith(f"{node.root}/snapshots/erofs/mounts/"):
            assert point not in found, f"{point} is mounted twice"
            found[point] = number
    return found


def lowers(node: Node, key: str) -> list[str]:
    """What the mounts of a snapshot stand on."""
    said = node.out("snapshots", *EROFS, "mounts", "/x", key)
    options = said.split(" -o ")[1].split()[0].split(",")
    (found,) = [option for option in options if option.startswith("lowerdir=")]
    return found.removeprefix("lowerdir=").split(":")


def reads(node: Node, name: str, serial: str) -> str:
    """What a program in a container reads of its layer."""
    return node.out("tasks", "exec", "--exec-id", f"e{serial}", name, "cat", "/etc/passwd")


def test_containers_run_on_when_the_process_that_mounted_their_layers_is_killed(node: Node, box: str) -> None:
    """Their mounts are found again, and no second ones are made. What a container wrote is committed then, and its layer
    is let go when nothing needs it.
    """
    for name in NAMES:
        node.ctr("run", "-d", *EROFS, box, name, *COMMAND)
    before, mounted = node.tasks(), layers(node)
    assert mounted
    node.kill("snapshots")
    assert reads(node, NAMES[0], "away") == PASSWD
    node.wait_healthy()
    assert node.tasks() == before
    assert {each for name in NAMES for each in lowers(node, name)} == set(mounted)
    assert layers(node) == mounted
    node.ctr("run", "--rm", *EROFS, box, "new", "true")
    assert layers(node) == mounted
    assert reads(node, NAMES[1], "back") == PASSWD

    node.ctr("tasks", "exec", "--exec-id", "write", NAMES[0], "sh", "-c", "echo written >/etc/written; rm /etc/passwd")
    node.ctr("tasks", "kill", "-s", "SIGKILL", NAMES[0])
    eventually(lambda: node.tasks()[NAMES[0]][1] == "STOPPED", f"{NAMES[0]} is not STOPPED")
    node.ctr("tasks", "rm", NAMES[0])
    node.kill("snapshots")
    node.wait_healthy()
    node.ctr("snapshots", *EROFS, "commit", "committed", NAMES[0])
    node.ctr("snapshots", *EROFS, "view", "seen", "committed")
    upper, lower = lowers(node, "seen")
    assert Path(upper, "etc/written").read_text() == "written\n"
    assert Path(lower, "etc/passwd").read_text() == PASSWD
    assert layers(node).items() > mounted.items()
    for key in ("seen", "committed"):
        node.ctr("snapshots", *EROFS, "rm", key)
    eventually(lambda: layers(node) == mounted, "the layer of the commit is still mounted")
    node.ctr("containers", "rm", NAMES[0])
    assert node.tasks() == {name: before[name] for name in NAMES[1:]}


def test_ctr_lists_the_snapshotter_and_its_differ(node: Node) -> None:
    """As with containerd, whose docs say to look for both."""
    rows = [line.split() for line in node.out("plugins", "ls").splitlines()]
    assert {row[0] for row in rows if row[1:2] == ["erofs"] and row[-1] == "ok"} == {
        "io.containerd.snapshotter.v1",
        "io.containerd.differ.v1",
    }


def shared(node: Node, name: str) -> set[int]:
    """The inodes of a file of all layers."""
    return {path.stat().st_ino for path in (node.root / "snapshots/erofs/snapshots").glob(f"*/erofs/{name}")}


def test_a_pull_by_the_node_makes_the_layer_that_a_client_makes(node: Node, box: str) -> None:
    """ctr 1.6 prepares, applies and commits by itself. The node's own pull, in another namespace, unpacks the layer, too:
    tar and index are the same.
    """
    before = [shared(node, name) for name in ("data", "index")]
    node.splitd("pull", "--plain-http", *EROFS, "--namespace", "other", box)
    assert [shared(node, name) for name in ("data", "index")] == before
    node.ctr("images", "rm", "--sync", box, namespace="other")


def changed(root: Path) -> None:
    """What a container does to files of its image, at a time that is always the same."""
    (root / "d/e").mkdir(parents=True)
    (root / "d/e/f").write_text("new\n")
    os.link(root / "d/e/f", root / "d/link")
    (root / "etc/passwd").unlink()
    (root / "etc/group").chmod(0o600)
    shutil.rmtree(root / "bin")
    (root / "bin").mkdir()
    (root / "bin/sh").symlink_to("/d/e/f")
    for name in ("etc/group", "d/e/f", "d/e", "d", "bin/sh", "bin", "etc"):
        os.utime(root / name, (1_500_000_000, 1_500_000_000), follow_symlinks=False)


def test_a_difference_is_that_of_overlayfs(node: Node, box: str, place: Path) -> None:
    """Clients make layers of what containers wrote: the same bytes."""
    node.ctr("images", "pull", "--plain-http", box)
    made = []
    for name in ("erofs", "overlayfs"):
        chosen, at = ("--snapshotter", name), place / name
        at.mkdir()
        rows = [line.split() for line in node.out("snapshots", *chosen, "ls").splitlines()[1:]]
        committed = {row[0] for row in rows if row[-1] == "Committed"}
        (top,) = committed - {row[1] for row in rows if row[-1] == "Committed"}
        mount = node.out("snapshots", *chosen, "prepare", "--target", at, "difference", top)
        subprocess.run(["sh", "-ec", mount], check=True)
        try:
            changed(at)
        finally:
            subprocess.run(["umount", at], check=True)
        of = ("diff", "--media-type", "application/vnd.oci.image.layer.v1.tar", "difference")
        made.append(node.ctr("snapshots", *chosen, *of, text=False).stdout)
        node.ctr("snapshots", *chosen, "rm", "difference")
    assert made[0] == made[1]
    with tarfile.open(fileobj=io.BytesIO(made[0])) as layer:
        assert {"etc/.wh.passwd", "d/e/f", "d/link", "bin/sh", "etc/group"} <= set(layer.getnames())


def test_a_node_that_is_down_has_nothing_mounted(node: Node, box: str) -> None:
    """Containers run on, since their mounts are their own. Layers are mounted again when they are asked for."""
    running = node.tasks()
    assert layers(node)
    node.down(containers=False)
    assert not layers(node)
    node.up()
    assert node.tasks() == running
    assert reads(node, NAMES[1], "down") == PASSWD
    assert node.out("run", "--rm", *EROFS, box, "after", "cat", "/etc/passwd") == PASSWD


def test_a_layer_that_somebody_unmounted_is_mounted_again(node: Node, box: str) -> None:
    """Before a client is told where it is: over an empty directory it would see an image without files."""
    assert lowers(node, NAMES[1]) == [*layers(node)]
    subprocess.run(["umount", *layers(node)], check=True)
    assert not layers(node)
    assert lowers(node, NAMES[1]) == [*layers(node)]
    assert Path(lowers(node, NAMES[1])[0], "etc/passwd").read_text() == PASSWD


def unpacked(node: Node) -> set[str]:
    """The diff ids of the layers that are there."""
    return {f"sha256:{path.name}" for path in (node.root / "snapshots/erofs/layers").iterdir()}


def packed(layer: bytes, place: Path) -> Image:
    """An image whose layer is an EROFS image, as containerd 2 makes them."""
    (place / "tree").mkdir()
    subprocess.run(["tar", "-x", "-C", place / "tree"], input=layer, check=True)
    subprocess.run(["mkfs.erofs", "--quiet", place / "layer", place / "tree"], check=True)
    blob = (place / "layer").read_bytes()
    of = {"architecture": platforms.default().architecture, "os": "linux", "os.features": ["erofs"]}
    config = json.dumps({**of, "config": {}, "rootfs": {"type": "layers", "diff_ids": [digest_of(blob)]}}).encode()

    def described(media_type: str, data: bytes) -> dict[str, object]:
        return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}

    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": described(CONFIG, config),
        "layers": [described(EROFS_LAYER, blob)],
    }
    data = json.dumps(manifest).encode()
    return Image(MANIFEST, digest_of(data), {digest_of(each): each for each in (blob, config, data)})


@pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="no mkfs.erofs (erofs-utils)")
def test_an_image_of_containerd_2s_own_layers_runs(node: Node, registry: Registry, place: Path) -> None:
    """The blob is what the kernel mounts."""
    found = packed(busybox_layer(), place)
    reference = registry.push(found, "packed:1")
    machine = str(platforms.default())
    asked = ("--plain-http", "--platform", machine.replace("linux", "linux(+erofs)"))
    node.splitd("pull", *asked, reference)  # no other snapshotter takes it
    assert found.layers[0] in unpacked(node)
    assert node.out("run", "--rm", *EROFS, reference, "packed", "/bin/cat", "/etc/passwd") == PASSWD
    said = node.splitd("pull", "--snapshotter", "overlayfs", *asked, reference, ok=False).stderr
    assert "can be unpacked by the snapshotter erofs only" in said
    said = node.splitd("pull", "--plain-http", *EROFS, reference).stderr
    assert f"for {asked[2]}, not for {machine}" in said
    node.ctr("images", "rm", "--sync", reference)


def test_every_container_starts_after_a_reboot(node: Node, box: str, registry: Registry) -> None:
    """Nothing is mounted then, nothing runs, and STATE is empty. When all are removed, nothing of them is left."""
    there = node.out("containers", "ls", "-q").split()
    for name in {*NAMES} - {*there}:
        node.ctr("containers", "create", *EROFS, box, name, "sleep", "1000")  # it would take -c for its own
    containers = [pid for pid, _ in node.tasks().values()]
    for pid in [node.supervisord(), *node.remains(), *containers]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    eventually(lambda: not node.remains(), "processes of the node are left")
    for point in mounts_below(node.state) + mounts_below(node.root):
        eventually(
            lambda point=point: not subprocess.run(["umount", point], check=False, capture_output=True).returncode,  # type: ignore[misc]
            f"{point} is in use",
        )
    shutil.rmtree(node.state)

    node.up()
    assert not node.tasks()
    assert not layers(node)
    for name in NAMES:
        node.ctr("tasks", "start", "-d", name)
    assert reads(node, NAMES[0], "reboot") == PASSWD
    assert {state for _, state in node.tasks().values()} == {"RUNNING"}
    assert len(node.tasks()) == len(NAMES)
    assert {each for name in NAMES for each in lowers(node, name)} == set(layers(node))

    for name in NAMES:
        node.ctr("tasks", "rm", "-f", name)
        node.ctr("containers", "rm", name)
    node.ctr("images", "rm", "--sync", box)
    eventually(lambda: not layers(node), "layers are still mounted")
    things = node.root / "snapshots/erofs/snapshots"
    eventually(lambda: not list(things.iterdir()), "layers are still there")
