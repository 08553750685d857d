"""The Diff service around a layer: media types, compression, blobs by file and by stream, errors, cancellation,
crashes, traces.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import zstandard

from api.containerd.services.content.v1 import content_pb2 as content_pb
from api.containerd.services.diff.v1 import diff_pb2 as pb
from api.containerd.types import descriptor_pb2, mount_pb2
from api.splitd.localfiles.v1 import localfiles_pb2 as files_pb
from api.splitd.localfiles.v1 import localfiles_stubs
from services.content.local import LocalStore
from services.content.server import ContentServicer, LocalFilesServicer
from services.kit import errors, rpc
from services.snapshots.diff.server import DiffServicer
from tests import spans
from tests.suites.diff_layers import BASE
from tests.suites.diff_sides import CONTENT, DIFF, HEADERS, TAR, Side, bind, differences, ours, outcome, overlay, tree
from tests.suites.diff_tars import reg, tar
from tests.support import ServiceProcess, eventually, eventually_async, mounts_below, processes_naming, short_directory

pytestmark = pytest.mark.root

PLAIN = tar(reg(b"a", b"x" * 3_000_000), reg(b"b", b"y"))
ZIPPED = gzip.compress(PLAIN, mtime=0)
ZSTD = zstandard.compress(PLAIN)
SKIPPABLE = b"\x53\x2a\x4d\x18\x05\0\0\0hello"
COMPRESSED = {
    "gzip": ZIPPED,
    "gzip in members": gzip.compress(PLAIN[:1000])
    + gzip.compress(PLAIN[1000:2_000_000])
    + gzip.compress(b"")
    + gzip.compress(PLAIN[2_000_000:]),
    "gzip with a name": b"\x1f\x8b\x08\x08\0\0\0\0\0\x03name\0" + ZIPPED[10:],
    "gzip cut off": ZIPPED[:-20],
    "gzip without trailer": ZIPPED[:-8],
    "gzip with a wrong checksum": ZIPPED[:-6] + b"\0\0" + ZIPPED[-4:],
    "gzip damaged": ZIPPED[:1000] + b"\xff" * 50 + ZIPPED[1050:],
    "gzip header only": ZIPPED[:10],
    "gzip then zeros": ZIPPED + bytes(600),
    "gzip then text": ZIPPED + b"and some text that is longer than a header",
    "gzip of nothing": gzip.compress(b""),
    "zstd": ZSTD,
    "zstd in frames": SKIPPABLE + zstandard.compress(PLAIN[:5000]) + SKIPPABLE + zstandard.compress(PLAIN[5000:]),
    "zstd cut off": ZSTD[:-5],
    "zstd then text": ZSTD + b"and some text",
    "not compressed": PLAIN,
    "nothing": b"",
    "bzip2": b"BZh91AY&SY" + bytes(100),
    "xz": b"\xfd7zXZ\0" + bytes(100),
}
OCI, DOCKER = "application/vnd.oci.image.layer", "application/vnd.docker.image.rootfs"
MEDIA_TYPES = [
    f"{OCI}.v1.tar",
    f"{OCI}.v1.tar+gzip",
    f"{OCI}.v1.tar+zstd",
    f"{OCI}.nondistributable.v1.tar",
    f"{OCI}.nondistributable.v1.tar+gzip",
    f"{OCI}.v1.tar+gzip+encrypted",
    f"{OCI}.v1.tar+encrypted",
    f"{OCI}.v1.tar+zzz",
    f"{DOCKER}.diff.tar",
    f"{DOCKER}.diff.tar.gzip",
    f"{DOCKER}.foreign.diff.tar",
    f"{DOCKER}.foreign.diff.tar.gzip",
    f"{DOCKER}.diff.tar.gzip+encrypted",
    "application/vnd.oci.image.config.v1+json",
    "text/plain",
    "",
]


async def same(sides: tuple[Side, Side], work) -> tuple[str, object]:
    """Run ``work`` (of a side and a new directory) on both sides; outcomes and resulting trees must be the same."""
    roots = [side.directory("root") for side in sides]
    one, other = await asyncio.gather(*(outcome(work(side, root)) for side, root in zip(sides, roots, strict=True)))
    assert one[0] == other[0], f"ours {one[1]}, containerd's {other[1]}"
    if one[0] == "ok":
        assert one[1] == other[1]
        assert not differences(*map(tree, roots))
    else:
        assert type(one[1]) is type(other[1]), f"ours {one[1]}, containerd's {other[1]}"
    for root in roots:
        shutil.rmtree(root)
    return one


@pytest.mark.parametrize("name", COMPRESSED)
async def test_compression_is_told_by_the_bytes(name: str, sides: tuple[Side, Side]) -> None:
    """Streams that containerd inflates are inflated, and those that it finds damaged are refused. With pigz containerd
    ignores bytes after a gzip stream, without it refuses them: here they are ignored.
    """
    if name in ("gzip then zeros", "gzip then text") and not shutil.which("unpigz"):
        assert (await sides[0].apply(COMPRESSED[name], bind(sides[0].place), f"{TAR}+gzip")).size == len(PLAIN)
        return
    await same(sides, lambda side, root: side.apply(COMPRESSED[name], bind(root), f"{TAR}+gzip"))


@pytest.mark.parametrize("media_type", MEDIA_TYPES)
async def test_media_types_are_taken_as_containerd_takes_them(media_type: str, sides: tuple[Side, Side]) -> None:
    """Plain and compressed layers are tried under each type; a type that is no layer's is refused in containerd's
    words.
    """
    for data in (PLAIN, ZIPPED):
        if media_type.startswith(OCI) and "encrypted" in media_type:  # containerd starts a decoder, if there is one
            with pytest.raises(errors.Unimplemented, match="decryption"):
                await sides[0].apply(data, bind(sides[0].place), media_type)
            continue
        verdict, error = await same(sides, lambda side, root, data=data: side.apply(data, bind(root), media_type))
        if verdict == "refused" and "no processor" in str(error):
            assert str(error) == f"failed to get stream processor for {media_type}: no processor for media-type"


async def test_a_blob_that_is_not_there(sides: tuple[Side, Side]) -> None:
    """NOT_FOUND with containerd's text."""
    digest = f"sha256:{hashlib.sha256(b'never written').hexdigest()}"
    texts = []
    for side in sides:
        with pytest.raises(errors.NotFound) as caught:
            await side.diff.Apply(
                pb.ApplyRequest(diff=descriptor_pb2.Descriptor(media_type=TAR, digest=digest), mounts=bind(side.place)),
                headers=HEADERS,
            )
        texts.append(str(caught.value))
    assert texts[0].startswith("failed to get reader from content store: content ")
    assert texts[0].endswith(f"{digest}: not found")
    assert texts[1].startswith("failed to get reader from content store: content ")


