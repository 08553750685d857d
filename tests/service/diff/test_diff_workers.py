"""The program that unpacks layers, and its workers: growing blobs, layers unpacked alone, and deaths of processes."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from services.kit import errors, kept, tracing
from services.oci.mounts import Mount
from services.snapshots.diff import standstill, workers, writeback
from services.snapshots.diff.inherit import DefaultAclError, LinkError, Unnamed, inherit
from services.snapshots.diff.mounts import to_arguments
from services.snapshots.diff.paths import Resolver
from services.snapshots.diff.workers import Applied, Appliers, Growth
from tests import steady
from tests.spans import RecordedSpan, Spans, attribute, milliseconds, recorded
from tests.suites.diff_layers import BASE
from tests.suites.diff_tars import directory, reg, tar
from tests.support import TOP, eventually_async, frozen_disk, processes_naming, slow_disk

pytestmark = pytest.mark.once

LAYER = tar(directory(b"d/"), reg(b"d/large", os.urandom(1 << 20) * 5), reg(b"small", b"x"))
DEFAULT_ACL = struct.pack(
    "<I" + "HHI" * 5,
    2,
    *(
        n
        for tag, bits, who in ((1, 7, -1), (2, 7, 5), (4, 5, -1), (16, 7, -1), (32, 5, -1))
        for n in (tag, bits, who & 0xFFFFFFFF)
    ),
)
"""``u::rwx,u:5:rwx,g::r-x,m::rwx,o::r-x``, as the kernel has it in an xattr."""
DIFF_ID = f"sha256:{hashlib.sha256(LAYER).hexdigest()}"


@pytest.fixture
def rest() -> float:
    """Seconds without work after which the program ends."""
    return 10.0


@pytest.fixture
def limit() -> float:
    """Seconds without progress after which a worker is killed."""
    return standstill.LIMIT


@pytest_asyncio.fixture
async def appliers(place: Path, rest: float, limit: float) -> AsyncIterator[Appliers]:
    (place / "scratch").mkdir()
    (place / "root").mkdir()
    appliers = Appliers(str(place / "scratch"), limit, rest)
    yield appliers
    await appliers.aclose()

    async def gone() -> bool:
        return not processes_naming(place / "scratch")

    await eventually_async(gone, "a process is left", 5)


def onto(root: Path) -> list[Mount]:
    return [Mount("bind", str(root), ("rw", "rbind"))]


class Blob:
    """A growing file, and the news of its growth."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.data = data
        self.file = path.open("w+b", buffering=0)
        self.news, self._tell = os.pipe()
        self.at = 0

    @property
    def growth(self) -> Growth:
        return Growth(self.news, len(self.data))

    def grow(self, to: int) -> None:
        self.file.write(self.data[self.at : to])
        self.at = to
        os.write(self._tell, to.to_bytes(8, "little"))

    def end(self) -> None:
        os.close(self._tell)


@contextlib.contextmanager
def growing(place: Path, data: bytes):
    blob = Blob(place / "blob", data)
    try:
        yield blob
    finally:
        blob.file.close()
        os.close(blob.news)


