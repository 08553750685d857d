"""Documents: read leniently, written as Go writes them."""

from __future__ import annotations

import json

import pytest

from services.images import oci
from services.images.oci import Config, Descriptor
from services.images.platforms import Platform
from services.kit import errors

D = [f"sha256:{n:064x}" for n in range(8)]


def test_json_is_gos() -> None:
    """No spaces, HTML's letters escaped, others as they are: digests depend on it."""
    assert oci.encoded({"b": [1, True, None], "a": "<&>\u2028é"}) == b'{"b":[1,true,null],"a":"\\u003c\\u0026\\u003e\\u2028\xc3\xa9"}'


def test_a_descriptor_goes_there_and_back() -> None:
    """In the order of Go's fields, without what is empty, annotations sorted."""
    full = Descriptor(oci.MANIFEST, D[1], 7, {"b": "2", "a": "1"}, Platform("linux", "arm", "v7", "1", ("f",)), ("http://x",), "e30=", "t")
    written = oci.encoded(oci.descriptor_to_json(full))
    assert written == (
        f'{{"mediaType":"{oci.MANIFEST}","digest":"{D[1]}","size":7,"urls":["http://x"],"annotations":{{"a":"1","b":"2"}},"data":"e30=",'
        '"platform":{"architecture":"arm","os":"linux","os.version":"1","os.features":["f"],"variant":"v7"},"artifactType":"t"}').encode()
    assert oci.descriptor_from_json(json.loads(written), "x") == full
    assert list(oci.descriptor_to_json(Descriptor("m", D[0], 0))) == ["mediaType", "digest", "size"]


@pytest.mark.parametrize("found", [[], "x", {"size": "1"}, {"digest": 1}, {"annotations": {"a": 1}}, {"platform": "linux"}, {"urls": ["a", 1]}, None])
def test_a_malformed_descriptor_is_named(found: object) -> None:
    with pytest.raises(errors.Unknown, match="index x: malformed descriptor"):
        oci.descriptor_from_json(found, "index x")


def manifest(**more: object) -> bytes:
    return json.dumps({"schemaVersion": 2, "config": {"mediaType": oci.CONFIG, "digest": D[1], "size": 1},
                       "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": d, "size": 2} for d in D[2:4]], **more}).encode()


def test_children_are_the_config_and_then_the_layers() -> None:
    assert [c.digest for c in oci.children_in(manifest(), Descriptor(oci.MANIFEST, D[0], 0))] == D[1:4]
    assert not oci.children_in(b"not read", Descriptor(oci.CONFIG, D[0], 0))


@pytest.mark.parametrize(("document", "media_type", "why"), [
    (b"[]", oci.MANIFEST, "not a JSON object"),
    (b"{", oci.INDEX, "index"),
    (manifest(manifests=[{}]), oci.MANIFEST, "expected manifest but found index"),
    (manifest(mediaType=oci.INDEX), oci.MANIFEST, "expected manifest but found index"),
    (manifest(), oci.INDEX, "expected index but found manifest"),
    (b'{"fsLayers":[1]}', oci.DOCKER_MANIFEST, "schema 1 not supported"),
    (b'{"manifests":{"a":1}}', oci.INDEX, "not a list"),
])
def test_a_document_that_is_not_what_its_descriptor_says(document: bytes, media_type: str, why: str) -> None:
    with pytest.raises(errors.Unknown, match=why):
        oci.children_in(document, Descriptor(media_type, D[0], 0))


def test_labels_name_children_by_kind_and_number() -> None:
    """As containerd's, so that either's collector understands the other's content."""
    children = [Descriptor(oci.CONFIG, D[0], 0), *(Descriptor(oci.DOCKER_LAYER_GZIP, d, 0) for d in D[1:3]), *(Descriptor(oci.MANIFEST, d, 0) for d in D[3:5]),
                Descriptor("x/y", D[5], 0), Descriptor(oci.INDEX, D[6], 0), Descriptor(oci.MANIFEST, D[7], 0, {oci.SUBJECT: D[0]})]
    prefix = "containerd.io/gc.ref.content."
    assert oci.reference_labels(children) == {
        f"{prefix}config": D[0], f"{prefix}l.0": D[1], f"{prefix}l.1": D[2], f"{prefix}m.0": D[3], f"{prefix}m.1": D[4], f"{prefix}0": D[5],
        f"{prefix}1": D[6], f"{prefix}referrer.sha256.000000000000": D[7]}


@pytest.mark.parametrize(("media_type", "layer", "foreign"), [
    ("application/vnd.oci.image.layer.v1.tar", True, False), ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", True, True),
    (oci.DOCKER_LAYER_GZIP, True, False), ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", True, True),
    (f"{oci.DOCKER_LAYER}+encrypted", True, False), ("application/vnd.erofs.layer.v1", True, False), (oci.CONFIG, False, False), ("", False, False),
])
def test_kinds_of_layers(media_type: str, layer: bool, foreign: bool) -> None:
    assert (oci.is_layer(media_type), oci.is_non_distributable(media_type)) == (layer, foreign)


@pytest.mark.parametrize(("media_type", "annotations", "ref"), [
    (oci.MANIFEST, {}, f"manifest-{D[1]}"), (oci.DOCKER_INDEX, {}, f"index-{D[1]}"), (oci.DOCKER_CONFIG, {}, f"config-{D[1]}"),
    (oci.DOCKER_LAYER, {}, f"layer-{D[1]}"), (oci.IN_TOTO, {}, f"attestation-{D[1]}"), ("x", {}, f"unknown-{D[1]}"),
    (oci.MANIFEST, {"org.opencontainers.image.ref.name": "v1"}, f"manifest-v1@{D[1]}"),
])
def test_refs_say_what_is_transferred(media_type: str, annotations: dict[str, str], ref: str) -> None:
    """ctr shows them, and groups by them."""
    assert Descriptor(media_type, D[1], 1, annotations).ref == ref


def test_chain_ids_are_ocis() -> None:
    chain = oci.chain_ids(D[1:4])
    assert chain[0] == D[1]
    assert chain[1] == oci.digest_of(f"{D[1]} {D[2]}".encode())
    assert chain[2] == oci.digest_of(f"{chain[1]} {D[3]}".encode())
    assert not oci.chain_ids([])


def test_a_config_says_for_what_it_is() -> None:
    document = json.dumps({"os": "linux", "architecture": "x86_64", "rootfs": {"type": "layers", "diff_ids": D[:2]}}).encode()
    assert Config.parse(document, "c") == Config(Platform("linux", "amd64"), tuple(D[:2]), "layers")
    for bad in (b"x", b"1", b'{"rootfs":[1]}', b'{"rootfs":{"diff_ids":"x"}}', b'{"os":1}'):
        with pytest.raises(errors.Unknown, match="unmarshal image config c"):
            Config.parse(bad, "c")