@pytest.mark.parametrize(
    "target",
    ["read-only", "missing", "file", "overlay view", "none", "unknown type", "internal option", "sub-target", "tmpfs"],
)
async def test_targets_are_mounted_as_by_containerd(target: str, sides: tuple[Side, Side]) -> None:
    """Odd mounts are refused or written to as in containerd."""

    async def work(side: Side, root: Path) -> object:
        (root / "sub").mkdir()
        os.utime(root / "sub", (5, 5))
        mounts = {
            "read-only": lambda: bind(root, "ro"),
            "missing": lambda: bind(root / "missing"),
            "file": lambda: bind(Path("/etc/hostname")),
            "overlay view": lambda: [
                mount_pb2.Mount(type="overlay", source="overlay", options=[f"lowerdir={root}:{root}/sub"])
            ],
            "none": list,
            "unknown type": lambda: [mount_pb2.Mount(type="nonesuchfs", source="x")],
            "internal option": lambda: [mount_pb2.Mount(type="tmpfs", source="x", options=["nonesuch=1"])],
            "sub-target": lambda: [*bind(root), mount_pb2.Mount(type="tmpfs", source="x", target="/sub")],
            "tmpfs": lambda: [mount_pb2.Mount(type="tmpfs", source="x", options=["size=1m", "noatime", "mode=700"])],
        }[target]()
        return await side.apply(BASE, mounts)

    if target == "sub-target":  # containerd 1.6 knows no targets
        await work(sides[0], sides[0].directory("root"))
        assert (sides[0].place / "root/bin/sh").exists()
        return
    await same(sides, work)


