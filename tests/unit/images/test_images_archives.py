"""Archives in memory: the results of an import, and the files of an export."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import os
import tarfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import zstandard

from services.images import names
from services.images.archives import exporter, importer
from services.images.documents import manifests
from services.images.layers.unpacker import Unpacker
from services.images.transfer import ExportStream, Image, ImageReference, ImageStore, ImportStream, Unpacking
from services.kit import errors
from services.oci import digests, media_types
from services.oci.descriptors import Descriptor
from services.oci.digests import digest_of
from services.oci.platforms import Platform, default
from tests.suites.diff_tars import block, long_name, pax, reg, symlink, tar
from tests.unit.images.memory_node import MemoryNode, MemorySink, Told, layout, pieces, tar_of

HERE = default()
NAMED = ImageReference("prefix", is_prefix=True, allow_overwrite=True)
LAYER = "application/vnd.oci.image.layer.v1.tar"


@pytest.fixture
def node(tmp_path: Path) -> MemoryNode:
    return MemoryNode(tmp_path)


class Made:
    """Images for archives: their blobs and the descriptors of the images."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}

    def put(self, media_type: str, data: bytes, **more: Any) -> dict[str, Any]:
        self.blobs[digest_of(data)] = data
        return {"mediaType": media_type, "digest": digest_of(data), "size": len(data), **more}

    def image(self, *layers: bytes, platform: Platform = HERE, **more: Any) -> dict[str, Any]:
        config = {
            **manifests.platform_to_json(platform),
            "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]},
        }
        manifest = {
            "schemaVersion": 2,
            "config": self.put(media_types.CONFIG, json.dumps(config).encode()),
            "layers": [self.put(LAYER, layer) for layer in layers],
        }
        return self.put(
            media_types.MANIFEST, json.dumps(manifest).encode(), platform=manifests.platform_to_json(platform), **more
        )

    def index(self, *entries: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        return self.put(media_types.INDEX, json.dumps({"schemaVersion": 2, "manifests": entries}).encode(), **more)


def named(name: str) -> dict[str, Any]:
    return {"annotations": {names.IMAGE_NAME: name}}


async def read(archive: bytes, node: MemoryNode, **limits: int) -> importer.Contents:
    return await importer.read(ImportStream(pieces(archive)), node, **limits)


async def imported(
    archive: bytes | AsyncIterator[bytes],
    node: MemoryNode,
    store: ImageStore | None = None,
    told: Told | None = None,
    **stream: Any,
) -> None:
    source = pieces(archive) if isinstance(archive, bytes) else archive
    async with asyncio.timeout(20):
        await importer.import_archive(
            ImportStream(source, **stream),
            ImageStore(references=(NAMED,)) if store is None else store,
            node,
            Unpacker(),
            Told() if told is None else told,
        )


# ---------------------------------------------------------------------------------------------- imports


@pytest.mark.parametrize(
    "packed",
    [
        bytes,
        gzip.compress,
        zstandard.ZstdCompressor().compress,
        lambda x: gzip.compress(x[:700]) + gzip.compress(x[700:]),
    ],
)
async def test_a_layout_is_imported_compressed_or_not(node: MemoryNode, packed: Any) -> None:
    """Every file becomes a blob, each entry an image, and documents are labelled with their references."""
    made, told = Made(), Told()
    image = made.image(b"layer" * 1000, **named("a.io/b:1"))
    await imported(packed(layout([image], made.blobs)), node, told=told)
    assert made.blobs.items() <= node.blobs.items()
    assert list(node.images) == ["a.io/b:1"]
    stored = node.images["a.io/b:1"].target
    assert (stored.media_type, stored.digest, stored.size) == (image["mediaType"], image["digest"], image["size"])
    children = json.loads(node.blobs[image["digest"]])
    assert node.labels[image["digest"]] == {
        "containerd.io/gc.ref.content.config": children["config"]["digest"],
        "containerd.io/gc.ref.content.l.0": children["layers"][0]["digest"],
    }
    assert told.events() == [("Importing", ""), ("saved", "a.io/b:1"), ("Completed import", "")]
    assert told[1].descriptor is not None
    assert told[1].descriptor.digest == image["digest"]


async def test_a_stream_that_says_it_is_a_tar_is_not_inflated(node: MemoryNode) -> None:
    with pytest.raises(errors.Unknown, match="archive/tar: invalid tar header"):
        await imported(gzip.compress(layout([], {"sha256:0": os.urandom(1000)})), node, media_type="application/x-tar")


async def test_entries_without_a_name_are_not_images_but_the_index_may_be(node: MemoryNode) -> None:
    made = Made()
    archive = layout([made.image(b"x")], made.blobs)
    await imported(archive, node, ImageStore("whole:1", references=(NAMED,)))
    assert [(i.name, i.target.media_type) for i in node.images.values()] == [("whole:1", media_types.INDEX)]


async def test_documents_that_an_archive_lacks_are_missed_and_layers_are_not(node: MemoryNode) -> None:
    """The node may have the layers, or they are not wanted."""
    made = Made()
    image = made.image(b"layer", **named("a:1"))
    without_layer = {d: b for d, b in made.blobs.items() if b != b"layer"}
    await imported(layout([image], without_layer), node)
    assert list(node.images) == ["a:1"]
    with pytest.raises(errors.NotFound):
        await imported(layout([image], {}), MemoryNode(node.directory))


async def test_files_with_the_same_bytes_are_one_blob(node: MemoryNode) -> None:
    """This is for small files: each blob costs an ingest and a commit, and an archive of 100 KiB may have two thousand
    files. Large files are not kept for comparison.
    """
    made = Made()
    image = made.image(b"layer", **named("a:1"))
    files = {f"d/{n}": (b"", b"same", b"x" * 65536)[n % 3] for n in range(300)} | {
        "large/1": b"y" * 65537,
        "large/2": b"y" * 65537,
    }
    documents = {
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        "index.json": json.dumps({"schemaVersion": 2, "manifests": [image]}).encode(),
    }
    await imported(
        tar_of(files | documents | {f"blobs/sha256/{digest[7:]}": data for digest, data in made.blobs.items()}), node
    )
    assert list(node.images) == ["a:1"]
    assert {digest_of(data) for data in files.values()} <= node.blobs.keys()
    refs = [ref[: -len("-01234567")] for ref in node.refs]  # its unique part may hold a dash itself
    assert [ref for ref in refs if ref.startswith(("tar-d/", "tar-large/"))] == [
        "tar-d/0",
        "tar-d/1",
        "tar-d/2",
        "tar-large/1",
        "tar-large/2",
    ]


async def test_a_document_that_is_named_many_times_is_labelled_once(node: MemoryNode) -> None:
    """Ten indexes that name the next one twice have a thousand ways to the image below them."""
    made = Made()
    at = made.image(b"layer")
    for _ in range(10):
        at = made.index(at, at)
    labelled, label = list[str](), node.label

    async def labelling(digest: str, labels: Mapping[str, str]) -> None:
        labelled.append(digest)
        await label(digest, labels)

    node.label = labelling  # type: ignore[method-assign]
    await imported(layout([at], made.blobs), node)
    assert len(labelled) == len({*labelled}) == 12


async def test_only_wanted_platforms_are_walked(node: MemoryNode) -> None:
    """Documents of other platforms may be missing, and the index keeps naming them all."""
    made = Made()
    here, there = made.image(b"here"), made.image(b"there", platform=Platform("linux", "s390x"))
    index = made.index(here, there, **named("multi:1"))
    blobs = {d: b for d, b in made.blobs.items() if d != there["digest"]}
    await imported(layout([index], blobs), node, ImageStore(platforms=(HERE,), references=(NAMED,)))
    assert node.labels[index["digest"]] == {
        "containerd.io/gc.ref.content.m.0": here["digest"],
        "containerd.io/gc.ref.content.m.1": there["digest"],
    }
    with pytest.raises(errors.NotFound):
        await imported(layout([index], blobs), MemoryNode(node.directory))


async def test_metadata_of_all_platforms_is_walked_without_their_layers(node: MemoryNode) -> None:
    made = Made()
    there = made.image(b"there", platform=Platform("linux", "s390x"))
    index = made.index(made.image(b"here"), there, **named("multi:1"))
    store = ImageStore(platforms=(HERE,), all_metadata=True, references=(NAMED,), unpacks=(Unpacking(HERE),))
    node.diff_ids = {digest_of(b"here"): digest_of(b"here")}
    await imported(layout([index], made.blobs), node, store)
    assert node.labels[there["digest"]]
    assert node.applied == [digest_of(b"here")]


async def test_a_limit_takes_the_manifests_that_are_wanted_most(node: MemoryNode) -> None:
    """At least one manifest has to be left."""
    made = Made()
    amd, arm = (made.image(a.encode(), platform=Platform("linux", a)) for a in ("amd64", "arm64"))
    store = ImageStore(
        platforms=(Platform("linux", "arm64"), Platform("linux", "amd64")), manifest_limit=1, references=(NAMED,)
    )
    await imported(layout([made.index(amd, arm, **named("multi:1"))], made.blobs), node, store)
    assert node.labels[arm["digest"]]
    assert not node.labels[amd["digest"]]
    with pytest.raises(errors.NotFound, match="no match for platform in manifest"):
        await imported(
            layout([amd], made.blobs), node, ImageStore(platforms=(Platform("linux", "s390x"),), manifest_limit=1)
        )


async def test_an_import_of_nothing_that_is_wanted_says_so(node: MemoryNode) -> None:
    made = Made()
    with pytest.raises(
        errors.Unknown, match=f"^image might be filtered out: the archive is for {HERE}, wanted is linux/s390x$"
    ):
        await imported(
            layout([made.image(b"x", **named("a:1"))], made.blobs),
            node,
            ImageStore(platforms=(Platform("linux", "s390x"),), references=(NAMED,)),
        )
    many = [made.image(b"x", platform=Platform("linux", f"a{n}" if n else "a" * 1000)) for n in range(10)]
    with pytest.raises(
        errors.Unknown,
        match=(
            f"^image might be filtered out: the archive is for linux/{'a' * 54}..., linux/a1, .*, linux/a7 and 2 "
            "more, wanted is linux/s390x$"
        ),
    ):
        await imported(
            layout(many, made.blobs), node, ImageStore(platforms=(Platform("linux", "s390x"),), references=(NAMED,))
        )
    with pytest.raises(errors.Unknown, match="^image might be filtered out: the archive's index lists no image$"):
        await imported(layout([], {}), node)
    assert not node.images


async def test_images_for_other_platforms_are_left_out_if_only_wanted_ones_are_stored(node: MemoryNode) -> None:
    """The platform may be in the index or only in the config; the index then gets no name. Images without a platform
    are stored; an attestation by itself is not.
    """
    made, told, there = Made(), Told(), Platform("linux", "s390x")
    said, unsaid = (
        made.image(b"there", platform=there, **named("said:1")),
        {k: v for k, v in made.image(b"there", platform=there, **named("unsaid:1")).items() if k != "platform"},
    )
    inner = made.index(
        made.image(b"a", platform=there),
        made.image(b"b", platform=Platform("linux", "arm", "v7")),
        made.image(b"c", platform=Platform("unknown", "unknown")),
        **named("inner:1"),
    )
    artifact = made.put(
        media_types.MANIFEST,
        json.dumps(
            {"schemaVersion": 2, "config": made.put("a/config", b"{}"), "layers": [made.put("a/data", b"data")]}
        ).encode(),
        **named("artifact:1"),
    )
    entries = [
        said,
        made.image(b"here", **named("here:1")),
        unsaid,
        inner,
        made.index(made.image(b"a", platform=there), made.image(b"here"), **named("multi:1")),
        artifact,
        made.image(b"d", platform=Platform("unknown", "unknown"), **named("attest:1")),
    ]
    prefix = ImageReference("p", is_prefix=True, allow_overwrite=True, add_digest=True, skip_named_digest=True)
    await imported(
        layout(entries, made.blobs), node, ImageStore(platforms=(HERE,), references=(prefix,), only_wanted=True), told
    )
    assert list(node.images) == ["here:1", "multi:1", "artifact:1"]
    assert [(each.event, each.name) for each in told if each.event.startswith("not imported")] == [
        ("not imported: for linux/s390x", "said:1"),
        ("not imported: for linux/s390x", "unsaid:1"),
        ("not imported: for linux/s390x, linux/arm/v7", "inner:1"),
        ("not imported: for unknown/unknown", "attest:1"),
    ]


async def test_an_archive_without_wanted_images_reports_their_platforms(node: MemoryNode) -> None:
    made, told = Made(), Told()
    store = ImageStore(platforms=(Platform("linux", "s390x"),), references=(NAMED,), only_wanted=True)
    await imported(
        layout([made.image(b"x", **named("a:1")), made.image(b"y", **named("b:1"))], made.blobs), node, store, told
    )
    assert told.events()[1:-1] == [(f"not imported: for {HERE}", "a:1"), (f"not imported: for {HERE}", "b:1")]
    assert not node.images


@pytest.mark.parametrize("skip", [False, True])
async def test_an_archive_without_names_is_stored_by_digests(node: MemoryNode, skip: bool) -> None:
    """Its index is too (containerd's TestTransferImport/DigestOnly)."""
    made = Made()
    entries = [made.image(b"x"), made.image(b"y")]
    archive = layout(entries, made.blobs)
    index = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    await imported(
        archive,
        node,
        ImageStore(references=(ImageReference("p", is_prefix=True, add_digest=True, skip_named_digest=skip),)),
    )
    assert list(node.images) == [f"p@{digest_of(index)}", *(f"p@{entry['digest']}" for entry in entries)]


async def test_an_artifact_type_that_is_a_configs_makes_no_artifact(node: MemoryNode) -> None:
    """Layouts that crane writes give each image the media type of its config as its artifact type."""
    made = Made()
    node.diff_ids = {digest_of(b"layer"): digest_of(b"layer")}
    store = ImageStore(platforms=(HERE,), references=(NAMED,), unpacks=(Unpacking(HERE),), only_wanted=True)
    await imported(
        layout([made.image(b"layer", artifactType=media_types.CONFIG, **named("crane:1"))], made.blobs), node, store
    )
    assert list(node.images) == ["crane:1"]
    assert node.applied == [digest_of(b"layer")]


def docker(entries: object, files: Mapping[str, bytes | str]) -> bytes:
    return tar_of({"manifest.json": json.dumps(entries).encode(), **files})


CONFIG = json.dumps({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": ["x"]}}).encode()


async def test_a_docker_save_archive_gets_containerds_manifest(node: MemoryNode) -> None:
    """The digests are those of containerd 1.6 and 2.1 for the same archive (tests/node compares with both ways)."""
    entry = {"Config": "c.json", "RepoTags": ["box:1", "example.com/x/y:2"], "Layers": ["a/layer.tar", "b/layer.tar"]}
    await imported(docker([entry], {"c.json": CONFIG, "a/layer.tar": b"layer", "b/layer.tar": "../a/layer.tar"}), node)
    target = node.images["docker.io/library/box:1"].target
    assert target.annotations == {names.IMAGE_NAME: "docker.io/library/box:1", names.REF_NAME: "1"}
    assert node.images["example.com/x/y:2"].target.digest == target.digest
    layer = f'{{"mediaType":"{media_types.DOCKER_LAYER}","digest":"{digest_of(b"layer")}","size":5}}'
    assert node.blobs[target.digest].decode() == (
        f'{{"schemaVersion":2,"mediaType":"{media_types.DOCKER_MANIFEST}","config":{{"mediaType":"{media_types.DOCKER_CONFIG}","digest":"{digest_of(CONFIG)}",'
        f'"size":{len(CONFIG)}}},"layers":[{layer},{layer}]}}'
    )
    index = next(d for d, labels in node.labels.items() if labels.get("containerd.io/gc.ref.content.m.1"))
    assert node.blobs[index].startswith(
        b'{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.docker.distribution.manifest.v2+json"'
    )
    assert b'"platform":{"architecture":"amd64","os":"linux"}' in node.blobs[index]


@pytest.mark.parametrize("window", [27, 28])
async def test_a_zstd_archive_has_a_window_as_zstd_takes_it(node: MemoryNode, window: int) -> None:
    """The window may have 128 MiB, as with --ultra and --long. A larger one is refused before memory is allocated for
    it, however small the archive is.
    """
    made = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters.from_level(1, window_log=window)
    ).compressobj()
    archive = made.compress(tar(reg(b"f", b"1"))) + made.flush()
    assert zstandard.get_frame_parameters(archive).window_size == 1 << window
    if window == 27:
        assert set((await read(archive, node)).blobs) == {"f"}
        return
    with pytest.raises(errors.Unknown, match=r"^zstd: .*too much memory"):
        await read(archive, node)


@pytest.mark.parametrize("packed", [gzip.compress, zstandard.ZstdCompressor().compress])
async def test_dockers_compressed_layers_are_called_so(node: MemoryNode, packed: Any) -> None:
    await imported(
        docker([{"Config": "c", "RepoTags": ["a"], "Layers": ["l"]}], {"c": CONFIG, "l": packed(b"layer")}), node
    )
    manifest = json.loads(node.blobs[node.images["docker.io/library/a:latest"].target.digest])
    assert manifest["layers"][0]["mediaType"] == media_types.DOCKER_LAYER_GZIP


async def test_layers_are_compressed_on_demand(node: MemoryNode) -> None:
    await imported(
        docker([{"Config": "c", "RepoTags": ["a"], "Layers": ["l"]}], {"c": CONFIG, "l": b"layer" * 99}),
        node,
        force_compress=True,
    )
    (layer,) = json.loads(node.blobs[node.images["docker.io/library/a:latest"].target.digest])["layers"]
    assert layer["mediaType"] == media_types.DOCKER_LAYER_GZIP
    assert gzip.decompress(node.blobs[layer["digest"]]) == b"layer" * 99
    assert node.labels[layer["digest"]] == {"containerd.io/uncompressed": digest_of(b"layer" * 99)}


async def test_a_layer_that_the_node_has_compressed_is_that_one(node: MemoryNode) -> None:
    """An image that docker has saved, and that this node had pulled, is not stored twice."""
    known = node.put(gzip.compress(b"layer", mtime=0), {"containerd.io/uncompressed": digest_of(b"layer")})
    await imported(docker([{"Config": "c", "RepoTags": ["a"], "Layers": ["l"]}], {"c": CONFIG, "l": b"layer"}), node)
    manifest = json.loads(node.blobs[node.images["docker.io/library/a:latest"].target.digest])
    assert manifest["layers"] == [
        {"mediaType": media_types.DOCKER_LAYER_GZIP, "digest": known, "size": len(node.blobs[known])}
    ]


@pytest.mark.parametrize(
    ("archive", "why"),
    [
        (b"", "unrecognized image format"),
        (tar_of({"a": b"x"}), "unrecognized image format"),
        (b"x" * 2000, "archive/tar: invalid tar header"),
        (layout([], {})[:1550], 'failed to ingest "index.json": unexpected EOF'),
        (gzip.compress(layout([], {}))[:100], "unexpected EOF"),
        (tar_of({"oci-layout": b'{"imageLayoutVersion":"2"}'}), "unsupported OCI version 2"),
        (tar_of({"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}), "missing index.json in OCI layout 1.0.0"),
        (tar_of({"oci-layout": b"{"}), 'untar "oci-layout"'),
        (tar_of({"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": b"[]"}), "a list instead of an object"),
        (docker({}, {}), 'untar "manifest.json": an object instead of a list'),
        (docker([{"Config": "c"}], {}), 'image config "c" not found'),
        (docker([{"Config": "c", "Layers": ["l"]}], {"c": CONFIG}), 'layer "l" not found'),
        (
            docker([{"Config": "c", "Layers": "l"}], {"c": CONFIG}),
            r'untar "manifest.json": \[0\].Layers: a string instead of a list',
        ),
        (docker([{"Config": "c", "RepoTags": ["A"]}], {"c": CONFIG}), "must be lowercase"),
        (docker([{"Config": "c"}], {"c": b"x"}), "unmarshal image config"),
        (docker([], {"x": "nowhere"}), 'no target for symlink layer from "x" to "nowhere"'),
    ],
)
async def test_archives_that_have_no_images(node: MemoryNode, archive: bytes, why: str) -> None:
    with pytest.raises((errors.Unknown, errors.InvalidArgument), match=why):
        await imported(archive, node)
    assert not node.images


@pytest.mark.parametrize(
    "packed", [gzip.compress, zstandard.ZstdCompressor(write_checksum=True).compress], ids=["gzip", "zstd"]
)
@pytest.mark.parametrize("left_out", [1, 4, 600])
async def test_a_compressed_archive_that_is_cut_short_is_an_error(node: MemoryNode, packed: Any, left_out: int) -> None:
    """This holds even if all files of the tar have come and only the checksum is missing."""
    made = Made()
    archive = packed(layout([made.image(os.urandom(5000), **named("a:1"))], made.blobs))
    with pytest.raises(errors.Unknown, match="unexpected EOF"):
        await imported(archive[:-left_out], node)
    assert not node.images


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
async def test_a_header_of_gigabytes_is_refused_at_once(node: MemoryNode, kind: bytes) -> None:
    """The limit is a megabyte, as in Go."""
    header = block(b"huge", kind, size=3 << 30)
    zeros = gzip.compress(bytes(1 << 20))
    sent = 0

    async def source() -> AsyncIterator[bytes]:
        yield gzip.compress(layout([], {})[:1024] + header)
        for _ in range(3072):
            nonlocal sent
            sent += 1
            yield zeros

    with pytest.raises(errors.Unknown, match=r'^archive/tar: header field too long \(after "oci-layout"\)$'):
        await imported(source(), node)
    assert sent < 2000  # what is under way to the thread


async def test_a_sparse_file_is_whole_and_has_an_end(node: MemoryNode) -> None:
    """In GNU's formats holes are zeros. A kilobyte of an archive may declare a file of any size."""

    def sparse(size: int) -> bytes:
        records = {
            b"GNU.sparse.major": b"0",
            b"GNU.sparse.minor": b"1",
            b"GNU.sparse.map": b"3,2,600000,1",
            b"GNU.sparse.numblocks": b"2",
            b"GNU.sparse.size": b"%d" % size,
        }
        return pax(records) + reg(b"file", b"abc")

    await read(tar(sparse(1_000_000)), node)
    assert digest_of(bytes(3) + b"ab" + bytes(599_995) + b"c" + bytes(399_999)) in node.blobs
    with pytest.raises(errors.ResourceExhausted, match='"file": a sparse file of 9000000000000000 bytes'):
        await read(tar(sparse(9_000_000_000_000_000)), node)


async def test_no_more_is_remembered_than_fits(node: MemoryNode) -> None:
    """A hundred thousand links take a few kilobytes of a compressed archive."""
    few, many = (tar(*(symlink(b"%d" % n, b"x") for n in range(count))) for count in (40, 60))
    assert len((await read(few, node, room=10_000)).links) == 40
    with pytest.raises(errors.ResourceExhausted, match="too many files"):
        await read(many, node, room=10_000)


async def test_names_that_are_not_utf_8_are_names(node: MemoryNode) -> None:
    await read(tar(reg(b"\xff\xfe", b"odd"), long_name(b"long/" * 1000 + b"x"), reg(b"", b"long")), node)
    assert {digest_of(b"odd"), digest_of(b"long")} <= set(node.blobs)
    assert all(len(ref) < 2000 for ref in node.refs)


async def test_names_in_a_tar_are_no_paths(node: MemoryNode) -> None:
    """Files become blobs, whatever paths they have."""
    made = Made()
    archive = tar_of(
        {
            "./oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
            "./index.json": json.dumps({"manifests": [made.image(b"x", **named("a:1"))]}).encode(),
            "../../../etc/x": b"escaped",
            **{f"/abs/{d}": b for d, b in made.blobs.items()},
        }
    )
    await imported(archive, node)
    assert digest_of(b"escaped") in node.blobs
    assert list(node.images) == ["a:1"]


async def test_a_client_that_goes_away_is_the_reason_and_not_an_early_end(node: MemoryNode) -> None:
    """This holds even where the archive could have ended."""
    made = Made()
    archive = layout([made.image(b"x", **named("a:1"))], made.blobs)
    for size in (1500, 1024 * 3, len(archive)):

        async def source(size: int = size) -> AsyncIterator[bytes]:
            yield archive[:size]
            raise errors.Cancelled("gone")

        with pytest.raises(errors.Cancelled, match="gone"):
            await imported(source(), node)
    assert not node.images


async def test_a_cancelled_import_leaves_no_thread_at_work(node: MemoryNode) -> None:
    waiting = asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        yield layout([], {"sha256:" + "0" * 64: bytes(5000)})[:6000]
        waiting.set()
        await asyncio.sleep(1000)

    task = asyncio.ensure_future(imported(source(), node))
    await waiting.wait()
    task.cancel()
    async with asyncio.timeout(5):
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_layers_are_unpacked_where_the_destination_says_so(node: MemoryNode) -> None:
    made = Made()
    node.diff_ids = {digest_of(b"low"): digest_of(b"low"), digest_of(b"top"): digest_of(b"top")}
    await imported(
        layout([made.image(b"low", b"top", **named("a:1"))], made.blobs),
        node,
        ImageStore(unpacks=(Unpacking(HERE, "snap"),), references=(NAMED,)),
    )
    chain = digests.chain_ids([digest_of(b"low"), digest_of(b"top")])
    assert list(node.snapshots["snap"].committed) == chain
    config = next(d for d, labels in node.labels.items() if "containerd.io/gc.ref.snapshot.snap" in labels)
    assert node.labels[config]["containerd.io/gc.ref.snapshot.snap"] == chain[-1]


# ---------------------------------------------------------------------------------------------- exports


async def stored(node: MemoryNode, made: Made, **images: Mapping[str, Any]) -> None:
    for data in made.blobs.values():
        node.put(data)
    for name, target in images.items():
        (found,) = manifests.children_in(
            json.dumps({"manifests": [target]}).encode(), Descriptor(media_types.INDEX, name, 0)
        )
        await node.store(Image(name.replace("_", ":"), found))


async def exported(node: MemoryNode, *names: str, **wanted: Any) -> dict[str, bytes]:
    sink, told = MemorySink(), Told()
    await exporter.export_archive(
        ImageStore(references=tuple(map(ImageReference, names))), ExportStream(sink, **wanted), node, told
    )
    assert told.events() == [("Exporting", ""), ("Completed export", "")]
    with tarfile.open(fileobj=io.BytesIO(sink.data)) as tar:
        members = tar.getmembers()
        assert [m.name for m in members] == sorted(m.name for m in members)
        assert all((m.uid, m.gid, m.mtime) == (0, 0, 0) for m in members)
        return {m.name: file.read() if (file := tar.extractfile(m)) else b"" for m in members}


def blobs_in(files: Mapping[str, bytes]) -> set[str]:
    return {digest_of(data) for name, data in files.items() if name.startswith("blobs/sha256/")}


async def test_an_archive_has_all_blobs_of_its_images(node: MemoryNode) -> None:
    """Each blob is there once, with an entry for each name, and manifest.json for docker."""
    made = Made()
    image = made.image(b"layer")
    await stored(node, made, a_1=image, b_1=image)
    node.labels[image["digest"]]["containerd.io/distribution.source.r.io"] = "a"
    files = await exported(node, "a:1", "b:1")
    assert blobs_in(files) == set(made.blobs)
    assert files["oci-layout"] == b'{"imageLayoutVersion":"1.0.0"}'
    index = json.loads(files["index.json"])
    assert [(m["digest"], m["annotations"]) for m in index["manifests"]] == [
        (image["digest"], {"containerd.io/distribution.source.r.io": "a", names.IMAGE_NAME: name, names.REF_NAME: name})
        for name in ("a:1", "b:1")
    ]
    config = json.loads(node.blobs[image["digest"]])["config"]["digest"]
    assert json.loads(files["manifest.json"]) == [
        {
            "Config": f"blobs/sha256/{config[7:]}",
            "RepoTags": ["a:1", "b:1"],
            "Layers": [f"blobs/sha256/{digest_of(b'layer')[7:]}"],
        }
    ]
    assert "manifest.json" not in await exported(node, "a:1", skip_docker_manifest=True)


async def test_an_index_comes_with_the_wanted_platforms(node: MemoryNode) -> None:
    """The platform is this machine's unless others are named; docker is offered the first of them."""
    made = Made()
    platforms = [Platform("linux", a) for a in ("riscv64", "s390x")]
    images = [made.image(b"here"), *(made.image(p.architecture.encode(), platform=p) for p in platforms)]
    await stored(node, made, multi_1=made.index(*images))
    assert {b"here", b"s390x", b"riscv64"} & set((await exported(node, "multi:1")).values()) == {b"here"}
    files = await exported(node, "multi:1", platforms=(platforms[1], platforms[0]))
    assert {b"here", b"s390x", b"riscv64"} & set(files.values()) == {b"s390x", b"riscv64"}
    (docker,) = json.loads(files["manifest.json"])
    assert docker["Layers"] == [f"blobs/sha256/{digest_of(b's390x')[7:]}"]
    assert {b"here", b"s390x", b"riscv64"} <= set((await exported(node, "multi:1", all_platforms=True)).values())
    with pytest.raises(errors.NotFound, match="no manifest found for platform"):
        await exported(node, "multi:1", platforms=(Platform("linux", "mips"),))


async def test_non_distributable_layers_stay_where_they_are_on_demand(node: MemoryNode) -> None:
    made = Made()
    foreign = made.put("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", b"foreign")
    config = made.put(media_types.CONFIG, CONFIG)
    await stored(
        node, made, a_1=made.put(media_types.MANIFEST, json.dumps({"config": config, "layers": [foreign]}).encode())
    )
    assert digest_of(b"foreign") in blobs_in(await exported(node, "a:1"))
    assert digest_of(b"foreign") not in blobs_in(await exported(node, "a:1", skip_non_distributable=True))


async def test_missing_blobs_and_other_documents_are_errors(node: MemoryNode) -> None:
    made = Made()
    image = made.image(b"layer")
    await stored(node, made, a_1=image, odd_1=made.put("text/plain", b"x"))
    with pytest.raises(errors.NotFound, match='image "none:1"'):
        await exported(node, "none:1")
    with pytest.raises(errors.InvalidArgument, match="only manifests may be exported"):
        node.put(b"x")
        await exported(node, "odd:1")
    with pytest.raises(errors.Unimplemented, match="prefix lookup"):
        await exporter.export_archive(ImageStore(references=(NAMED,)), ExportStream(MemorySink()), node, Told())
    del node.blobs[digest_of(b"layer")]
    with pytest.raises(errors.NotFound):
        await exported(node, "a:1")


@pytest.mark.parametrize(
    ("found", "why"),
    [(b"layeR", "unexpected digest"), (b"lay", "unexpected copy size"), (b"layers and more", "unexpected copy size")],
)
async def test_damaged_blobs_are_found(node: MemoryNode, found: bytes, why: str) -> None:
    made = Made()
    await stored(node, made, a_1=made.image(b"layer"))
    node.blobs[digest_of(b"layer")] = found
    with pytest.raises(errors.Unknown, match=why):
        await exported(node, "a:1")


async def test_an_export_can_be_imported(node: MemoryNode) -> None:
    made = Made()
    await stored(node, made, **{"docker.io/library/a_1": made.image(b"layer")})
    sink = MemorySink()
    await exporter.export_archive(ImageStore("docker.io/library/a:1"), ExportStream(sink), node, Told())
    other = MemoryNode(node.directory)
    await imported(bytes(sink.data), other)
    assert {name: image.target.digest for name, image in other.images.items()} == {
        name: image.target.digest for name, image in node.images.items()
    }


def test_headers_are_gos() -> None:
    """They are the same byte for byte; a value that does not fit into a plain header gets an extended one."""
    plain = exporter.header(exporter.Record("blobs/sha256/x", 0o444, b"abc"))
    assert plain[:157] == (
        b"blobs/sha256/x".ljust(100, b"\0")
        + b"0000444\0"
        + b"0000000\0" * 2
        + b"00000000003\0"
        + b"00000000000\0"
        + b"011477\0 "
        + b"0"
    )
    assert plain[257:345] == b"ustar\x0000" + bytes(64) + b"0000000\0" + b"0000000\0"
    huge = exporter.header(exporter.Record("x", blob=Descriptor("", "sha256:x", 1 << 33)))
    member = tarfile.TarFile(fileobj=io.BytesIO(huge + bytes(1024))).next()
    assert member is not None
    assert member.size == 1 << 33