@pytest.mark.parametrize("packed", [False, True])
async def test_a_layer_is_unpacked_while_it_arrives(packed: bool, appliers: Appliers, place: Path) -> None:
    """The available part of a file is unpacked before the rest of the blob has come; in the end the result is that of a
    complete blob.
    """
    with growing(place, gzip.compress(LAYER) if packed else LAYER) as blob:
        size = len(blob.data)
        work = asyncio.ensure_future(
            appliers.apply(onto(place / "root"), blob.file.fileno(), detect=True, growth=blob.growth)
        )
        blob.grow(5)
        blob.grow(size // 2)
        large = place / "root/d/large"

        async def half() -> bool:
            return large.exists() and large.stat().st_size > 1 << 20

        await eventually_async(half, "nothing is unpacked")
        assert not work.done()
        for to in range(size // 2, size, 100_000):
            blob.grow(to)
        blob.grow(size)
        assert await work == (DIFF_ID, len(LAYER), ())
        blob.end()
    assert large.stat().st_size == 5 << 20


async def test_a_blob_that_stops_growing_fails(appliers: Appliers, place: Path) -> None:
    """The layer is refused, and the error says how far it came."""
    with growing(place, LAYER) as blob:
        blob.grow(2_000_000)
        blob.end()
        with pytest.raises(errors.Unknown, match=f"the blob ends after 2000000 of {len(LAYER)} bytes"):
            await appliers.apply(onto(place / "root"), blob.file.fileno(), detect=True, growth=blob.growth)


async def test_a_wait_for_a_blob_can_be_cancelled(appliers: Appliers, place: Path) -> None:
    """Its worker ends with the call; the other workers and the program go on."""
    with growing(place, LAYER) as blob:
        work = asyncio.ensure_future(
            appliers.apply(onto(place / "root"), blob.file.fileno(), detect=True, growth=blob.growth)
        )

        async def begun() -> bool:
            return len(processes_naming(place / "scratch")) == 2

        await eventually_async(begun, "no worker")
        (other := place / "other").mkdir()
        (place / "whole").write_bytes(LAYER)
        with (place / "whole").open("rb") as whole:
            work.cancel()
            applied = asyncio.ensure_future(appliers.apply(onto(other), whole.fileno(), detect=True))
            with pytest.raises(asyncio.CancelledError):
                await work
            assert await applied == (DIFF_ID, len(LAYER), ())
        assert len(processes_naming(place / "scratch")) == 1
        blob.end()


@pytest.mark.parametrize("who", ["program", "worker"])
async def test_kill_9_fails_the_layer_and_no_later_one(who: str, appliers: Appliers, place: Path) -> None:
    """Of the program or of a worker: the error is INTERNAL with the signal, and the next layer has a program again."""
    with growing(place, LAYER) as blob:
        blob.grow(1000)
        work = asyncio.ensure_future(
            appliers.apply(onto(place / "root"), blob.file.fileno(), detect=True, growth=blob.growth)
        )

        async def begun() -> bool:
            return len(processes_naming(place / "scratch")) == 2

        await eventually_async(begun, "no worker")
        pids = processes_naming(place / "scratch")
        worker = next(
            pid for pid in pids if int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) in pids
        )
        os.kill(worker if who == "worker" else next(pid for pid in pids if pid != worker), signal.SIGKILL)
        with pytest.raises(errors.Internal, match="signal 9"):
            await work
        blob.grow(len(LAYER))
        assert await appliers.apply(onto(place / "root"), blob.file.fileno(), detect=True, growth=blob.growth) == (
            DIFF_ID,
            len(LAYER),
            (),
        )
        blob.end()


async def test_a_layer_alone_has_whiteouts_as_overlays(appliers: Appliers, place: Path) -> None:
    """Its directory becomes an upper one when the layers below are known."""
    layer = tar(
        directory(b"etc/"), reg(b"etc/.wh.passwd"), directory(b"var/"), reg(b"var/.wh..wh..opq"), reg(b"var/new", b"1")
    )
    (place / "blob").write_bytes(layer)
    with (place / "blob").open("rb") as file:
        await appliers.apply(onto(place / "root"), file.fileno(), detect=True, alone=True)
    gone = os.lstat(place / "root/etc/passwd")
    assert stat.S_ISCHR(gone.st_mode)
    assert gone.st_rdev == 0
    assert os.getxattr(place / "root/var", "trusted.overlay.opaque") == b"y"


async def test_a_layer_alone_that_leaves_out_directories_inherits_them_later(appliers: Appliers, place: Path) -> None:
    """Only the layers below know the attributes of /var, say, and the program is told these layers when they are known.
    Directories that the layer names in the end, or that no layer has, are not changed.
    """
    (place / "blob").write_bytes(
        tar(reg(b"top", b"1"), reg(b"var/lib/new", b"1"), reg(b"own/x"), directory(b"own/", 0o700), reg(b"opt/x"))
    )
    with (place / "blob").open("rb") as file:
        _, _, unnamed = await appliers.apply(onto(place / "root"), file.fileno(), detect=True, alone=True)
    assert list(unnamed) == [
        Unnamed(b"/var"),
        Unnamed(b"/var/lib", inside=True),
        Unnamed(b"/own", named=True),
        Unnamed(b"/opt"),
    ]
    for lower, directories in (("upper-lower", ("var",)), ("lower", ("var", "var/lib", "own"))):
        for each in ("", *directories):
            (place / lower / each).mkdir(mode=0o711 if lower == "upper-lower" else 0o722)
            os.chown(place / lower / each, 5, 6)
    os.setxattr(place / "lower/var/lib", "user.kept", b"1")
    inherit(f"{place}/root", [f"{place}/upper-lower", f"{place}/lower"], unnamed)
    found = {name: (place / "root" / name).stat() for name in ("var", "var/lib", "own", "opt")}
    assert {name: (stat.S_IMODE(s.st_mode), s.st_uid, s.st_gid) for name, s in found.items()} == {
        "var": (0o711 & ~0o022, 5, 6),
        "var/lib": (0o722 & ~0o022, 5, 6),
        "own": (0o700, 0, 0),
        "opt": (0o755, 0, 0),
    }
    assert os.getxattr(place / "root/var/lib", "user.kept") == b"1"


@pytest.mark.parametrize("rest", [0.2])
async def test_the_program_may_be_expected(appliers: Appliers, place: Path) -> None:
    """It is there when work comes, and ends if none does."""

    async def there() -> bool:
        return appliers._program is not None

    async def gone() -> bool:
        return appliers._program is None

    for _ in range(2):
        appliers.expect()
        appliers.expect()
        await eventually_async(there)
        await eventually_async(gone)
    (place / "blob").write_bytes(tar(reg(b"f", b"1")))
    appliers.expect()
    with (place / "blob").open("rb") as file:
        assert (await appliers.apply(onto(place / "root"), file.fileno(), detect=True)).size
    await eventually_async(gone)


async def test_the_work_of_a_worker_is_a_span(appliers: Appliers, place: Path) -> None:
    """The span is its caller's child, links to the span that brings the bytes, and says what its time went for. The
    parts add up to it, and no time that the worker waits for bytes is anything else.
    """
    layer = tar(reg(b"f", bytes(3 << 20)))
    (place / "blob").write_bytes(layer)
    news, tell = os.pipe2(os.O_CLOEXEC)
    try:
        with recorded() as spans, (place / "blob").open("rb") as file:
            with tracing.span("fetch") as fetch:
                growth = Growth(news, len(layer), fetch.ref())
            applying = asyncio.ensure_future(
                appliers.apply(onto(place / "root"), file.fileno(), detect=True, alone=True, growth=growth)
            )
            await eventually_async(lambda: polls(appliers))
            await asyncio.sleep(0.1)
            os.write(tell, len(layer).to_bytes(8, "little"))
            await applying
            with pytest.raises(errors.Unknown):
                await appliers.apply(
                    onto(place / "root"),
                    file.fileno(),
                    detect=True,
                    growth=Growth(os.open(os.devnull, os.O_RDONLY), len(layer)),
                )
            good, bad = spans.named("diff.unpack")
            assert [each.name for each in spans.linked(good)] == ["fetch"]
    finally:
        os.close(tell)
        os.close(news)
    assert not good.status.failed
    assert bad.status.failed
    check_seen(bad)
    assert attribute(good, "splitd.size") == len(layer)
    assert part(good, "bytes") + part(good, "runqueue") > 90
    assert part(good, "bytes") > 50
    assert 0 < part(good, "cpu") <= part(good, "busy")
    # the main thread also waits for the interpreter while the other one has it, whatever that does with it
    told = part(good, "inflate") + part(good, "digest") + part(good, "files")
    assert told - 1 <= part(good, "cpu") <= told + part(good, "busy")
    check_parts(good)


async def polls(appliers: Appliers) -> bool:
    """Whether a worker waits for bytes."""
    # in poll()
    return any(Path(f"/proc/{worker}/syscall").read_text().startswith("7 ") for worker in children(appliers))


def children(appliers: Appliers) -> list[str]:
    """The workers, also those that are ending."""
    assert appliers._program is not None
    program = appliers._program._process.pid
    return Path(f"/proc/{program}/task/{program}/children").read_text().split()


def part(span: RecordedSpan, name: str) -> float:
    """Milliseconds of a worker's time."""
    return float(str(attribute(span, f"splitd.time.{name}_ms")))


def check_seen(span: RecordedSpan) -> None:
    """What was seen of a worker that did not say itself what its time went for adds up to its span."""
    add_up([part(span, name) for name in ("cpu", "runqueue", "disk", "bytes")], span)


def check_parts(span: RecordedSpan) -> None:
    """A worker's parts add up to its span."""
    add_up([part(span, name) for name in ("cpu", "runqueue", "disk", "bytes", "rest")], span)


def add_up(parts: list[float], span: RecordedSpan) -> None:
    """They are of the clock that leaves out when this process gets no processor; its spans are of the other clock."""
    unknown = 1000 * (steady.left_out() - _left_out)
    whole = milliseconds(span)
    assert whole * 0.99 - 5 - unknown <= sum(parts) <= whole * 1.01 + 5, (parts, whole, unknown)


_left_out = 0.0


@pytest.fixture(autouse=True)
def begun() -> None:
    """What the clock left out before the test is none of its concern."""
    global _left_out
    _left_out = steady.left_out()


async def test_a_worker_without_a_processor_says_so(appliers: Appliers, place: Path) -> None:
    """It shares one processor with a program that never rests: about as long as it ran, it could have run and did
    not.
    """
    (place / "blob").write_bytes(tar(reg(b"f", os.urandom(1 << 20) * 60)))
    appliers.expect()
    with recorded() as spans, (place / "blob").open("rb") as file:
        program = await appliers._running()
        os.sched_setaffinity(program._process.pid, {min(os.sched_getaffinity(0))})
        busy = subprocess.Popen([sys.executable, "-c", "while True: continue"])
        try:
            os.sched_setaffinity(busy.pid, {min(os.sched_getaffinity(0))})
            await appliers.apply(onto(place / "root"), file.fileno(), detect=False, alone=True)
        finally:
            busy.kill()
            busy.wait()
        span = spans.one("diff.unpack")
    check_parts(span)
    assert part(span, "runqueue") > 0.5 * part(span, "cpu")
    assert part(span, "disk") < 0.1 * milliseconds(span)


@contextlib.contextmanager
def disk(place: Path) -> Iterator[Path]:
    """A file system of its own."""
    image, mounted = place / "image", place / "mounted"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    for command in (["mkfs.ext4", "-q", str(image)], ["mount", "-o", "loop", str(image), str(mounted)]):
        subprocess.run(command, check=True, capture_output=True)
    try:
        yield mounted
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


async def test_a_worker_that_the_disk_holds_up_says_so(appliers: Appliers, place: Path) -> None:
    """Its file system is frozen for a while."""
    with disk(place) as mounted:
        (mounted / "upper").mkdir()
        with recorded() as spans, growing(place, gzip.compress(LAYER)) as blob:
            applying = asyncio.ensure_future(
                appliers.apply(onto(mounted / "upper"), blob.file.fileno(), detect=True, alone=True, growth=blob.growth)
            )
            await eventually_async(lambda: polls(appliers))
            with frozen_disk(mounted):
                blob.grow(len(blob.data))
                await asyncio.sleep(0.3)
            await applying
            span = spans.one("diff.unpack")
    check_parts(span)
    assert part(span, "disk") > 200


async def test_a_worker_that_is_cut_off_in_a_disk_leaves_its_span(appliers: Appliers, place: Path) -> None:
    """The kernel does not end it before the disk answers. The span ends at once, failed, and has what was seen."""
    with disk(place) as mounted:
        (mounted / "upper").mkdir()
        with recorded() as spans, growing(place, gzip.compress(LAYER)) as blob:
            applying = asyncio.ensure_future(
                appliers.apply(onto(mounted / "upper"), blob.file.fileno(), detect=True, alone=True, growth=blob.growth)
            )
            await eventually_async(lambda: polls(appliers))
            with frozen_disk(mounted):
                blob.grow(len(blob.data))
                await asyncio.sleep(0.3)
                applying.cancel()
                await eventually_async(lambda: ended(spans), "its span does not end")
                assert not applying.done()
            with pytest.raises(asyncio.CancelledError):
                await applying
            span = spans.one("diff.unpack")
    assert span.status.failed
    assert span.status.description == "the unpacking was cut off: its caller gave up"
    check_seen(span)
    assert part(span, "disk") > 200


@pytest.mark.parametrize("limit", [1.0])
async def test_a_slow_disk_ends_no_worker(appliers: Appliers, place: Path) -> None:
    """One system call takes several times as long as a worker may stand still."""
    (place / "blob").write_bytes(tar(*(reg(b"%d" % number, os.urandom(1 << 18)) for number in range(40))))
    with disk(place) as mounted, (place / "blob").open("rb") as file:
        (mounted / "fs").mkdir()
        with recorded() as spans, slow_disk(mounted, 3 << 20):
            await appliers.apply(onto(mounted / "fs"), file.fileno(), detect=False, sync=True)
            span = spans.one("diff.unpack")
        await eventually_async(lambda: _gone(appliers), "the worker does not end")  # it holds the disk until then
    assert part(span, "disk") > 2500


@pytest.mark.parametrize("limit", [1.0])
async def test_a_disk_that_does_not_move_ends_the_worker(appliers: Appliers, place: Path) -> None:
    """The kernel lets it end when the disk moves again."""
    (place / "blob").write_bytes(LAYER)

    async def killed() -> bool:
        status = [Path(f"/proc/{worker}/status").read_text() for worker in children(appliers)]
        pending = [int(each.partition("\nShdPnd:")[2].split()[0], 16) for each in status]
        return any(signals >> signal.SIGKILL - 1 & 1 for signals in pending)

    with disk(place) as mounted, (place / "blob").open("rb") as file:
        (mounted / "fs").mkdir()
        with recorded() as spans:
            with frozen_disk(mounted):
                applying = asyncio.ensure_future(appliers.apply(onto(mounted / "fs"), file.fileno(), detect=False))
                await eventually_async(killed, "it is not killed")
            with pytest.raises(errors.Internal, match="the apply worker stood still for 1 s"):
                await applying
            span = spans.one("diff.unpack")
        await eventually_async(lambda: _gone(appliers), "the worker does not end")
    assert span.status.failed


async def _gone(appliers: Appliers) -> bool:
    return not children(appliers)


async def test_a_worker_answers_though_its_files_are_still_being_written(appliers: Appliers, place: Path) -> None:
    """A thread of it waits for the disk, and so does the kernel before it lets the process end."""
    (place / "blob").write_bytes(tar(*(reg(b"%d" % number, bytes(4096)) for number in range(writeback._FILES))))
    with disk(place) as mounted, (place / "blob").open("rb") as file:
        (mounted / "fs").mkdir()
        with recorded() as spans, slow_disk(mounted, 1 << 20):
            await appliers.apply(onto(mounted / "fs"), file.fileno(), detect=False)
            assert children(appliers)
            span = spans.one("diff.unpack")
        await eventually_async(lambda: _gone(appliers), "the worker does not end")
    check_parts(span)


async def ended(spans: Spans) -> bool:
    """Whether there is the span of a worker."""
    return bool(spans.named("diff.unpack"))


async def test_a_layer_that_is_made_says_what_its_time_went_for(place: Path) -> None:
    """The worker compresses what another of its threads reads. The parts add up to the span."""
    for name in ("left", "right", "below", "above"):
        (place / name).mkdir()
    (place / "above/file").write_bytes(os.urandom(1 << 20) * 8)
    below, above = ([Mount("bind", str(place / name), ("rw", "rbind"))] for name in ("below", "above"))
    left = to_arguments(below)
    with recorded() as spans, (place / "made").open("wb") as made:
        digest, size, _ = await workers.compare(
            "gzip",
            "-",
            str(place / "left"),
            str(place / "right"),
            str(len(left)),
            *left,
            *to_arguments(above),
            file=made.fileno(),
            started=lambda: None,
        )
        span = spans.one("diff.compare")
    data = (place / "made").read_bytes()
    assert (digest, int(size)) == (f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))
    check_parts(span)
    assert part(span, "compress") > 0
    assert part(span, "digest") > 0
    assert part(span, "bytes") == 0
    assert part(span, "compress") + part(span, "digest") + part(span, "files") <= part(span, "cpu") + 1