async def test_nothing_stays_mounted_or_behind(here: Path, side: Side) -> None:
    """After layers that were accepted and refused, with mounts and without, the directory where workers mount is
    empty.
    """
    upper, work, lower = side.directory("upper"), side.directory("work"), side.directory("lower")
    await side.apply(PLAIN, bind(side.directory("root")))
    await outcome(side.apply(PLAIN[:5000], bind(side.directory("other"))))
    await side.apply(PLAIN, [])
    await side.make(bind(lower), overlay(upper, work, lower))
    assert not mounts_below(here / "scratch")
    empty = ("left", "right", "ahead/layers")
    assert [os.listdir(here / "scratch" / each) for each in empty] == [[], [], []]


async def test_an_overlay_mounted_with_userxattr_gets_user_xattrs(side: Side) -> None:
    """An opaque directory gets the mark that such an overlay reads."""
    upper = side.directory("upper")
    await side.apply(
        tar(reg(b"d/.wh..wh..opq")),
        overlay(upper, side.directory("work"), side.directory("lower"), extra=("userxattr",)),
    )
    assert os.getxattr(upper / "d", "user.overlay.opaque") == b"y"


async def test_many_lower_directories(side: Side) -> None:
    """More lower directories than mount(2) takes as text are given relative to their common prefix."""
    top = side.directory("with-a-rather-long-name-so-that-it-adds-up")
    lowers = [side.directory(top.name, f"{i:03}-{'x' * 40}") for i in range(60)]
    for i, lower in enumerate(lowers):
        (lower / f"f{i}").write_text("x")
    view = [mount_pb2.Mount(type="overlay", source="overlay", options=[f"lowerdir={':'.join(map(str, lowers))}"])]
    empty = side.directory("empty")
    layer = await side.make(bind(empty), view)
    root = side.directory("root")
    await side.apply(await side.read(layer.digest), bind(root), layer.media_type)
    assert len(os.listdir(root)) == 60


async def test_an_error_is_one_line_that_names_the_entry(side: Side) -> None:
    """This holds for errors of an entry and of the stream."""
    for layer, text in (
        (tar(reg(b"f"), reg(b"f/x\ny")), r'"f/x\ny": not a directory'),
        (tar(reg(b"good"), b"junk" * 128), 'archive/tar: invalid tar header (at or after "good")'),
        (tar(reg(b"good", b"x" * 600))[:700], 'unexpected EOF (at or after "good")'),
        (b"junk" * 128, "archive/tar: invalid tar header"),
    ):
        verdict, error = await outcome(side.apply(layer, bind(side.place)))
        assert verdict == "refused"
        assert str(error) == text


async def test_a_mount_that_we_cannot_make_is_unimplemented(side: Side) -> None:
    """The error names the mount; it is not left out silently."""
    with pytest.raises(errors.Unimplemented, match="mount"):
        await side.apply(
            BASE,
            [
                mount_pb2.Mount(
                    type="bind", source=str(side.place), options=["rbind", "uidmap=0:1000:10", "gidmap=0:1000:10"]
                )
            ],
        )


async def test_block_images_are_mounted_by_loop_devices(side: Side) -> None:
    """A layer is unpacked onto an image of ext4, compared with one of EROFS, and no device is left."""
    writable, folder, packed = side.place / "writable.img", side.directory("folder"), side.place / "packed.erofs"
    with writable.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", str(writable)], check=True)
    ext4 = mount_pb2.Mount(type="ext4", source=str(writable), options=["loop"])
    await side.apply(BASE, [ext4])
    await side.apply(BASE, bind(folder))
    subprocess.run(["mkfs.erofs", "--quiet", str(packed), str(folder)], check=True)
    erofs = mount_pb2.Mount(type="erofs", source=str(packed), options=["ro", "loop"])
    for images in ([erofs], [mount_pb2.Mount(type="ext4", source=str(writable), options=["ro", "loop", "direct-io"])]):
        root = side.directory(images[0].type)
        layer = await side.make(bind(side.directory(f"{root.name}-none")), images)
        await side.apply(await side.read(layer.digest), bind(root), layer.media_type)
        assert (root / "bin/sh").read_bytes() == b"shell"
    with pytest.raises(errors.Unknown, match="/none.img: no such file or directory"):
        await side.apply(BASE, [mount_pb2.Mount(type="ext4", source="/none.img", options=["loop"])])
    eventually(
        lambda: (
            not [
                path
                for path in Path("/sys/block").glob("loop*/loop/backing_file")
                if str(side.place) in path.read_text()
            ]
        ),
        "a loop device is left",
    )


