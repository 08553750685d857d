"""Layers that are unpacked before they are asked for: which these are, and what becomes of them."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import os
import struct
import threading
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from api.containerd.services.content.v1 import content_pb2
from services.kit import errors, rpc
from services.kit.call import CURRENT, Call
from services.oci.digests import digest_of
from services.oci.mounts import Mount
from services.snapshots.diff import ahead, note
from services.snapshots.diff.ahead import Ahead
from services.snapshots.diff.media import UNCOMPRESSED
from services.snapshots.diff.workers import Applied, Appliers
from tests.suites.diff_layers import BASE
from tests.suites.diff_tars import directory, opaque, pax, reg, tar, whiteout
from tests.support import eventually_async

pytestmark = [pytest.mark.once, pytest.mark.root]

HEADERS = {rpc.NAMESPACE: "mine"}
SECOND = tar(reg(b"usr/lib/new", b"second"), whiteout(b"etc/group"), opaque(b""))
THIRD = tar(directory(b"srv/"), reg(b"srv/third", b"third"))
FOURTH = tar(reg(b"srv/fourth", b"fourth"))
LAYERS = [BASE, SECOND, THIRD, FOURTH]
FILES = {SECOND: {"etc", "usr"}, THIRD: {"srv"}, FOURTH: {"srv"}}


class Content:
    """What Ahead asks of the caller's content."""

    def __init__(self, place: Path, layers: Sequence[bytes]) -> None:
        self._place = place
        self.manifests = [
            content_pb2.Info(
                digest=digest_of(b"manifest"),
                labels={f"containerd.io/gc.ref.content.l.{n}": digest_of(layer) for n, layer in enumerate(layers)},
            )
        ]
        self.labels: dict[str, dict[str, str]] = {}
        self.read: list[str] = []
        self.calls: list[Call | None] = []
        """The calls as parts of which blobs were read."""
        self.endless: set[str] = set()
        """Blobs that never end."""
        for layer in layers:
            self.write(layer)

    def write(self, layer: bytes) -> None:
        (self._place / digest_of(layer)).write_bytes(layer)

    async def labelled(self, key: str, value: str, headers: object) -> list[content_pb2.Info]:
        return [each for each in self.manifests if each.labels.get(key) == value]

    async def info(self, digest: str, headers: object) -> content_pb2.Info:
        try:
            size = (self._place / digest).stat().st_size
        except FileNotFoundError:
            raise errors.NotFound(f"content {digest}") from None
        return content_pb2.Info(digest=digest, size=size, labels=self.labels.get(digest, {}))

    @contextlib.asynccontextmanager
    async def reading(self, digest: str, headers: object) -> AsyncIterator[int]:
        self.read.append(digest)
        self.calls.append(CURRENT.get())
        if digest in self.endless:
            fd, end = os.pipe()
            os.write(end, (self._place / digest).read_bytes()[:1024])
        else:
            fd = end = os.open(self._place / digest, os.O_RDONLY)
        try:
            yield fd
        finally:
            for each in {fd, end}:
                os.close(each)


class Machine:
    """A snapshotter's directories, and what is unpacked ahead for them."""

    def __init__(self, place: Path, appliers: Appliers, layers: Sequence[bytes] = LAYERS, **how: Any) -> None:
        self.content = Content(place, layers)
        self.root = place / "overlayfs"
        (self.root / "snapshots").mkdir(parents=True)
        (self.root / note.WANTED).touch()
        self._place = place / "ahead"
        self.staged = self._place / "layers"
        self.appliers = appliers
        self.ahead = self.started(**how)
        self.lowers: list[str] = []

    def started(self, **how: Any) -> Ahead:
        """A process's."""
        made = Ahead(self.appliers, self.content, self._place, **{"together": 2, **how})  # type: ignore[arg-type]
        self.ahead = made
        return made

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

    async def begun(self, target: Sequence[Mount] | None = None) -> None:
        """Apply the lowest layer, and wait until the others are unpacked as far as they will be."""
        target = target or self.lowest()
        async with self.ahead.around(digest_of(BASE), target, HEADERS):
            async with self.content.reading(digest_of(BASE), HEADERS) as blob:
                await self.appliers.apply(target, blob, detect=True)
            await eventually_async(self.idle, "nothing is unpacked ahead")

    async def idle(self) -> bool:
        return all(
            (not image.left or image.pauses) and all(layer.work.done() for layer in image.begun.values())
            for image in self.ahead._images
        )

    async def taken(
        self, layer: bytes, target: Sequence[Mount], namespace: str = "mine", *, detect: bool = True
    ) -> Applied | None:
        headers = {rpc.NAMESPACE: namespace}
        async with self.ahead.around(digest_of(layer), target, headers, detect=detect) as take:
            return await take()

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