async def test_who_waits_for_the_program_says_so(appliers: Appliers, place: Path) -> None:
    """Of two layers that need the program while it starts, both wait for the worker: the second one's wait links to the
    start. A layer that finds the program there does not wait.
    """
    (place / "blob").write_bytes(LAYER)
    for name in ("a", "b", "c"):
        (place / name).mkdir()

    async def layer(name: str) -> None:
        with tracing.span(name), (place / "blob").open("rb") as file:
            await appliers.apply(onto(place / name), file.fileno(), detect=False)

    with recorded() as spans:
        await asyncio.gather(layer("a"), layer("b"))
        await layer("c")
        first, second = spans.named("wait.worker")
        started = spans.one("diff.start")
        assert [spans.parent(each).name for each in (first, second)] == ["a", "b"]
        assert spans.parent(started) is first
        assert spans.linked(second) == [started]


async def test_a_second_layer_onto_one_upper_directory_is_roots_too(appliers: Appliers, place: Path) -> None:
    """If a directory of the first hands down its group, the files of the second nevertheless have the owners that it
    names.
    """
    (place / "upper").mkdir()
    overlay = Mount(
        "overlay", "overlay", (f"upperdir={place}/upper", f"workdir={place}/work", f"lowerdir={place}/root")
    )
    for layer in (tar(directory(b"d/", 0o2755, gid=7)), tar(reg(b"d/f", b"1", mode=0o644))):
        (place / "blob").write_bytes(layer)
        with (place / "blob").open("rb") as file:
            await appliers.apply([overlay], file.fileno(), detect=True)
    assert ((place / "upper/d").stat().st_gid, (place / "upper/d/f").stat().st_gid) == (7, 0)


