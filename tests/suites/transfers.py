"""The suite of containerd.services.transfer.v1 and streaming.v1, without pulls and pushes. It runs on a node, and on a
containerd 2 if there is one.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import json
import os
import tarfile
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as PbAny

from api.containerd.services.content.v1 import content_pb2, content_stubs
from api.containerd.services.images.v1 import images_pb2, images_stubs
from api.containerd.services.leases.v1 import leases_pb2, leases_stubs
from api.containerd.services.snapshots.v1 import snapshots_pb2, snapshots_stubs
from api.containerd.services.streaming.v1 import streaming_pb2, streaming_stubs
from api.containerd.services.transfer.v1 import transfer_pb2, transfer_stubs
from api.containerd.types.platform_pb2 import Platform
from api.containerd.types.transfer import imagestore_pb2, importexport_pb2, registry_pb2
from api.containerd.types.transfer.progress_pb2 import Progress
from api.containerd.types.transfer.streaming_pb2 import Data, WindowUpdate
from deploy.samples import Image, image, index, tar_of
from services.kit import any as kit_any
from services.kit import errors
from services.kit.rpc import LEASE, NAMESPACE, Channel, Stream
from services.oci import platforms
from services.oci.digests import digest_of

STREAMING = streaming_stubs.STREAMING
TRANSFER = transfer_stubs.TRANSFER

MACHINE = platforms.default().architecture
IMAGE_NAME = "io.containerd.image.name"
HERE = Platform(os="linux", architecture=MACHINE)
NAMED = imagestore_pb2.ImageReference(name="prefix", is_prefix=True, allow_overwrite=True)
WINDOW = 1 << 16


def files(contents: Mapping[str, bytes]) -> bytes:
    """A tar of files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def names_in(archive: bytes) -> list[str]:
    """The names of the files in a tar."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return tar.getnames()


def layout(images: Mapping[str, Image], **more: bytes) -> bytes:
    """An OCI layout of images by their full names."""
    entries = [{**found.descriptor, "annotations": {IMAGE_NAME: name}} for name, found in images.items()]
    blobs = {f"blobs/sha256/{digest[7:]}": data for found in images.values() for digest, data in found.blobs.items()}
    return files(
        {
            "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
            "index.json": json.dumps({"schemaVersion": 2, "manifests": entries}).encode(),
            **blobs,
            **more,
        }
    )


def saved(layers: Sequence[bytes], *names: str, architecture: str = MACHINE) -> bytes:
    """An image as docker save writes it."""
    config = {
        "architecture": architecture,
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]},
    }
    entry = {"Config": "config.json", "RepoTags": names, "Layers": [f"{n}/layer.tar" for n in range(len(layers))]}
    return files(
        {
            "manifest.json": json.dumps([entry]).encode(),
            "config.json": json.dumps(config).encode(),
            **{f"{n}/layer.tar": layer for n, layer in enumerate(layers)},
        }
    )


class Transfers:
    """A client of one namespace, like containerd's own: streams, transfers, and calls that show their results."""

    _ids = itertools.count()
    patience = 0.0
    """Seconds to wait for the last bytes of an export. containerd may still be sending when the transfer returns; our
    node must not.
    """

    def __init__(self, channel: Channel, namespace: str, lease: str = "") -> None:
        self.headers = {NAMESPACE: namespace, **({LEASE: lease} if lease else {})}
        self._streaming = channel.client(STREAMING)
        self._transfer = channel.client(TRANSFER)
        self._images = channel.client(images_stubs.IMAGES)
        self._content = channel.client(content_stubs.CONTENT)
        self._leases = channel.client(leases_stubs.LEASES)
        self._snapshots = channel.client(snapshots_stubs.SNAPSHOTS)

    @contextlib.asynccontextmanager
    async def stream(self, purpose: str) -> AsyncIterator[tuple[str, Stream]]:
        """An open stream and its id."""
        name = f"{purpose}-{os.getpid()}-{next(self._ids)}"
        async with self._streaming.Stream(headers=self.headers) as stream:
            await stream.send(kit_any.pack(streaming_pb2.StreamInit(id=name)))
            answer = await stream.receive()
            assert answer is not None
            assert answer.type_url == "google.protobuf.Empty"
            yield name, stream

    async def transfer(self, source: Any, destination: Any, *, told: list[Progress] | None = None) -> None:
        """Make a transfer; its progress goes to ``told``."""
        request = transfer_pb2.TransferRequest(source=kit_any.pack(source), destination=kit_any.pack(destination))
        if told is None:
            await self._transfer.Transfer(request, headers=self.headers, timeout=60)
            return
        async with self.stream("progress") as (name, stream):
            request.options.progress_stream = name
            await self._transfer.Transfer(request, headers=self.headers, timeout=60)
            while (value := await stream.receive()) is not None:
                told.append(Progress.FromString(value.value))

    async def import_(
        self,
        archive: bytes | AsyncIterator[bytes],
        store: imagestore_pb2.ImageStore | None = None,
        *,
        told: list[Progress] | None = None,
        **options: Any,
    ) -> None:
        """Import an archive, sent as containerd's client sends it: in pieces of 32 KiB, and no more than is allowed."""
        async with self.stream("import") as (name, stream):
            sending = asyncio.ensure_future(_send(stream, archive))
            try:
                await self.transfer(
                    importexport_pb2.ImageImportStream(stream=name, **options),
                    imagestore_pb2.ImageStore(extra_references=[NAMED]) if store is None else store,
                    told=told,
                )
            finally:
                sending.cancel()
                await asyncio.wait((sending,))

    async def export(self, *names: str, told: list[Progress] | None = None, **options: Any) -> bytes:
        """Export images. Returns the archive that a client has when the transfer returns."""
        references = [imagestore_pb2.ImageReference(name=name) for name in names]
        async with self.stream("export") as (name, stream):
            archive = bytearray()
            receiving = asyncio.ensure_future(_receive(stream, archive))
            try:
                await self.transfer(
                    imagestore_pb2.ImageStore(extra_references=references),
                    importexport_pb2.ImageExportStream(stream=name, **options),
                    told=told,
                )
                await asyncio.sleep(self.patience)
                return bytes(archive)
            finally:
                receiving.cancel()
                await asyncio.wait((receiving,))

    async def images(self) -> dict[str, images_pb2.Image]:
        """All images, by name."""
        return {
            i.name: i for i in (await self._images.List(images_pb2.ListImagesRequest(), headers=self.headers)).images
        }

    async def delete_image(self, name: str) -> None:
        """Delete the image, and collect what it kept."""
        await self._images.Delete(images_pb2.DeleteImageRequest(name=name, sync=True), headers=self.headers, timeout=30)

    async def labels(self, digest: str) -> dict[str, str]:
        """A blob's labels; NotFound."""
        return dict(
            (await self._content.Info(content_pb2.InfoRequest(digest=digest), headers=self.headers)).info.labels
        )

    async def blobs(self) -> set[str]:
        return {
            info.digest
            async for page in self._content.List(content_pb2.ListContentRequest(), headers=self.headers)
            for info in page.info
        }

    async def ingests(self) -> list[str]:
        response = await self._content.ListStatuses(content_pb2.ListStatusesRequest(), headers=self.headers)
        return [status.ref for status in response.statuses]

    async def leases(self) -> dict[str, Mapping[str, str]]:
        """Labels by id."""
        return {
            lease.id: lease.labels
            for lease in (await self._leases.List(leases_pb2.ListRequest(), headers=self.headers)).leases
        }

    async def snapshots(self) -> dict[str, snapshots_pb2.Info]:
        """Snapshots of overlayfs, by name."""
        request = snapshots_pb2.ListSnapshotsRequest(snapshotter="overlayfs")
        return {
            info.name: info async for page in self._snapshots.List(request, headers=self.headers) for info in page.info
        }