async def test_layers_above_the_lowest_are_there_when_they_are_asked_for(machine: Machine) -> None:
    """Each is moved to its place, with its note. Directories that it does not name are as those below."""
    await machine.begun()
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


async def test_an_image_of_which_the_lower_layers_are_there(machine: Machine) -> None:
    """The first call is for a layer above them, and those above this one are unpacked."""
    machine.upper()
    async with machine.ahead.around(digest_of(SECOND), machine.above(), HEADERS):
        await eventually_async(machine.idle, "nothing is unpacked ahead")
    assert machine.content.read == [digest_of(THIRD), digest_of(FOURTH)]
    assert await machine.taken(THIRD, machine.above()) is not None


async def test_two_calls_at_once_do_not_share_the_files(machine: Machine) -> None:
    """Of two clients that pull the same image, one gets what is there of a layer, and all of it. The other unpacks the
    layer itself.
    """
    await machine.begun()
    for layer in LAYERS[1:]:
        targets = [machine.above(), machine.above()]
        async with (
            machine.ahead.around(digest_of(layer), targets[0], HEADERS) as first,
            machine.ahead.around(digest_of(layer), targets[1], HEADERS) as second,
        ):
            found = await asyncio.gather(second(), first())
        assert [each is None for each in found] == [True, False]
        assert [{*os.listdir(target[0].option("upperdir"))} for target in targets] == [FILES[layer], set()]


async def test_the_second_client_of_an_image_begins_nothing_again(machine: Machine) -> None:
    """While the first one's layers are unpacked, and also if it went away."""
    await machine.begun()
    await machine.begun()
    assert machine.content.read == [*map(digest_of, LAYERS), digest_of(BASE)]
    assert len(machine.ahead._images) == 1


async def test_another_namespace_gets_nothing_of_it(machine: Machine) -> None:
    await machine.begun()
    assert await machine.taken(SECOND, machine.above(), "another") is None
    assert await machine.taken(SECOND, machine.above()) is not None


async def test_a_client_that_gives_up_leaves_nothing(place: Path, appliers: Appliers) -> None:
    machine = Machine(place, appliers, wait=0.2)
    await machine.begun()
    await eventually_async(machine.cleared, "directories stay")
    assert await machine.taken(SECOND, machine.above()) is None
    await machine.ahead.aclose()


@pytest.mark.parametrize("how", ["its call fails", "it goes away"])
async def test_a_client_that_will_not_go_on_leaves_nothing(machine: Machine, how: str) -> None:
    """What is being unpacked is cut off, and what is there goes, at once."""
    machine.content.endless = {digest_of(THIRD)}
    lowest = machine.lowest()
    asked = asyncio.Event()

    async def call() -> None:
        async with machine.ahead.around(digest_of(BASE), lowest, HEADERS):
            await eventually_async(lambda: _is(digest_of(FOURTH) in machine.content.read), "not all are begun")
            asked.set()
            if how == "its call fails":
                raise errors.Unknown("no space left on device")
            await asyncio.Event().wait()

    calling = asyncio.ensure_future(call())
    await asked.wait()
    calling.cancel() if how == "it goes away" else None
    with pytest.raises(errors.Unknown if how == "its call fails" else asyncio.CancelledError):
        await calling
    await eventually_async(machine.cleared, "directories stay")
    assert not machine.ahead._images
    assert machine.ahead._room == 2


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
    assert machine.content.read == [digest_of(THIRD)]
    await machine.ahead.aclose()