async def test_a_target_that_is_not_there_is_named(side: Side) -> None:
    """It is named with a mount and without one."""
    missing = side.place / "missing"
    for mounts in (bind(missing), overlay(missing, side.place, side.place)):
        with pytest.raises(errors.Unknown, match=f"{missing}.*no such file or directory"):
            await side.apply(BASE, mounts)


async def test_a_full_disk_is_said(side: Side) -> None:
    """ENOSPC names the entry for which there was no room."""
    verdict, error = await outcome(side.apply(PLAIN, [mount_pb2.Mount(type="tmpfs", source="x", options=["size=1m"])]))
    assert verdict == "refused"
    assert str(error) == '"a": no space left on device'


async def test_a_content_service_without_files_is_read_and_written_by_stream(here: Path, place: Path) -> None:
    """Without LocalFiles layers are applied and made nevertheless."""
    with short_directory() as directory:
        async with ours(directory, place, files=False) as side:
            root, empty, copy = side.directory("root"), side.directory("empty"), side.directory("copy")
            applied = await side.apply(ZIPPED, bind(root), f"{TAR}+gzip")
            assert applied.digest == f"sha256:{hashlib.sha256(PLAIN).hexdigest()}"
            assert applied.size == len(PLAIN)
            verdict, error = await outcome(side.apply(ZIPPED[:-1], bind(side.directory("cut")), f"{TAR}+gzip"))
            assert verdict == "refused"
            assert "unexpected EOF" in str(error)
            for number in range(3):
                (root / f"random{number}").write_bytes(os.urandom(2_500_000))
            layer = await side.make(bind(empty), bind(root), labels={"a": "b"})
            assert (await side.labels(layer.digest))["a"] == "b"
            await side.apply(await side.read(layer.digest), bind(copy), layer.media_type)
            assert {p.name: p.read_bytes() for p in copy.iterdir()} == {p.name: p.read_bytes() for p in root.iterdir()}
            with pytest.raises(errors.NotFound):
                await side.diff.Apply(
                    pb.ApplyRequest(
                        diff=descriptor_pb2.Descriptor(media_type=TAR, digest=f"sha256:{'0' * 64}"), mounts=bind(root)
                    ),
                    headers=HEADERS,
                )


class Stalling:
    """A content service that has any blob, sends its beginning and then stops; it records its callers."""

    SERVICE = CONTENT

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.calls: list[rpc.Call] = []

    async def Info(self, request: content_pb.InfoRequest, call: rpc.Call) -> content_pb.InfoResponse:
        self.calls.append(call)
        return content_pb.InfoResponse(info=content_pb.Info(digest=request.digest, size=1 << 40))

    async def Read(
        self, request: content_pb.ReadContentRequest, call: rpc.Call
    ) -> AsyncIterator[content_pb.ReadContentResponse]:
        self.calls.append(call)
        yield content_pb.ReadContentResponse(data=self.data)
        await asyncio.Event().wait()


def apply_request(root: Path) -> pb.ApplyRequest:
    return pb.ApplyRequest(
        diff=descriptor_pb2.Descriptor(media_type=TAR, digest=f"sha256:{'0' * 64}"), mounts=bind(root)
    )


