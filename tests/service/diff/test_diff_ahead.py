"""Layers that are unpacked before they are asked for: which these are, and what becomes of them."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from api.containerd.services.content.v1 import content_pb2
from services.kit import errors, rpc
from services.oci.digests import digest_of
from services.oci.mounts import Mount
from services.snapshots.diff import ahead, note
from services.snapshots.diff.ahead import Ahead
from services.snapshots.diff.workers import Applied, Appliers
from tests.suites.diff_layers import BASE
from tests.suites.diff_tars import directory, opaque, reg, tar, whiteout
from tests.support import eventually_async

pytestmark = [pytest.mark.once, pytest.mark.root]

HEADERS = {rpc.NAMESPACE: "mine"}
SECOND = tar(reg(b"usr/lib/new", b"second"), whiteout(b"etc/group"), opaque(b""))
THIRD = tar(directory(b"srv/"), reg(b"srv/third", b"third"))
FOURTH = tar(reg(b"srv/fourth", b"fourth"))
LAYERS = [BASE, SECOND, THIRD, FOURTH]


class Content:
    """What Ahead asks of the caller's content."""

    def __init__(self, place: Path, layers: Sequence[bytes]) -> None:
        self._place = place
        self.manifests = [
            content_pb2.Info(
                labels={f"containerd.io/gc.ref.content.l.{n}": digest_of(layer) for n, layer in enumerate(layers)}
            )
        ]
        self.read: list[str] = []
        for layer in layers:
            (place / digest_of(layer)).write_bytes(layer)

    async def labelled(self, key: str, value: str, headers: object) -> list[content_pb2.Info]:
        return [each for each in self.manifests if each.labels.get(key) == value]

    @contextlib.asynccontextmanager
    async def reading(self, digest: str, headers: object) -> AsyncIterator[int]:
        self.read.append(digest)
        try:
            fd = os.open(self._place / digest, os.O_RDONLY)
        except FileNotFoundError:
            raise errors.NotFound(f"content {digest}") from None
        try:
            yield fd
        finally:
            os.close(fd)


class Machine:
    """A snapshotter's directories, and what is unpacked ahead for them."""

    def __init__(self, place: Path, appliers: Appliers, **how: float) -> None:
        self.content = Content(place, LAYERS)
        self.root = place / "overlayfs"
        (self.root / "snapshots").mkdir(parents=True)
        (self.root / note.WANTED).touch()
        self.staged = place / "ahead" / "layers"
        self.ahead = Ahead(appliers, self.content, place / "ahead", together=2, **how)  # type: ignore[arg-type]
        self.lowers: list[str] = []

    def upper(self) -> str:
        """The directory of a new snapshot."""
        made = self.root / "snapshots" / str(len(self.lowers) + 1) / "fs"
        made.mkdir(parents=True)
        self.lowers.insert(0, str(made))
        return str(made)

    def lowest(self) -> list[Mount]:
        return [Mount("bind", self.upper(), ("rw", "rbind"))]

    def above(self, *options: str) -> list[Mount]:
        below = ":".join(self.lowers)
        return [
            Mount(
                "overlay", "overlay", (f"workdir=x{below}", f"upperdir={self.upper()}", f"lowerdir={below}", *options)
            )
        ]

    async def begun(self, target: Sequence[Mount], appliers: Appliers) -> None:
        """Apply the lowest layer, and wait until the others are unpacked as far as they will be."""
        async with self.ahead.around(digest_of(BASE), target, HEADERS):
            async with self.content.reading(digest_of(BASE), HEADERS) as blob:
                await appliers.apply(target, blob, detect=True)
            await eventually_async(self.idle, "nothing is unpacked ahead")

    async def idle(self) -> bool:
        return all(work.done() for image in self.ahead._images for _, work in image.begun.values())

    async def taken(self, layer: bytes, target: Sequence[Mount], namespace: str = "mine") -> Applied | None:
        headers = {rpc.NAMESPACE: namespace}
        async with self.ahead.around(digest_of(layer), target, headers):
            return await self.ahead.taken(digest_of(layer), target, headers)

    async def cleared(self) -> bool:
        return not os.listdir(self.staged)


@pytest_asyncio.fixture
async def appliers(place: Path) -> AsyncIterator[Appliers]:
    (place / "scratch").mkdir()
    made = Appliers(str(place / "scratch"))
    yield made
    await made.aclose()


@pytest_asyncio.fixture
async def machine(place: Path, appliers: Appliers) -> AsyncIterator[Machine]:
    made = Machine(place, appliers)
    yield made
    await made.ahead.aclose()