@pytest.mark.parametrize(
    "why", ["a default ACL below", "an option", "not empty", "another's directory", "no overlay", "gone"]
)
async def test_what_cannot_be_moved_is_unpacked_as_ever(why: str, machine: Machine) -> None:
    """The upper directory is then as it was."""
    await machine.begun()
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
        case "gone":
            upper.rmdir()
    assert await machine.taken(SECOND, target) is None
    if why == "gone":
        assert not upper.exists()
        return
    assert [path.name for path in upper.iterdir()] == (["mine"] if why == "not empty" else [])
    assert note.read(str(upper.parent)) is None
    await eventually_async(machine.idle, "it is still being unpacked")


async def test_nothing_is_unpacked_ahead_for_targets_that_take_nothing(machine: Machine) -> None:
    """Where the first layer cannot be moved because of what its target is, the others are not, either."""
    await machine.begun()
    assert await machine.taken(SECOND, machine.above("userxattr")) is None
    await eventually_async(machine.cleared, "the others stay")
    mapped = [Mount("bind", machine.upper(), ("uidmap=0:1000:65536", "rw", "rbind"))]
    async with machine.ahead.around(digest_of(BASE), mapped, HEADERS):
        assert not machine.ahead._images


async def test_a_layer_that_cannot_be_unpacked_is_left_to_whoever_asks(place: Path, appliers: Appliers) -> None:
    """Who asks for it gets its error. Nothing stays of it until then."""
    broken = tar(reg(b"file", b"x"))[:512] + b"no tar" * 1000
    machine = Machine(place, appliers, [BASE, broken, THIRD])
    await machine.begun()
    await eventually_async(lambda: _is(len(os.listdir(machine.staged)) == 1), "what is broken stays")
    assert await machine.taken(broken, machine.above()) is None
    assert await machine.taken(THIRD, machine.above()) is not None
    await machine.ahead.aclose()


async def test_a_layer_that_is_not_there_yet_is_looked_for_at_the_next_call(place: Path, appliers: Appliers) -> None:
    """Clients fetch layers while they unpack others."""
    machine = Machine(place, appliers)
    path = place / digest_of(THIRD)
    path.unlink()
    await machine.begun()
    assert await machine.taken(SECOND, machine.above()) is not None
    machine.content.write(THIRD)
    async with machine.ahead.around(digest_of(FOURTH), machine.above(), HEADERS):
        await eventually_async(machine.idle, "it is not looked for")
    assert await machine.taken(THIRD, machine.above()) is not None
    await machine.ahead.aclose()


async def test_layers_that_were_unpacked_before_are_left_alone(machine: Machine) -> None:
    """The client mostly finds their snapshots there, and asks for none of them."""
    machine.content.labels = {digest_of(each): {UNCOMPRESSED: digest_of(each)} for each in (SECOND, FOURTH)}
    await machine.begun()
    assert machine.content.read == [digest_of(BASE), digest_of(THIRD)]
    assert [await machine.taken(each, machine.above()) is not None for each in LAYERS[1:]] == [False, True, False]


async def test_a_layer_that_is_not_to_be_inflated(place: Path, appliers: Appliers) -> None:
    """Ahead nobody knows the media type. What was not inflated is what its type asks for; what was, is not."""
    zipped = gzip.compress(THIRD, mtime=0)
    machine = Machine(place, appliers, [BASE, SECOND, zipped])
    await machine.begun()
    assert await machine.taken(SECOND, machine.above(), detect=False) is not None
    assert await machine.taken(zipped, machine.above(), detect=False) is None
    await machine.ahead.aclose()


async def test_a_nearly_full_disk_is_left_alone(place: Path, appliers: Appliers) -> None:
    """Nothing is begun on it. What is being unpacked when it gets full goes at once, and leaves its room to the call
    that is under way.
    """
    full = True
    asked: list[int] = []

    def room(directory: int, size: int) -> bool:
        assert os.fstat(directory).st_ino == (place / "ahead" / "layers").stat().st_ino
        asked.append(size)
        return not full

    machine = Machine(place, appliers, room=room, look=0.05)
    await machine.begun()
    assert os.listdir(machine.staged) == []
    assert {*asked} == {len(each) for each in LAYERS[1:]}
    await machine.ahead.aclose()

    full = False
    machine.started(room=room, look=0.05)
    machine.content.endless = {digest_of(each) for each in LAYERS[1:]}
    async with machine.ahead.around(digest_of(BASE), machine.lowest(), HEADERS):
        await eventually_async(lambda: _is(len(list(machine.staged.glob("*/fs"))) == 2), "nothing is unpacked")
        full = True
        await eventually_async(machine.cleared, "directories stay")
    await machine.ahead.aclose()