async def test_aclose_ends_calls_under_way_with_an_error(appliers: Appliers, place: Path) -> None:
    """Calls that still wait for a worker get an error."""
    with growing(place, LAYER) as blob:
        work = asyncio.ensure_future(
            appliers.apply(onto(place / "root"), blob.file.fileno(), detect=True, growth=blob.growth)
        )

        async def begun() -> bool:
            return len(processes_naming(place / "scratch")) == 2

        await eventually_async(begun, "no worker")
        await appliers.aclose()
        with pytest.raises(errors.Internal, match="signal 9"):
            await work
        blob.end()


async def test_many_layers_at_once(appliers: Appliers, place: Path) -> None:
    """One program starts fifty workers."""
    (place / "blob").write_bytes(BASE)
    roots = [place / f"r{n}" for n in range(50)]
    for root in roots:
        root.mkdir()

    async def apply(root: Path) -> Applied:
        with (place / "blob").open("rb") as file:
            return await appliers.apply(onto(root), file.fileno(), detect=True)

    assert set(await asyncio.gather(*map(apply, roots))) == {
        (f"sha256:{hashlib.sha256(BASE).hexdigest()}", len(BASE), ())
    }
    assert all((root / "bin/sh").read_bytes() == b"shell" for root in roots)


async def test_a_worker_unpacks_many_layers_alone(appliers: Appliers, place: Path) -> None:
    """It unpacks one after another, each into its own directory, whatever the one before was. An error or a mount ends
    the worker, and others are started.
    """
    (place / "blob").write_bytes(BASE)
    (place / "broken").write_bytes(b"no tar" * 1000)
    with (place / "blob").open("rb") as file, (place / "broken").open("rb") as broken:
        for number in range(230):
            (root := place / f"r{number}").mkdir()
            if number % 50 == 7:
                with pytest.raises(errors.Unknown):
                    await appliers.apply(onto(root), broken.fileno(), detect=True, alone=True)
            applied = await appliers.apply(onto(root), file.fileno(), detect=True, alone=number % 20 != 5)
            assert applied.diff_id == f"sha256:{hashlib.sha256(BASE).hexdigest()}"
            assert (root / "bin/sh").read_bytes() == b"shell"
        assert len(processes_naming(place / "scratch")) <= 3  # no more workers than there is work, and who is ending