async def test_layers_above_the_lowest_are_there_when_they_are_asked_for(machine: Machine, appliers: Appliers) -> None:
    """Each is moved to its place, with its note. Directories that it does not name are as those below."""
    await machine.begun(machine.lowest(), appliers)
    for layer in LAYERS[1:]:
        target = machine.above("index=off")
        applied = await machine.taken(layer, target)
        assert applied is not None
        assert (applied.diff_id, applied.size) == (digest_of(layer), len(layer))
        noted = note.read(os.path.dirname(target[0].option("upperdir")))
        assert noted is not None
        assert noted.diff_id == digest_of(layer)
    fourth, third, second, lowest = map(Path, machine.lowers)
    assert (second / "usr/lib/new").read_bytes() == b"second"
    assert [(second / each).stat().st_gid for each in ("usr", "usr/lib")] == [0, 7]
    assert (second / "etc").stat().st_mode == (lowest / "etc").stat().st_mode
    assert (second / "etc/group").is_char_device()
    assert os.getxattr(second, "trusted.overlay.opaque") == b"y"
    assert [(each / "srv").exists() for each in (third, fourth)] == [True, True]
    assert machine.content.read == list(map(digest_of, LAYERS)), "each blob was read once"
    await eventually_async(machine.cleared, "directories stay")
    assert not machine.ahead._images


async def test_another_namespace_gets_nothing_of_it(machine: Machine, appliers: Appliers) -> None:
    await machine.begun(machine.lowest(), appliers)
    assert await machine.taken(SECOND, machine.above(), "another") is None
    assert await machine.taken(SECOND, machine.above()) is not None


async def test_a_client_that_gives_up_leaves_nothing(place: Path, appliers: Appliers) -> None:
    machine = Machine(place, appliers, wait=0.2)
    await machine.begun(machine.lowest(), appliers)
    await eventually_async(machine.cleared, "directories stay")
    assert await machine.taken(SECOND, machine.above()) is None
    await machine.ahead.aclose()


async def test_what_is_not_begun_is_left_to_whoever_asks(place: Path, appliers: Appliers) -> None:
    """The layers are begun in order, so the topmost of many is not begun if it is asked for first."""
    machine = Machine(place, appliers)
    machine.ahead._room = 0
    target = machine.lowest()
    async with machine.ahead.around(digest_of(BASE), target, HEADERS):
        assert await machine.taken(FOURTH, machine.above()) is None
    assert machine.content.read == []
    machine.ahead._room = 2
    async with machine.ahead.around(digest_of(SECOND), machine.above(), HEADERS):
        await eventually_async(machine.idle, "nothing is unpacked ahead")
    assert machine.content.read == [digest_of(SECOND), digest_of(THIRD)]
    await machine.ahead.aclose()


@pytest.mark.parametrize("why", ["a default ACL below", "an option", "not empty", "another's directory", "no overlay"])
async def test_what_cannot_be_moved_is_unpacked_as_ever(why: str, machine: Machine, appliers: Appliers) -> None:
    """The upper directory is then as it was."""
    await machine.begun(machine.lowest(), appliers)
    if why == "a default ACL below":
        entries = ((1, 7, -1), (4, 5, -1), (32, 5, -1))
        value = struct.pack(
            "<I" + "HHI" * 3, 2, *(n for tag, bits, who in entries for n in (tag, bits, who & 0xFFFFFFFF))
        )
        os.setxattr(f"{machine.lowers[0]}/usr/lib", "system.posix_acl_default", value)
    target = machine.above(*(["userxattr"] if why == "an option" else []))
    upper = Path(target[0].option("upperdir"))
    match why:
        case "not empty":
            (upper / "mine").touch()
        case "another's directory":
            (machine.root / note.WANTED).unlink()
        case "no overlay":
            target = [Mount("bind", str(upper), ("rw", "rbind"))]
    assert await machine.taken(SECOND, target) is None
    assert [path.name for path in upper.iterdir()] == (["mine"] if why == "not empty" else [])
    assert note.read(str(upper.parent)) is None
    await eventually_async(machine.idle, "it is still being unpacked")


async def test_a_layer_that_cannot_be_unpacked_is_left_to_whoever_asks(machine: Machine, appliers: Appliers) -> None:
    """Who asks for it gets its error."""
    broken, missing = b"no tar" * 1000, b"never written"
    machine.content = Content(machine.root.parent, [BASE, broken, THIRD])
    machine.content.manifests[0].labels["containerd.io/gc.ref.content.l.3"] = digest_of(missing)
    machine.ahead._blobs = machine.content  # type: ignore[assignment]
    await machine.begun(machine.lowest(), appliers)
    for layer in (broken, missing):
        assert await machine.taken(layer, machine.above()) is None
    assert await machine.taken(THIRD, machine.above()) is not None


async def test_writes_that_failed_are_not_trusted(
    machine: Machine, appliers: Appliers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of the files may be lost, and nobody else would look: everything is unpacked again."""
    await machine.begun(machine.lowest(), appliers)
    monkeypatch.setattr(ahead, "_synced", lambda disk: False)
    for layer in (SECOND, THIRD):
        assert await machine.taken(layer, machine.above()) is None
    await eventually_async(machine.cleared, "directories stay")


async def test_layers_of_images_that_nobody_described(machine: Machine, appliers: Appliers) -> None:
    """A layer that no manifest has first, or that has the same layer twice: the rest is not unpacked ahead."""
    machine.content.manifests = []
    await machine.begun(machine.lowest(), appliers)
    assert await machine.taken(SECOND, machine.above()) is None
    assert machine.content.read == [digest_of(BASE)]