async def _send(stream: Stream, archive: bytes | AsyncIterator[bytes]) -> None:
    source = archive if not isinstance(archive, bytes) else _pieces(archive)
    allowed = 0
    async for data in source:
        for start in range(0, len(data), WINDOW // 2):
            piece = data[start : start + WINDOW // 2]
            while allowed < len(piece):
                value = await stream.receive()
                if value is None:
                    return
                allowed += WindowUpdate.FromString(value.value).update
            await stream.send(kit_any.pack(Data(data=piece)))
            allowed -= len(piece)
    await stream.done_sending()


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _receive(stream: Stream, archive: bytearray) -> None:
    window = 0
    while True:
        if window < WINDOW:
            with contextlib.suppress(errors.NodeError):  # it may have ended
                await stream.send(kit_any.pack(WindowUpdate(update=WINDOW)))
            window += WINDOW
        value: PbAny | None = await stream.receive()
        if value is None:
            return
        data = Data.FromString(value.value).data
        assert len(data) <= window, "more than was allowed"
        archive += data
        window -= len(data)


UNPACK = imagestore_pb2.UnpackConfiguration(platform=HERE, snapshotter="overlayfs")


class TransferSuite:
    """A subclass has a fixture ``channel`` to a whole node."""

    numbers = itertools.count()

    @pytest.fixture
    def client(self, channel: Channel) -> Transfers:
        return Transfers(channel, f"transfer{os.getpid()}-{next(self.numbers)}")

    async def test_an_import_stores_and_labels_the_blobs_of_its_images(self, client: Transfers) -> None:
        """It also reports progress; blobs to which nothing refers are collected."""
        box, told = image([tar_of([("a", {"data": b"a"})]), tar_of([("b", {"data": b"b"})])]), list[Progress]()
        await client.import_(layout({"example.com/box:1": box}, stray=b"stray"), told=told)
        found = (await client.images())["example.com/box:1"]
        assert (found.target.digest, found.target.media_type, found.target.size) == (
            box.digest,
            box.media_type,
            len(box.blobs[box.digest]),
        )
        config = json.loads(box.blobs[box.digest])["config"]["digest"]
        assert await client.labels(box.digest) == {
            "containerd.io/gc.ref.content.config": config,
            "containerd.io/gc.ref.content.l.0": box.layers[0],
            "containerd.io/gc.ref.content.l.1": box.layers[1],
        }
        assert [(p.event, p.name) for p in told] == [
            ("Importing", ""),
            ("saved", "example.com/box:1"),
            ("Completed import", ""),
        ]
        assert told[1].desc.digest == box.digest
        await client.import_(layout({"example.com/other:1": image([b"not unpacked"])}))
        await client.delete_image("example.com/other:1")
        assert await client.blobs() == set(box.blobs)

    async def test_an_import_unpacks(self, client: Transfers) -> None:
        """Each layer becomes a snapshot under its chain id, which labels refer to."""
        layers = [tar_of([("a", {"data": b"1"})]), tar_of([("b", {"data": b"2"})])]
        box = image(layers)
        await client.import_(
            layout({"example.com/box:1": box}),
            imagestore_pb2.ImageStore(extra_references=[NAMED], unpacks=[UNPACK], platforms=[HERE]),
        )
        low = digest_of(layers[0])
        top = digest_of(f"{low} {digest_of(layers[1])}".encode())
        found = await client.snapshots()
        assert {name: info.parent for name, info in found.items()} == {low: "", top: low}
        assert found[top].labels["containerd.io/snapshot.ref"] == top
        assert [await client.labels(digest) for digest in box.layers] == [
            {"containerd.io/uncompressed": digest_of(layer)} for layer in layers
        ]
        config = json.loads(box.blobs[box.digest])["config"]["digest"]
        assert await client.labels(config) == {"containerd.io/gc.ref.snapshot.overlayfs": top}
        await client.delete_image("example.com/box:1")
        assert not await client.snapshots()
        assert not await client.blobs()

    async def test_a_layer_that_does_not_match_its_diff_id_is_refused(self, client: Transfers) -> None:
        """There is no image and no snapshot."""
        box = image([tar_of([("a", {"data": b"1"})])])
        config = json.loads(box.blobs[json.loads(box.blobs[box.digest])["config"]["digest"]])
        config["rootfs"]["diff_ids"] = [digest_of(b"other")]
        data = json.dumps(config).encode()
        manifest = json.loads(box.blobs[box.digest])
        manifest["config"] |= {"digest": digest_of(data), "size": len(data)}
        document = json.dumps(manifest).encode()
        wrong = Image(
            box.media_type,
            digest_of(document),
            {**box.blobs, digest_of(data): data, digest_of(document): document},
            box.architecture,
        )
        with pytest.raises(errors.Unknown, match="wrong diff id"):
            await client.import_(
                layout({"a:1": wrong}), imagestore_pb2.ImageStore(extra_references=[NAMED], unpacks=[UNPACK])
            )
        assert not await client.images()
        assert not await client.snapshots()

    async def test_a_docker_save_archive_has_the_same_digests_everywhere(self, client: Transfers) -> None:
        """So an image that went through docker is the same on each node."""
        await client.import_(
            saved([files({"a": b"a"}), files({"b": b"b"})], "box:1", "example.com/x/box:2", architecture="amd64")
        )
        assert {name: i.target.digest for name, i in (await client.images()).items()} == dict.fromkeys(
            ("docker.io/library/box:1", "example.com/x/box:2"),
            "sha256:1530bf7e620b0f1ac2e2ff269f7946f623d8191a527783568923e77a6146d0b6",
        )

    async def test_names_come_from_prefixes_and_digests(self, client: Transfers) -> None:
        """Tags follow the prefix, digests are added where wanted, and all images have the labels."""
        box = image([b"x"])
        entry = {**box.descriptor, "annotations": {"org.opencontainers.image.ref.name": "v1"}}
        whole = json.dumps({"manifests": [entry, box.descriptor]}).encode()
        archive = files(
            {
                "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
                "index.json": whole,
                **{f"blobs/sha256/{digest[7:]}": data for digest, data in box.blobs.items()},
            }
        )
        reference = imagestore_pb2.ImageReference(
            name="example.com/p", is_prefix=True, add_digest=True, skip_named_digest=True
        )
        await client.import_(archive, imagestore_pb2.ImageStore(extra_references=[reference], labels={"a": "b"}))
        found = await client.images()
        # containerd 2.1 does not have the index's
        assert found.keys() - {f"example.com/p@{digest_of(whole)}"} == {
            "example.com/p:v1",
            f"example.com/p@{box.digest}",
        }
        assert all(i.labels == {"a": "b"} for i in found.values())

    async def test_an_import_lasts_under_a_lease_of_its_own(self, client: Transfers) -> None:
        """So nothing of it is collected before there is an image; at the end the lease is gone."""
        archive = layout({"example.com/box:1": image([os.urandom(100_000)])})
        leases: list[dict[str, Mapping[str, str]]] = []

        async def source() -> AsyncIterator[bytes]:
            yield archive[:90_000]
            leases.append(await client.leases())
            yield archive[90_000:]

        await client.import_(source())
        ((labels,),) = (found.values() for found in leases)
        assert "containerd.io/gc.expire" in labels
        assert not await client.leases()

    async def test_the_callers_lease_keeps_imported_blobs(self, channel: Channel, client: Transfers) -> None:
        """It keeps it also when the image is deleted; no other lease is made."""
        await client._leases.Create(leases_pb2.CreateRequest(id="mine"), headers=client.headers)
        leased = Transfers(channel, client.headers[NAMESPACE], "mine")
        box = image([b"kept"])
        await leased.import_(layout({"example.com/box:1": box}))
        assert set(await client.leases()) == {"mine"}
        await client.delete_image("example.com/box:1")
        assert set(box.blobs) <= await client.blobs()

    async def test_an_export_is_the_same_each_time_and_can_be_imported(
        self, channel: Channel, client: Transfers
    ) -> None:
        """The whole archive is there when the transfer returns, however long it is."""
        box = image([tar_of([("random", {"data": os.urandom(3_000_000)})])])
        await client.import_(layout({"docker.io/library/box:1": box}))
        told: list[Progress] = []
        archive = await client.export("docker.io/library/box:1", told=told)
        assert [p.event for p in told] == ["Exporting", "Completed export"]
        assert archive == await client.export("docker.io/library/box:1")
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            assert set(box.blobs) == {
                f"sha256:{m.name.rpartition('/')[2]}"
                for m in tar.getmembers()
                if m.name.startswith("blobs/sha256/") and m.isfile()
            }
            manifest = tar.extractfile("manifest.json")
            assert manifest is not None
            assert json.load(manifest)[0]["RepoTags"] == ["box:1"]
        other = Transfers(channel, f"{client.headers[NAMESPACE]}-other")
        await other.import_(archive)
        assert {n: i.target.digest for n, i in (await other.images()).items()} == {
            "docker.io/library/box:1": box.digest
        }

    async def test_an_index_is_exported_for_platforms(self, client: Transfers) -> None:
        """It is exported for this machine's platform if none is named, and for all if all are wanted."""
        here, there = image([b"here"]), image([b"there"], architecture="mips64")
        multi = index(here, there)
        await client.import_(layout({"example.com/multi:1": multi}))
        found = [
            await client.export("example.com/multi:1", **options)
            for options in (
                {},
                {"platforms": [Platform(os="linux", architecture="mips64")]},
                {"all_platforms": True},
                {"skip_compatibility_manifest": True},
            )
        ]
        names = [set(names_in(archive)) for archive in found]
        layers = [f"blobs/sha256/{i.layers[0][7:]}" for i in (here, there)]
        assert [[layer in n for layer in layers] for n in names] == [
            [True, False],
            [False, True],
            [True, True],
            [True, False],
        ]
        assert ["manifest.json" in n for n in names] == [True, True, True, False]
        with pytest.raises(errors.NotFound, match="no manifest found for platform"):
            await client.export("example.com/multi:1", platforms=[Platform(os="linux", architecture="s390x")])

    async def test_a_tag_is_the_same_target_and_takes_the_name_over(self, client: Transfers) -> None:
        one, two = image([b"1"]), image([b"2"])
        await client.import_(layout({"example.com/one:1": one, "example.com/two:1": two}))
        store = imagestore_pb2.ImageStore
        for source in ("one", "two"):
            await client.transfer(
                store(name=f"example.com/{source}:1"), store(name="example.com/tag:1", labels={"from": source})
            )
        found = (await client.images())["example.com/tag:1"]
        assert (found.target.digest, dict(found.labels)) == (two.digest, {"from": "two"})
        with pytest.raises(errors.NotFound, match='image "example.com/none:1": not found'):
            await client.transfer(store(name="example.com/none:1"), store(name="example.com/tag:1"))

    async def test_errors_of_transfers(self, client: Transfers) -> None:
        """The words are those that clients know."""
        with pytest.raises(errors.Unknown, match="unrecognized image format"):
            await client.import_(files({"a": b"x"}))
        with pytest.raises(errors.Unknown, match="invalid tar header"):
            await client.import_(b"x" * 4096)
        with pytest.raises(errors.NotFound, match='image "none:1": not found'):
            await client.export("none:1")
        with pytest.raises(errors.NotFound):
            await client.transfer(importexport_pb2.ImageImportStream(stream="none"), imagestore_pb2.ImageStore())
        registry = registry_pb2.OCIRegistry(reference="example.com/a:1")
        with pytest.raises(
            errors.Unimplemented,
            match=(
                "method Transfer not implemented for containerd.types.transfer.OCIRegistry to "
                "containerd.types.transfer.OCIRegistry"
            ),
        ):
            await client.transfer(registry, registry)
        async with client.stream("twice") as (name, _):
            async with client._streaming.Stream(headers=client.headers) as again:
                await again.send(kit_any.pack(streaming_pb2.StreamInit(id=name)))
                with pytest.raises(errors.NodeError, match="already exists"):
                    await again.receive()

    async def test_many_at_once(self, channel: Channel, client: Transfers) -> None:
        """Imports of the same layers into the same and other namespaces, unpacked, with exports at the same time."""
        box = image([tar_of([("a", {"data": os.urandom(200_000)})])])
        archive = layout({"example.com/box:1": box})
        store = imagestore_pb2.ImageStore(extra_references=[NAMED], unpacks=[UNPACK])
        others = [Transfers(channel, f"{client.headers[NAMESPACE]}-{n}") for n in range(3)]
        await asyncio.gather(*(c.import_(archive, store) for c in (client, client, *others)))
        first, *more = await asyncio.gather(*(c.export("example.com/box:1") for c in (client, client, *others)))
        assert all(archive == first for archive in more)
        assert len(await client.snapshots()) == 1


class NodeTransferSuite(TransferSuite):
    """Promises that only our node makes."""

    @pytest.mark.parametrize("skip", [False, True])
    async def test_images_without_names_are_named_by_digest(self, client: Transfers, skip: bool) -> None:
        """As in containerd since 2.3 (its TestTransferImport/DigestOnly): the index and each of its manifests become
        PREFIX@DIGEST.
        """
        boxes = [image([b"x"]), image([b"y"])]
        whole = json.dumps({"manifests": [box.descriptor for box in boxes]}).encode()
        blobs = {f"blobs/sha256/{digest[7:]}": data for box in boxes for digest, data in box.blobs.items()}
        archive = files({"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": whole, **blobs})
        reference = imagestore_pb2.ImageReference(
            name="example.com/p", is_prefix=True, add_digest=True, skip_named_digest=skip
        )
        await client.import_(archive, imagestore_pb2.ImageStore(extra_references=[reference]))
        assert set(await client.images()) == {
            f"example.com/p@{digest}" for digest in (digest_of(whole), *(box.digest for box in boxes))
        }

    async def test_a_client_that_goes_away_leaves_nothing(self, client: Transfers) -> None:
        """No image, lease or ingest is left; blobs that came are collected."""
        archive = layout({"example.com/box:1": image([os.urandom(300_000), os.urandom(300_000)])})
        sent = asyncio.Event()

        async def source() -> AsyncIterator[bytes]:
            yield archive[:400_000]
            sent.set()
            await asyncio.sleep(1000)

        importing = asyncio.ensure_future(client.import_(source()))
        await sent.wait()
        importing.cancel()
        await asyncio.wait((importing,))
        async with asyncio.timeout(10):
            while await client.leases() or await client.ingests():
                await asyncio.sleep(0.05)
        assert not await client.images()

    async def test_an_archive_that_ends_early_stores_no_image(self, client: Transfers) -> None:
        archive = layout({"example.com/box:1": image([os.urandom(300_000)])})
        with pytest.raises(errors.Unknown, match="unexpected EOF"):
            await client.import_(archive[:200_000])
        assert not await client.images()
        assert not await client.ingests()

    async def test_another_snapshotter_and_none_that_there_is(self, client: Transfers) -> None:
        """Any of the node's snapshotters is accepted; containerd's must be in its configuration."""
        archive = layout({"example.com/box:1": image([tar_of([("a", {"data": b"1"})])])})
        unpack = imagestore_pb2.UnpackConfiguration
        await client.import_(
            archive,
            imagestore_pb2.ImageStore(extra_references=[NAMED], unpacks=[unpack(platform=HERE, snapshotter="native")]),
        )
        with pytest.raises(errors.InvalidArgument, match="snapshotter not loaded: none"):
            await client.import_(
                archive,
                imagestore_pb2.ImageStore(
                    extra_references=[NAMED], unpacks=[unpack(platform=HERE, snapshotter="none")]
                ),
            )
        with pytest.raises(errors.InvalidArgument, match="no unpack platforms defined"):
            await client.import_(
                archive,
                imagestore_pb2.ImageStore(unpacks=[unpack(platform=Platform(os="windows", architecture="amd64"))]),
            )