@pytest.mark.parametrize("handed", [False, True])
async def test_a_worker_that_waits_may_be_killed(handed: bool, appliers: Appliers, place: Path) -> None:
    """No layer fails by it, even if a layer was ``handed`` to the worker already, as long as the worker had not begun
    it.
    """
    (place / "blob").write_bytes(BASE)
    with (place / "blob").open("rb") as file:
        (place / "r").mkdir()
        await appliers.apply(onto(place / "r"), file.fileno(), detect=True, alone=True)
        for number in range(5):
            (root := place / f"r{number}").mkdir()
            program, worker = program_and_worker(place)
            held = files_of(program)
            os.kill(worker, signal.SIGSTOP if handed else signal.SIGKILL)
            work = asyncio.ensure_future(appliers.apply(onto(root), file.fileno(), detect=True, alone=True))
            if handed:
                await until_files(program, held + 1, 99)  # kept until they are taken
                os.kill(worker, signal.SIGKILL)
            assert (await work).diff_id == f"sha256:{hashlib.sha256(BASE).hexdigest()}"
            assert (root / "bin/sh").read_bytes() == b"shell"
            await until_files(program, held, held)


async def test_a_layer_that_was_handed_to_a_worker_can_be_cancelled(appliers: Appliers, place: Path) -> None:
    """No other worker unpacks it then."""
    (place / "blob").write_bytes(BASE)
    with (place / "blob").open("rb") as file:
        for name in ("r", "cancelled"):
            (place / name).mkdir()
        await appliers.apply(onto(place / "r"), file.fileno(), detect=True, alone=True)
        program, worker = program_and_worker(place)
        held = files_of(program)
        os.kill(worker, signal.SIGSTOP)
        work = asyncio.ensure_future(appliers.apply(onto(place / "cancelled"), file.fileno(), detect=True, alone=True))
        await until_files(program, held + 1, 99)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert not list((place / "cancelled").iterdir())
        assert processes_naming(place / "scratch") == [program]


