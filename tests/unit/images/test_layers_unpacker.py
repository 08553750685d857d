"""Unpacking layers to snapshots, also on snapshotters that behave unusually."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.images.documents import manifests
from services.images.layers.unpacker import Origin, Unpacker
from services.images.transfer import Applied, IngestRestarted, NeedsLowerLayers, Unpacking, UnpackModes
from services.kit import errors
from services.oci import digests, media_types
from services.oci.descriptors import Descriptor
from services.oci.digests import digest_of
from services.oci.mounts import Mount
from services.oci.platforms import Platform, default
from services.snapshots.diff.inherit import Unnamed
from tests.support import turns
from tests.unit.images.memory_node import MemoryNode, MemorySnapshotter

LAYERS = [
    Descriptor(
        "application/vnd.oci.image.layer.v1.tar+gzip",
        digest_of(b"z" + name),
        10,
        {"containerd.io/snapshot/x": "y", "other": "z"},
    )
    for name in (b"one", b"two", b"three")
]
DIFF_IDS = [digest_of(name) for name in (b"one", b"two", b"three")]
CHAIN = digests.chain_ids(DIFF_IDS)
SNAP = (Unpacking(default(), "snap"),)


@pytest.fixture(params=["in order", "side by side"])
def node(request: pytest.FixtureRequest, tmp_path: Path) -> MemoryNode:
    node = MemoryNode(tmp_path)
    node.how = UnpackModes(follows=True, side_by_side=request.param == "side by side")
    node.diff_ids = {layer.digest: diff_id for layer, diff_id in zip(LAYERS, DIFF_IDS, strict=True)}
    for name in (b"one", b"two", b"three"):
        node.put(b"z" + name)
    return node


@pytest.fixture
def snap(node: MemoryNode) -> MemorySnapshotter:
    found: MemorySnapshotter = node.snapshotter("snap")
    return found


class Arriving:
    """The blobs of an image, each of which becomes ``available`` at some time."""

    def __init__(self, available: Callable[[int], Awaitable[None]]) -> None:
        self.lowest: int | None = None
        self._available = available

    def wanted(self, number: int) -> None:
        if self.lowest is None:
            self.lowest = number

    async def begun(self, number: int) -> None:
        assert self.lowest is not None
        assert number >= self.lowest
        await self._available(number)

    async def there(self, number: int) -> None:
        await self._available(number)

    async def config_there(self) -> None:
        return

    @contextlib.asynccontextmanager
    async def ingest(self, number: int) -> AsyncIterator[None]:
        yield


def config(node: MemoryNode, platform: Platform = default(), **rootfs: Any) -> Descriptor:
    document = json.dumps(
        {**manifests.platform_to_json(platform), "rootfs": {"type": "layers", "diff_ids": DIFF_IDS, **rootfs}}
    ).encode()
    return Descriptor(media_types.CONFIG, node.put(document), len(document))


async def test_each_layer_becomes_a_snapshot_on_the_one_below(node: MemoryNode, snap: MemorySnapshotter) -> None:
    """The snapshot is labelled so that other pulls find it; the blob gets its diff id, and the config the topmost
    snapshot.
    """
    found = config(node)
    told: list[tuple[str, int]] = []
    assert (
        await Unpacker().unpack(node, found, LAYERS, SNAP, extracting=lambda d, n: told.append((d.digest, n)))
        == CHAIN[-1]
    )
    assert [(name, parent) for name, (parent, _) in snap.committed.items()] == list(
        zip(CHAIN, ["", *CHAIN], strict=False)
    )
    assert snap.committed[CHAIN[1]][1] == {
        "containerd.io/snapshot.ref": CHAIN[1],
        "containerd.io/snapshot/diff-id": DIFF_IDS[1],
        "containerd.io/snapshot/parent-chain-id": CHAIN[0],
        "containerd.io/snapshot/x": "y",
    }
    assert "containerd.io/snapshot/parent-chain-id" not in snap.committed[CHAIN[0]][1]
    assert not snap.active
    assert [node.labels[layer.digest] for layer in LAYERS] == [
        {"containerd.io/uncompressed": diff_id} for diff_id in DIFF_IDS
    ]
    assert node.labels[found.digest] == {"containerd.io/gc.ref.snapshot.snap": CHAIN[-1]}
    assert sorted(told) == sorted((layer.digest, n) for layer in LAYERS for n in (0, 10))


async def test_an_image_does_not_say_whose_its_files_are(node: MemoryNode, snap: MemorySnapshotter) -> None:
    """Its labels do not set the owner of its files, nor other properties of a snapshot that the node decides; a client
    that prepares a snapshot itself may set them (containerd 2.4.1).
    """
    prefix = "containerd.io/snapshot/"
    said = {
        f"{prefix}{name}": "0:1000:65536"
        for name in ("uidmapping", "gidmapping", "overlay.upperdir", "max-size", "parent-chain-id", "diff-id")
    } | {
        "containerd.io/snapshot.ref": "x",
        "containerd.io/gc.root": "x",
        f"{prefix}stargz/toc.digest": "kept",
        f"{prefix}UIDMapping": "kept: another key",
    }
    layers = [replace(layer, annotations=said) for layer in LAYERS]
    await Unpacker().unpack(node, config(node), layers, SNAP)
    for below, diff_id, chain_id in zip(["", *CHAIN], DIFF_IDS, CHAIN, strict=False):
        assert snap.committed[chain_id][1] == {
            "containerd.io/snapshot.ref": chain_id,
            f"{prefix}diff-id": diff_id,
            **({f"{prefix}parent-chain-id": below} if below else {}),
            f"{prefix}stargz/toc.digest": "kept",
            f"{prefix}UIDMapping": "kept: another key",
        }


async def test_existing_layers_are_not_fetched(node: MemoryNode, snap: MemorySnapshotter) -> None:
    """Its blob need not even exist."""
    snap.committed[CHAIN[0]] = ("", {})
    asked: list[int] = []

    async def available(number: int) -> None:
        asked.append(number)

    await Unpacker().unpack(node, config(node), LAYERS, SNAP, blobs=Arriving(available))
    assert set(asked) == {1, 2}
    assert node.applied == [layer.digest for layer in LAYERS[1:]]


@pytest.mark.parametrize("there", [1, 3])
async def test_a_layer_that_its_snapshotter_has_lost_is_an_error(
    node: MemoryNode, snap: MemorySnapshotter, there: int
) -> None:
    """The records name the snapshot, but a container of it could not start. The error names the command that forgets
    such records.
    """
    for number in range(there):
        snap.committed[CHAIN[number]] = (CHAIN[number - 1] if number else "", {})
        snap.lost.add(CHAIN[number])
    if there == 1:
        node.how = node.how._replace(side_by_side=True)  # in order, the layer above cannot be begun
    with pytest.raises(
        errors.FailedPrecondition,
        match=(
            f"layer {LAYERS[there - 1].digest}: snapshot {CHAIN[there - 1]} is recorded, and snap does not have "
            "it.*: splitd gc --release forgets what was lost, then pull"
        ),
    ):
        await Unpacker().unpack(node, config(node), LAYERS, SNAP)
    assert not node.applied


async def test_a_snapshotter_may_make_the_layer_itself(node: MemoryNode, snap: MemorySnapshotter) -> None:
    """stargz commits the target and says that it exists."""
    node.how = node.how._replace(side_by_side=False)  # no such one rebases
    snap.makes = set(CHAIN)
    assert await Unpacker().unpack(node, config(node), LAYERS, SNAP) == CHAIN[-1]
    assert not node.applied


def elsewhere(snap: MemorySnapshotter) -> None:
    """Let the layers but for the lowest be there on other parents."""
    for number, diff_id in enumerate(DIFF_IDS[1:]):
        snap.committed[f"other-{number}"] = ("", {"containerd.io/snapshot/diff-id": diff_id})


async def test_layers_that_are_there_on_other_parents_are_asked_for(
    node: MemoryNode, snap: MemorySnapshotter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is prepared on its parent, once that is there; the snapshotter says that it has it."""
    node.how = UnpackModes(follows=True, side_by_side=True, shares=True)
    elsewhere(snap)
    snap.makes = set(CHAIN[1:])
    prepare, parents = snap.prepare, list[str]()

    async def noted(key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> Sequence[Mount]:
        assert not parent or parent in snap.committed
        parents.append(parent)
        return await prepare(key, parent, labels)

    monkeypatch.setattr(snap, "prepare", noted)
    assert await Unpacker().unpack(node, config(node), LAYERS, SNAP) == CHAIN[-1]
    assert parents == ["", *CHAIN[:-1]]
    assert node.applied == [LAYERS[0].digest]
    assert not snap.active
    assert not node.labels[LAYERS[1].digest], "nobody has looked at these bytes"


async def test_once_a_layer_is_not_shared_the_others_do_not_wait(
    node: MemoryNode, snap: MemorySnapshotter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are unpacked side by side, as if they were not there."""
    node.how = UnpackModes(follows=True, side_by_side=True, shares=True)
    elsewhere(snap)
    alone: dict[str, bool] = {}
    apply = node.apply

    async def noted(layer: Descriptor, mounts: Sequence[Mount], **how: Any) -> Applied:
        alone[layer.digest] = how["alone"]
        return await apply(layer, mounts, **how)

    monkeypatch.setattr(node, "apply", noted)
    assert await Unpacker().unpack(node, config(node), LAYERS, SNAP) == CHAIN[-1]
    assert alone == dict(zip([layer.digest for layer in LAYERS], [False, True, True], strict=True))
    assert [snap.committed[name][0] for name in CHAIN] == ["", *CHAIN[:-1]]
    assert not snap.active


async def test_read_only_mounts_are_committed_as_they_are(node: MemoryNode, snap: MemorySnapshotter) -> None:
    snap.read_only = True
    await Unpacker().unpack(node, config(node), LAYERS, SNAP)
    assert not node.applied
    assert list(snap.committed) == CHAIN
    assert not node.labels[LAYERS[0].digest]


async def test_a_diff_id_that_cannot_be_one_names_no_snapshot(node: MemoryNode, snap: MemorySnapshotter) -> None:
    """The lowest diff id would be the name of a snapshot, perhaps of another image's."""
    snap.committed["somebody-elses"] = ("", {})
    with pytest.raises(errors.InvalidArgument, match='diff id "somebody-elses": invalid checksum digest format'):
        await Unpacker().unpack(node, config(node, diff_ids=["somebody-elses", *DIFF_IDS[1:]]), LAYERS, SNAP)
    assert list(snap.committed) == ["somebody-elses"]


async def test_a_wrong_diff_id_is_an_error_and_leaves_nothing(node: MemoryNode, snap: MemorySnapshotter) -> None:
    node.diff_ids[LAYERS[1].digest] = DIFF_IDS[0]
    with pytest.raises(errors.Unknown, match="wrong diff id"):
        await Unpacker().unpack(node, config(node), LAYERS, SNAP)
    assert list(snap.committed) == CHAIN[:1]
    assert not snap.active


async def test_a_layer_that_cannot_be_applied_names_itself(node: MemoryNode, snap: MemorySnapshotter) -> None:
    del node.diff_ids[LAYERS[0].digest]
    what = re.escape(f"failed to extract layer ({LAYERS[0].media_type} {LAYERS[0].digest}) to snap as ")
    with pytest.raises(errors.NotFound, match=f'{what}"extract-.* {CHAIN[0]}": content'):
        await Unpacker().unpack(node, config(node), LAYERS, SNAP)
    assert not snap.active


async def test_layers_side_by_side_do_not_wait_for_each_other(node: MemoryNode, snap: MemorySnapshotter) -> None:
    """The topmost is unpacked first if its blob is there first; the chain is committed in order nevertheless."""
    node.how = UnpackModes(follows=True, side_by_side=True)
    there = [asyncio.Event() for _ in LAYERS]

    async def available(number: int) -> None:
        await there[number].wait()

    unpacking = asyncio.ensure_future(Unpacker().unpack(node, config(node), LAYERS, SNAP, blobs=Arriving(available)))
    for number in reversed(range(len(LAYERS))):
        assert not snap.committed
        there[number].set()
        await turns(30)
    assert node.applied == [layer.digest for layer in reversed(LAYERS)]
    assert await unpacking == CHAIN[-1]
    assert [(name, parent) for name, (parent, _) in snap.committed.items()] == list(
        zip(CHAIN, ["", *CHAIN], strict=False)
    )


@pytest.mark.parametrize("by_another", [None, "lowest", "below", "below, at the end"])
async def test_unnamed_directories_take_attributes_from_the_layers_below(
    by_another: str | None, node: MemoryNode, snap: MemorySnapshotter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This is done before the commit, and only if the layer was unpacked alone. If another pull made some of the layers
    below meanwhile, a view gives their directories.
    """
    node.unnamed = {LAYERS[0].digest: (Unnamed(b"/zero"),), LAYERS[2].digest: (Unnamed(b"/var"), Unnamed(b"/usr"))}
    prepare, commit, keys = snap.prepare, snap.commit, dict[str, str]()
    theirs = {"lowest": 0, "below": 1}.get(by_another or "")

    async def noted(key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> Sequence[Mount]:
        target = (labels or {})["containerd.io/snapshot.ref"]
        if theirs is not None and target == CHAIN[theirs]:
            snap.committed[target] = ("", {})
        keys[target] = key
        return await prepare(key, parent, labels)

    async def late(name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:
        if by_another == "below, at the end" and name == CHAIN[1]:
            snap.committed[name] = (CHAIN[0], {})
        await commit(name, key, labels, parent)

    monkeypatch.setattr(snap, "prepare", noted)
    monkeypatch.setattr(snap, "commit", late)
    await Unpacker().unpack(node, config(node), LAYERS, SNAP)
    below = [CHAIN[1]] if by_another in ("lowest", "below") else [keys[CHAIN[1]], keys[CHAIN[0]]]
    assert node.inherited == ([(below, (Unnamed(b"/var"), Unnamed(b"/usr")))] if node.how.side_by_side else [])
    assert set(snap.committed) == set(CHAIN)
    assert not snap.active


async def test_a_layer_that_cannot_inherit_is_unpacked_on_those_below(
    node: MemoryNode, snap: MemorySnapshotter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is unpacked again when they are there; layers above it wait, and nothing of the first attempt is left."""
    node.how = node.how._replace(side_by_side=True)
    node.unnamed = {LAYERS[1].digest: (Unnamed(b"/var"),)}
    alone: list[tuple[str, bool]] = []
    apply = node.apply

    async def noted(layer: Descriptor, mounts: Sequence[Mount], **how: Any) -> Applied:
        alone.append((layer.digest, how["alone"]))
        return await apply(layer, mounts, **how)

    async def late(*_: Any) -> None:
        raise NeedsLowerLayers

    monkeypatch.setattr(node, "apply", noted)
    monkeypatch.setattr(node, "inherit", late)
    assert await Unpacker().unpack(node, config(node), LAYERS, SNAP) == CHAIN[-1]
    assert sorted(alone) == sorted(
        [(LAYERS[0].digest, False), (LAYERS[1].digest, True), (LAYERS[1].digest, False), (LAYERS[2].digest, True)]
    )
    assert [(name, parent) for name, (parent, _) in snap.committed.items()] == list(
        zip(CHAIN, ["", *CHAIN], strict=False)
    )
    assert not snap.active


async def test_a_layer_in_another_place_than_the_one_below_is_unpacked_on_that(
    node: MemoryNode, snap: MemorySnapshotter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Snapshots without a parent are shared out between two backends, and none can be put onto one of the other."""
    node.how = node.how._replace(side_by_side=True)
    prepare, commit, places = snap.prepare, snap.commit, dict[str, int]()

    async def shared_out(key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> Sequence[Mount]:
        found = await prepare(key, parent, labels)
        places[key] = places[parent] if parent else len(places) % 2
        return found

    async def only_there(name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:
        if parent in places and places[parent] != places[key]:
            raise errors.FailedPrecondition(f"parent snapshot {parent} is elsewhere")
        await commit(name, key, labels, parent)
        places[name] = places[key]

    monkeypatch.setattr(snap, "prepare", shared_out)
    monkeypatch.setattr(snap, "commit", only_there)
    assert await Unpacker().unpack(node, config(node), LAYERS, SNAP) == CHAIN[-1]
    assert [(name, parent) for name, (parent, _) in snap.committed.items()] == list(
        zip(CHAIN, ["", *CHAIN], strict=False)
    )
    assert {places[name] for name in CHAIN} == {0}
    assert len(node.applied) > len(LAYERS)
    assert not snap.active


async def test_a_restarted_ingest_is_unpacked_again(
    node: MemoryNode, snap: MemorySnapshotter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is unpacked onto another snapshot when its blob is there."""
    apply, onto = node.apply, list[str]()

    async def once(layer: Descriptor, mounts: Sequence[Mount], **how: Any) -> Applied:
        onto.append(mounts[0].source)
        if len(onto) == 1:
            raise IngestRestarted
        return await apply(layer, mounts, **how)

    monkeypatch.setattr(node, "apply", once)
    assert await Unpacker().unpack(node, config(node), LAYERS, SNAP) == CHAIN[-1]
    assert len(set(onto)) == 4
    assert not snap.active


async def test_a_snapshotter_may_want_to_know_where_layers_come_from(node: MemoryNode, snap: MemorySnapshotter) -> None:
    """This is as in stargz: if its configuration says so, it gets the reference, the manifest, the layer and those
    above it.
    """
    origin = Origin("localhost/box:1", digest_of(b"manifest"))
    node.how = node.how._replace(wants_origin=True)
    await Unpacker().unpack(node, config(node), LAYERS, SNAP, origin=origin)
    told = {
        key.removeprefix("containerd.io/snapshot/cri."): value
        for key, value in snap.committed[CHAIN[1]][1].items()
        if "/cri." in key
    }
    assert told == {
        "image-ref": "localhost/box:1",
        "manifest-digest": digest_of(b"manifest"),
        "layer-digest": LAYERS[1].digest,
        "image-layers": f"{LAYERS[1].digest},{LAYERS[2].digest}",
    }


def test_a_label_holds_as_many_layers_as_fit() -> None:
    """The number of layers has no bound, but a label has one of 4096 bytes."""
    many = [Descriptor(LAYERS[0].media_type, digest_of(str(n).encode()), 1) for n in range(100)]
    layers = Origin("x", "y").annotated(many)[3].annotations["containerd.io/snapshot/cri.image-layers"].split(",")
    assert layers == [layer.digest for layer in many[3 : 3 + len(layers)]]
    assert len(layers) == (4096 - len("containerd.io/snapshot/cri.image-layers") + 1) // 72
    assert [
        len(each.annotations["containerd.io/snapshot/cri.image-layers"].split(","))
        for each in Origin("x", "y").annotated(many)[-2:]
    ] == [2, 1]


async def test_a_commit_that_another_was_faster_with_is_fine(node: MemoryNode, snap: MemorySnapshotter) -> None:
    async def available(number: int) -> None:
        snap.committed.setdefault(CHAIN[number], ("", {}))

    assert await Unpacker().unpack(node, config(node), LAYERS, SNAP, blobs=Arriving(available)) == CHAIN[-1]
    assert not snap.active


async def test_other_systems_and_other_kinds_are_left_packed(node: MemoryNode) -> None:
    for found in (config(node, Platform("windows", "amd64")), config(node, type="other")):
        assert not await Unpacker().unpack(node, found, LAYERS, SNAP)
    assert not await Unpacker().unpack(node, config(node), LAYERS, ())
    assert not node.applied
    with pytest.raises(errors.Unknown, match="number of layers and diffIDs don't match: 2 != 3"):
        await Unpacker().unpack(node, config(node), LAYERS[:2], SNAP)


async def test_two_that_want_the_same_layers_unpack_them_once(node: MemoryNode, snap: MemorySnapshotter) -> None:
    unpacker = Unpacker()
    going = asyncio.Event()

    async def available(number: int) -> None:
        await going.wait()

    both = [
        asyncio.ensure_future(unpacker.unpack(node, config(node), LAYERS, SNAP, blobs=Arriving(available)))
        for _ in range(2)
    ]
    await asyncio.sleep(0)
    going.set()
    assert await asyncio.gather(*both) == [CHAIN[-1]] * 2
    assert node.applied == [layer.digest for layer in LAYERS]


async def test_a_cancelled_unpacking_removes_its_snapshots(node: MemoryNode, snap: MemorySnapshotter) -> None:
    begun = asyncio.Event()

    async def available(number: int) -> None:
        begun.set()
        await asyncio.sleep(1000)

    task = asyncio.ensure_future(Unpacker().unpack(node, config(node), LAYERS, SNAP, blobs=Arriving(available)))
    await begun.wait()
    assert snap.active
    task.cancel()
    await asyncio.wait((task,))
    assert not snap.active


def test_unpackings_are_for_this_system_by_the_usual_snapshotter_unless_another_is_named() -> None:
    wanted = [
        Unpacking(Platform("windows", "amd64")),
        Unpacking(default()),
        Unpacking(Platform("linux", "s390x"), "native"),
    ]
    unpacker = Unpacker()
    assert unpacker.accepted(wanted) == [
        Unpacking(default(), "overlayfs"),
        Unpacking(Platform("linux", "s390x"), "native"),
    ]
    assert not unpacker.accepted([])
    with pytest.raises(errors.InvalidArgument, match="unable to initialize unpacker: no unpack platforms defined"):
        unpacker.accepted(wanted[:1])


def test_supported_unpackings_limit_wanted_ones_and_give_the_snapshotter(caplog: pytest.LogCaptureFixture) -> None:
    """This is as in containerd's unpack_config: overlayfs is preferred, else the first snapshotter of the platform;
    entries that are left out are logged.
    """
    here = Unpacking(default())
    assert Unpacker(supported=[Unpacking(default(), "native"), Unpacking(default(), "overlayfs")]).accepted([here]) == [
        Unpacking(default(), "overlayfs")
    ]
    only = Unpacker(
        supported=[
            Unpacking(Platform("windows", "amd64"), "windows"),
            Unpacking(default(), "native"),
            Unpacking(default(), "mine"),
        ]
    )
    assert only.accepted([here]) == [Unpacking(default(), "native")]
    assert only.accepted([here, Unpacking(default(), "overlayfs"), Unpacking(default(), "mine")]) == [
        Unpacking(default(), "native"),
        Unpacking(default(), "mine"),
    ]
    assert f"{default()} is not unpacked by overlayfs: unpack_config allows native, mine" in caplog.text
    with pytest.raises(
        errors.InvalidArgument,
        match=f"no unpack platforms defined: {default()} is not unpacked by .*: unpack_config allows nothing",
    ):
        Unpacker(supported=[Unpacking(Platform("windows", "amd64"), "windows")]).accepted([here])