async def test_a_cancelled_call_ends_its_worker(place: Path) -> None:
    """The client goes away and the worker is killed; the calls to content had the caller's namespace and lease."""
    (root := place / "root").mkdir()
    content = Stalling(reg(b"first", b"x") + reg(b"second", size=1 << 20))
    servicer = DiffServicer(place / "internal.sock", place / "scratch")
    async with (
        rpc.serving(place / "internal.sock", [content], grace=0),
        rpc.serving(place / "diff.sock", [servicer], grace=0),
        rpc.Channel(place / "diff.sock") as channel,
    ):
        call = asyncio.ensure_future(
            channel.client(DIFF).Apply(apply_request(root), headers={**HEADERS, rpc.LEASE: "mine"}, timeout=None)
        )

        async def begun() -> bool:
            # the program that waits, and the worker
            return (root / "second").exists() and len(processes_naming(place / "scratch")) == 2

        await eventually_async(begun, "the worker does not unpack")
        call.cancel()

        async def gone() -> bool:
            return len(processes_naming(place / "scratch")) == 1

        await eventually_async(gone, "the worker outlives its call", 5)
        assert {(c.namespace, c.lease) for c in content.calls} == {("diff", "mine")}
        await servicer.close()
        assert not processes_naming(place / "scratch")


async def test_a_worker_dies_with_its_service(place: Path) -> None:
    """After kill -9 of the snapshots process no worker runs, and nothing stays mounted."""
    (root := place / "root").mkdir()
    content = Stalling(reg(b"first", b"x") + reg(b"second", size=1 << 20))
    (place / "state").mkdir()
    async with rpc.serving(place / "state/internal.sock", [content], grace=0):
        service = await asyncio.to_thread(
            ServiceProcess, "services.snapshots", place / "r", place / "state", sockets=("diff.sock",)
        )
        async with rpc.Channel(place / "state/diff.sock") as channel:
            call = asyncio.ensure_future(channel.client(DIFF).Apply(apply_request(root), headers=HEADERS, timeout=None))
            scratch = place / "r/snapshots/diff"

            async def begun() -> bool:
                return (root / "second").exists() and len(processes_naming(scratch)) == 2

            await eventually_async(begun, f"the worker does not unpack: {service.text()}")
            os.kill(service.pid, signal.SIGKILL)
            with pytest.raises(errors.Disconnected):
                await call

            async def gone() -> bool:
                return not processes_naming(scratch)

            await eventually_async(gone, "the worker outlives its service", 5)
            service.kill()
            assert not mounts_below(place)