def program_and_worker(place: Path) -> tuple[int, int]:
    """The pids of the program and of its only worker."""
    pids = processes_naming(place / "scratch")
    parents = {pid: int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in pids}
    ((worker, program),) = [(pid, parent) for pid, parent in parents.items() if parent in pids]
    return program, worker


def files_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


async def until_files(program: int, least: int, most: int) -> None:
    async def found() -> bool:
        return least <= files_of(program) <= most

    await eventually_async(found, f"the program has never from {least} to {most} files")


async def test_a_group_goes_down_to_directories_that_no_layer_has(appliers: Appliers, place: Path) -> None:
    """From a set-group-id directory of a layer below, one step, as by mkdir; from one that the layer itself names, at
    once. A directory that the layer names later has the group of its entry, and inherits other attributes.
    """
    (place / "blob").write_bytes(
        tar(
            reg(b"lib/a/b/x"),
            reg(b"own/c/x"),
            directory(b"own", 0o2700, gid=9),
            reg(b"own/d/e/x"),
            directory(b"lib", 0o2711, gid=8),
            reg(b"lib/f/x"),
        )
    )
    with (place / "blob").open("rb") as file:
        _, _, unnamed = await appliers.apply(onto(place / "root"), file.fileno(), detect=True, alone=True)
    for name in ("lib", "own"):
        (place / "lower" / name).mkdir(parents=True)
        os.chown(place / "lower" / name, 0, 50)
        os.chmod(place / "lower" / name, 0o2775)
        os.setxattr(place / "lower" / name, "user.kept", b"1")
    inherit(f"{place}/root", [f"{place}/lower"], unnamed)
    found = {
        name: (place / "root" / name).stat()
        for name in ("lib", "lib/a", "lib/a/b", "lib/f", "own", "own/c", "own/d", "own/d/e")
    }
    assert {name: (stat.S_IMODE(s.st_mode), s.st_gid) for name, s in found.items()} == {
        "lib": (0o2711, 8),
        "lib/a": (0o755, 50),
        "lib/a/b": (0o755, 0),
        "lib/f": (0o755, 8),
        "own": (0o2700, 9),
        "own/c": (0o755, 50),
        "own/d": (0o755, 9),
        "own/d/e": (0o755, 0),
    }
    assert os.getxattr(place / "root/lib", "user.kept") == b"1"