def test_how_much_room_is_enough(place: Path) -> None:
    fd = os.open(place, os.O_RDONLY)
    found = os.fstatvfs(fd)
    free = found.f_bavail * found.f_frsize
    if free < 8 << 30 or (found.f_files and found.f_favail < found.f_files // 10):
        pytest.skip("this disk is nearly full")
    assert ahead.has_room(fd, 1 << 20)
    assert not ahead.has_room(fd, free // 5)
    os.close(fd)


async def test_writes_that_failed_are_not_trusted(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of the files may be lost, and nobody else would look: everything is unpacked again. The kernel tells of them
    once, so two calls at once ask once.
    """
    await machine.begun()
    told: list[bool] = []

    def synced(fd: int) -> bool:
        told.append(bool(told))
        return told[-1]

    monkeypatch.setattr(ahead, "_synced", synced)
    assert await asyncio.gather(*(machine.taken(each, machine.above()) for each in (SECOND, THIRD))) == [None, None]
    assert await machine.taken(FOURTH, machine.above()) is None
    assert told == [False]
    await eventually_async(machine.cleared, "directories stay")


async def test_layers_of_images_that_nobody_described(machine: Machine) -> None:
    """A layer that no manifest has first, or that has the same layer twice: the rest is not unpacked ahead."""
    machine.content.manifests = []
    await machine.begun()
    assert await machine.taken(SECOND, machine.above()) is None
    assert machine.content.read == [digest_of(BASE)]


async def test_the_deadline_of_a_call_is_not_that_of_what_is_begun_in_it(machine: Machine) -> None:
    CURRENT.set(Call("/Diff/Apply", {}, deadline=time.monotonic()))
    await machine.begun()
    assert machine.content.calls == [CURRENT.get(), None, None, None]


async def test_a_caller_that_goes_away_waits_for_the_move(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may unpack the layer into the same directory next."""
    await machine.begun()
    going_on, moved = threading.Event(), ahead._moved
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slowly(*arguments: Any) -> bool:
        loop.call_soon_threadsafe(begun.set)
        assert going_on.wait(60)
        return moved(*arguments)

    monkeypatch.setattr(ahead, "_moved", slowly)
    target = machine.above()
    taking = asyncio.ensure_future(machine.taken(SECOND, target))
    await begun.wait()
    taking.cancel()
    _, waiting = await asyncio.wait((taking,), timeout=0.1)
    assert waiting
    going_on.set()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert {*os.listdir(target[0].option("upperdir"))} == FILES[SECOND]
    await eventually_async(machine.cleared, "directories stay")


async def test_what_a_process_left_goes_beside_other_work(place: Path, appliers: Appliers) -> None:
    """Also a tree that is too deep for a recursion. It is not what the next process unpacks."""
    deep = tar(pax({b"path": b"d/" * 1500 + b"file"}) + reg(b"file", b"x"))
    machine = Machine(place, appliers, [BASE, deep, SECOND])
    await machine.begun()
    await machine.ahead.aclose()
    left = {*os.listdir(machine.staged)}
    assert len(left) == 2
    machine.started()
    assert {*os.listdir(machine.staged)} == left, "nobody waits for their removal"
    await machine.begun()
    assert await machine.taken(SECOND, machine.above()) is not None
    await eventually_async(lambda: _is(not left & {*os.listdir(machine.staged)}), "they stay")
    with pytest.raises(errors.Unknown):
        async with machine.ahead.around(digest_of(deep), machine.above(), HEADERS):
            raise errors.Unknown("its client fails")
    await eventually_async(machine.cleared, "directories stay")
    await machine.ahead.aclose()


async def _is(it: bool) -> bool:
    return it