async def test_a_worker_that_dies_fails_its_layer_only(
    side: Side, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """INTERNAL names the signal; the next Apply of the layer onto the same tree works."""
    (faults := place / "faults").mkdir()
    monkeypatch.setenv("SPLITD_FAULTS", str(faults))
    (faults / "diff.unpacked").touch()
    root = side.directory("root")
    verdict, error = await outcome(side.apply(BASE, bind(root)))
    assert verdict == "refused"
    assert isinstance(error, errors.Internal)
    assert "signal 9" in str(error)
    await side.apply(BASE, bind(root))
    other = side.directory("other")
    await side.apply(BASE, bind(other))
    assert not differences(tree(root), tree(other))


async def test_a_service_that_dies_before_the_commit_leaves_an_ingest_only(place: Path) -> None:
    """The blob is not there, the ref is free, and the same Diff makes the blob when it is called again."""
    (faults := place / "faults").mkdir()
    (left := place / "left").mkdir()
    (right := place / "right").mkdir()
    (right / "f").write_bytes(os.urandom(2_000_000))
    (place / "state").mkdir()
    store = LocalStore(place / "content")
    request = pb.DiffRequest(left=bind(left), right=bind(right), ref="again")
    servicers: list[rpc.Servicer] = [ContentServicer(store), LocalFilesServicer(store.files)]
    async with (
        rpc.serving(place / "state/internal.sock", servicers, grace=0),
        rpc.Channel(place / "state/internal.sock") as internal,
    ):
        service = await asyncio.to_thread(
            ServiceProcess,
            "services.snapshots",
            place / "r",
            place / "state",
            sockets=("diff.sock",),
            env={"SPLITD_FAULTS": str(faults)},
        )
        try:
            async with rpc.Channel(place / "state/diff.sock") as channel:
                (faults / "diff.before-commit").touch()
                with pytest.raises(errors.Disconnected):
                    await channel.client(DIFF).Diff(request, headers=HEADERS, timeout=30)
                content = internal.client(CONTENT)
                assert not [i async for page in content.List(content_pb.ListContentRequest()) for i in page.info]
                statuses = (await content.ListStatuses(content_pb.ListStatusesRequest())).statuses
                assert [(s.ref, s.offset > 2_000_000) for s in statuses] == [("again", True)]
                service.wait()
                await asyncio.to_thread(service.start)
                layer = (await channel.client(DIFF).Diff(request, headers=HEADERS, timeout=30)).diff
                assert [
                    i.digest async for page in content.List(content_pb.ListContentRequest()) for i in page.info
                ] == [layer.digest]
                assert not (await content.ListStatuses(content_pb.ListStatusesRequest())).statuses
        finally:
            await asyncio.to_thread(service.stop)
    store.close()


async def test_two_writers_of_a_ref(side: Side) -> None:
    """A ref that another writer holds is UNAVAILABLE with its name; an abandoned ingest of the ref is started over."""
    left, right = side.directory("left"), side.directory("right")
    (right / "f").write_bytes(os.urandom(100))
    assert isinstance(side.content, rpc.Client)
    begun = await side.content._channel.client(localfiles_stubs.LOCAL_FILES).Begin(
        files_pb.BeginRequest(ref="taken"), headers=HEADERS
    )
    import fcntl

    with open(begun.path, "r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write(b"something that another began")
        held.flush()
        with pytest.raises(errors.Unavailable, match="taken"):
            await side.make(bind(left), bind(right), ref="taken")
    layer = await side.make(bind(left), bind(right), ref="taken")
    assert hashlib.sha256(await side.read(layer.digest)).hexdigest() == layer.digest[7:]


async def test_a_workers_time_is_in_the_callers_trace(side: Side) -> None:
    """The spans of unpacking and comparing are the service's: the programs make none."""
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {**HEADERS, "traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    digest = await side.write(BASE)
    with spans.recorded() as found:
        await side.diff.Apply(
            pb.ApplyRequest(
                diff=descriptor_pb2.Descriptor(media_type=TAR, digest=digest), mounts=bind(side.directory("root"))
            ),
            headers=headers,
            timeout=60,
        )
        await side.diff.Diff(
            pb.DiffRequest(left=bind(side.directory("lower")), right=bind(side.place / "root")),
            headers=headers,
            timeout=60,
        )
        for name in ("diff.unpack", "diff.compare"):
            context = found.one(name).context
            assert context is not None
            assert f"{context.trace_id:032x}" == trace


@pytest.mark.parametrize("name", ["lower", "löwer"])
async def test_an_overlay_with_more_options_than_the_kernel_takes_is_refused(side: Side, name: str) -> None:
    """The kernel takes 4,095 bytes and ignores the rest: the lowest directory would be a different one, and the layer
    wrong.
    """
    top, cut, lowest, empty = (side.directory(each) for each in ("top", name, f"{name}1", "empty"))
    (cut / "wrong").touch()
    (lowest / "right").touch()

    def request(size: int) -> pb.DiffRequest:
        slashes = "/" * (size - len(os.fsencode(f"lowerdir={top}:{lowest}")))
        overlaid = mount_pb2.Mount(type="overlay", source="overlay", options=[f"lowerdir={top}:{slashes}{lowest}"])
        return pb.DiffRequest(left=bind(empty), right=[overlaid])

    with pytest.raises(errors.NodeError, match="mount options is too long: 4096 bytes"):
        await side.diff.Diff(request(4096), headers=HEADERS, timeout=60)
    made = (await side.diff.Diff(request(4095), headers=HEADERS, timeout=60)).diff
    await side.apply(await side.read(made.digest), bind(empty), made.media_type)
    assert os.listdir(empty) == ["right"]


async def test_a_small_layer_costs_little(side: Side) -> None:
    """A worker starts fast: ten small layers in sequence take well below two seconds on an idle machine."""
    root = side.directory("root")
    await side.apply(BASE, bind(root))
    took = []
    for _ in range(10):
        began = time.monotonic()
        await side.apply(BASE, bind(root))
        took.append(time.monotonic() - began)
    assert min(took) < 0.5, took  # the best of ten: others may load the machine