def test_a_default_acl_comes_too_late(place: Path) -> None:
    """Files in the directory should have got it when they were made."""
    for name in ("root/a", "lower/a"):
        (place / name).mkdir(parents=True)
    os.setxattr(place / "lower/a", "system.posix_acl_default", DEFAULT_ACL)
    with pytest.raises(DefaultAclError):
        inherit(f"{place}/root", [f"{place}/lower"], [Unnamed(b"/a")])


def test_attributes_are_inherited_through_links(place: Path) -> None:
    """Links are resolved as in containerd, within the layer. A path that is no directory in the layers below gives
    nothing; one that is no directory here, or is below a file there, is an error.
    """
    for name in ("root/a/b", "root/c/d", "lower/real/b", "upper-lower", "lower/c"):
        (place / name).mkdir(parents=True)
    (place / "lower/a").symlink_to("/real/../real")
    os.chown(place / "lower/real/b", 7, 8)
    (place / "upper-lower/c").write_bytes(b"")
    os.chown(place / "lower/c", 7, 8)
    inherit(f"{place}/root", [f"{place}/upper-lower", f"{place}/lower"], [Unnamed(b"/a/b"), Unnamed(b"/c")])
    assert [(place / "root" / name).stat().st_uid for name in ("a/b", "c")] == [7, 0]
    with pytest.raises(NotADirectoryError) as raised:
        inherit(f"{place}/root", [f"{place}/upper-lower"], [Unnamed(b"/c/d")])
    assert raised.value.filename == b"/c/d"
    (place / "root/link").symlink_to("a")
    for bad in (b"/link/b", b"/link", b"/absent"):
        with pytest.raises(OSError):
            inherit(f"{place}/root", [f"{place}/lower"], [Unnamed(bad)])


def test_paths_of_two_thousand_names_are_resolved(place: Path) -> None:
    """A layer can have such paths, and the process that resolves them has Python's usual recursion limit."""
    path = b"/x" * 2000
    fd = os.open(place, os.O_PATH)
    try:
        assert Resolver(fd).resolve(path) == path
    finally:
        os.close(fd)


def test_names_that_repeat_are_told_apart(place: Path) -> None:
    """A file in the middle of a path is not the same as one at its end."""
    for name in ("root/a/a/a", "lower/a"):
        (place / name).mkdir(parents=True)
    (place / "lower/a/a").write_bytes(b"")
    os.chown(place / "lower/a", 7, 7)
    inherit(f"{place}/root", [f"{place}/lower"], [Unnamed(b"/a"), Unnamed(b"/a/a")], links=False)
    assert [(place / "root" / name).stat().st_uid for name in ("a", "a/a")] == [7, 0]
    with pytest.raises(NotADirectoryError):
        inherit(f"{place}/root", [f"{place}/lower"], [Unnamed(b"/a/a/a")], links=False)
    (place / "lower/b").symlink_to("a")
    (place / "root/b").mkdir()
    with pytest.raises(LinkError):
        inherit(f"{place}/root", [f"{place}/lower"], [Unnamed(b"/b")], links=False)
    inherit(f"{place}/root", [f"{place}/lower"], [Unnamed(b"/b")])
    assert (place / "root/b").stat().st_uid == 7


async def test_a_layer_alone_has_its_own_modes_below_a_directory_with_a_default_acl(
    appliers: Appliers, place: Path
) -> None:
    """An operator may have given one to the directory of all snapshots: files get the ACL, as all files made there do,
    and the mode in the layer.
    """
    os.setxattr(place / "root", "system.posix_acl_default", DEFAULT_ACL)
    (place / "blob").write_bytes(
        tar(directory(b"d", 0o755), reg(b"d/x", b"x", mode=0o777), reg(b"y", b"y", mode=0o666))
    )
    with (place / "blob").open("rb") as file:
        await appliers.apply(onto(place / "root"), file.fileno(), detect=True, alone=True)
    assert {name: stat.S_IMODE((place / "root" / name).stat().st_mode) for name in ("d", "d/x", "y")} == {
        "d": 0o755,
        "d/x": 0o777,
        "y": 0o666,
    }


def test_workers_have_the_code_that_their_service_was_started_with(place: Path) -> None:
    """The installation is replaced by one whose programs cannot even be imported, as by an upgrade below a running
    service: layers are still unpacked and made.
    """
    shutil.copytree(TOP / "services", place / "services")
    (place / "api").symlink_to(TOP / "api")
    (place / "user").write_text(USER)
    (place / "layer").write_bytes(LAYER)
    for name in ("scratch", "root", "below"):
        (place / name).mkdir()
    done = subprocess.run(
        [sys.executable, "-P", place / "user", place],
        env={**os.environ, "PYTHONPATH": str(place)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, f"{DIFF_ID} made\n"), done.stderr
    assert (place / "root/small").read_bytes() == b"x"


USER = """
import asyncio, os, shutil, sys
from pathlib import Path
from services.snapshots.diff import mounts, workers

place = Path(sys.argv[1])

async def main():
    appliers = workers.Appliers(str(place / "scratch"))
    for path in (place / "services").rglob("*.py"):
        path.write_text("raise SystemExit('this is the new code')")
    shutil.rmtree(place / "services/kit")
    bind = lambda name: [mounts.Mount("bind", str(place / name), ("rw", "rbind"))]
    with open(place / "layer", "rb") as blob:
        applied = await appliers.apply(bind("root"), blob.fileno(), detect=True)
    with open(place / "made", "wb") as made:
        left, right = mounts.to_arguments(bind("below")), mounts.to_arguments(bind("root"))
        await workers.run("compare", "none", "0", str(place / "below"), str(place / "root"), str(len(left)), *left, *right, file=made.fileno(), started=lambda: None)
    await appliers.aclose()
    print(applied.diff_id, "made" if (place / "made").stat().st_size > 5 << 20 else "empty")

asyncio.run(main())
"""


async def test_a_program_that_cannot_be_started_says_so_in_one_sentence(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program's files are gone altogether: the error is not "Broken pipe", and the next layer tries again."""
    appliers = Appliers(str(place))
    with monkeypatch.context() as broken, (place / "layer").open("w+b") as blob:
        broken.setattr(kept, "search_path", lambda *_: str(place))
        for _ in range(2):
            with pytest.raises(
                errors.Internal,
                match=r"^the apply worker cannot be started: its program ended with exit code 1, see the service's log",
            ):
                await appliers.apply(onto(place / "root"), blob.fileno(), detect=True)
    (place / "root").mkdir()
    (place / "layer").write_bytes(LAYER)
    with (place / "layer").open("rb") as blob:
        assert (await appliers.apply(onto(place / "root"), blob.fileno(), detect=True)).diff_id == DIFF_ID
    await appliers.aclose()
