"""Documents are read leniently and written as Go writes them."""

from __future__ import annotations

import json

import pytest

from services.images.documents import manifests
from services.images.documents.manifests import Config
from services.kit import errors
from services.oci import media_types
from services.oci.descriptors import Descriptor
from services.oci.platforms import Platform

D = [f"sha256:{n:064x}" for n in range(0, 0x80, 0x10)]
INDEX = Descriptor(media_types.INDEX, D[0], 0)


def test_json_is_gos() -> None:
    """No spaces, HTML's special characters escaped, others unchanged: digests depend on it."""
    assert (
        manifests.encoded({"b": [1, True, None], "a": "<&>\u2028é"})
        == b'{"b":[1,true,null],"a":"\\u003c\\u0026\\u003e\\u2028\xc3\xa9"}'
    )


def test_a_descriptor_goes_there_and_back() -> None:
    """Fields are in Go's order without empty ones; annotations are sorted."""
    full = Descriptor(
        media_types.MANIFEST,
        D[1],
        7,
        {"b": "2", "a": "1"},
        Platform("linux", "arm", "v7", "1", ("f",)),
        ("http://x",),
        b"{}",
        "t",
    )
    written = manifests.encoded(manifests.descriptor_to_json(full))
    assert (
        written
        == (
            f'{{"mediaType":"{media_types.MANIFEST}","digest":"{D[1]}","size":7,"urls":["http://x"],"annotations":{{"a":"1","b":"2"}},"data":"e30=",'
            '"platform":{"architecture":"arm","os":"linux","os.version":"1","os.features":["f"],"variant":"v7"},"artifactType":"t"}'
        ).encode()
    )
    assert manifests.children_in(b'{"manifests":[' + written + b"]}", INDEX) == [full]
    assert list(manifests.descriptor_to_json(Descriptor("m", D[0], 0))) == ["mediaType", "digest", "size"]


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ("[]", "manifests[1]: a list instead of an object"),
        ('"x"', "manifests[1]: a string instead of an object"),
        ('{"size":"1"}', "manifests[1].size: a string instead of an integer"),
        ('{"size":1.0}', "manifests[1].size: a number that is no integer from"),
        ('{"size":NaN}', 'invalid character "N" at byte '),
        ('{"size":9223372036854775808}', "manifests[1].size: a number that is no integer from"),
        ('{"digest":1}', "manifests[1].digest: a number instead of a string"),
        ('{"annotations":{"a":1}}', 'manifests[1].annotations["a"]: a number instead of a string'),
        ('{"platform":"linux"}', "manifests[1].platform: a string instead of an object"),
        ('{"urls":["a",1]}', "manifests[1].urls[1]: a number instead of a string"),
        ('{"data":"e30"}', "manifests[1].data: a string that is not in base64"),
    ],
)
def test_a_malformed_descriptor_is_named(found: str, why: str) -> None:
    with pytest.raises(errors.Unknown) as caught:
        manifests.children_in(f'{{"manifests":[{{"digest":"{D[0]}"}},{found}]}}'.encode(), INDEX)
    assert f"index {D[0]}: {why}" in str(caught.value)


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ('{"size":1}', '"": invalid checksum digest format'),
        ("null", '"": invalid checksum digest format'),
        ('{"digest":"sha256:abc"}', '"sha256:abc": invalid checksum digest length'),
        (f'{{"digest":"{D[1].replace("0", "A")}"}}', '1A": invalid checksum digest format'),
        (
            '{"digest":"md5:0123456789abcdef0123456789abcdef"}',
            '"md5:0123456789abcdef0123456789abcdef": unsupported digest algorithm',
        ),
        ('{"digest":"../../\\u001b[2J"}', '"../../\\u001b[2J": invalid checksum digest format'),
        (f'{{"digest":"{D[1]}","size":-1}}', f"{D[1]}: invalid descriptor size -1"),
    ],
)
def test_a_child_that_cannot_be_one_is_refused(found: str, why: str) -> None:
    """It is refused before a label is written for it and before it is requested."""
    for document, descriptor in (
        (f'{{"manifests":[{found}]}}', INDEX),
        (f'{{"config":{found}}}', Descriptor(media_types.MANIFEST, D[0], 0)),
    ):
        with pytest.raises(errors.InvalidArgument) as caught:
            manifests.children_in(document.encode(), descriptor)
        assert str(caught.value).startswith(("index ", "manifest "))
        assert f"{why}: invalid argument" in str(caught.value)


def test_names_are_read_as_go_reads_them() -> None:
    """containerd pulls such images: names of fields are matched without regard to case, the last of duplicates counts,
    objects are merged; keys of annotations are taken as they are.
    """
    document = f"""{{"Config":{{"MEDIATYPE":"{media_types.CONFIG}","digest":"{D[1]}","digest":"{D[2]}"}},"CONFIG":{{"Size":3}},
                   "lAYERS":[{{"digest":"{D[3]}","annotations":{{"A":"1","a":"2","b":null,"c":"\\ud800"}},"platform":null}}],"x":{"[" * 5000}{"]" * 5000}}}"""
    assert manifests.children_in(document.encode(), Descriptor(media_types.MANIFEST, D[0], 0)) == [
        Descriptor(media_types.CONFIG, D[2], 3),
        Descriptor("", D[3], 0, {"A": "1", "a": "2", "b": "", "c": "\ufffd"}),
    ]
    assert Config.parse(
        f'{{"OS":"linux","RootFS":{{"Diff_IDs":["{D[1]}"],"Type":"layers"}}}}'.encode(), "c"
    ).diff_ids == (D[1],)


def test_a_document_names_a_number_of_others() -> None:
    """The number is limited as that of a walk is."""
    child = f'{{"digest":"{D[1]}"}}'
    assert (
        len(manifests.children_in(f'{{"manifests":[{",".join([child] * manifests.REFERENCES)}]}}'.encode(), INDEX))
        == manifests.REFERENCES
    )
    with pytest.raises(errors.ResourceExhausted, match="too many descriptors"):
        manifests.children_in(f'{{"manifests":[{",".join([child] * (manifests.REFERENCES + 1))}]}}'.encode(), INDEX)


def manifest(**more: object) -> bytes:
    return json.dumps(
        {
            "schemaVersion": 2,
            "config": {"mediaType": media_types.CONFIG, "digest": D[1], "size": 1},
            "layers": [
                {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": d, "size": 2} for d in D[2:4]
            ],
            **more,
        }
    ).encode()


def test_children_are_the_config_and_then_the_layers() -> None:
    assert [c.digest for c in manifests.children_in(manifest(), Descriptor(media_types.MANIFEST, D[0], 0))] == D[1:4]
    assert not manifests.children_in(b"not read", Descriptor(media_types.CONFIG, D[0], 0))


@pytest.mark.parametrize(
    ("document", "media_type", "why"),
    [
        (b"[]", media_types.MANIFEST, "a list instead of an object"),
        (b"{", media_types.INDEX, "index"),
        (manifest(manifests=[{}]), media_types.MANIFEST, "expected manifest but found index"),
        (manifest(mediaType=media_types.INDEX), media_types.MANIFEST, "expected manifest but found index"),
        (manifest(), media_types.INDEX, "expected index but found manifest"),
        (b'{"fsLayers":[1]}', media_types.DOCKER_MANIFEST, "schema 1 not supported"),
        (b'{"fsLayers":null}', media_types.DOCKER_MANIFEST, "schema 1 not supported"),
        (manifest(manifests=[]), media_types.MANIFEST, "expected manifest but found index"),
        (b'{"manifests":[],"Layers":null}', media_types.INDEX, "expected index but found manifest"),
        (b'{"manifests":{"a":1}}', media_types.INDEX, "manifests: an object instead of a list"),
    ],
)
def test_a_document_that_does_not_match_its_descriptor(document: bytes, media_type: str, why: str) -> None:
    with pytest.raises(errors.Unknown, match=why):
        manifests.children_in(document, Descriptor(media_type, D[0], 0))


def test_labels_name_children_by_kind_and_number() -> None:
    """The labels are containerd's, so that either collector understands the other's content."""
    children = [
        Descriptor(media_types.CONFIG, D[0], 0),
        *(Descriptor(media_types.DOCKER_LAYER_GZIP, d, 0) for d in D[1:3]),
        *(Descriptor(media_types.MANIFEST, d, 0) for d in D[3:5]),
        Descriptor("x/y", D[5], 0),
        Descriptor(media_types.INDEX, D[6], 0),
        Descriptor(media_types.MANIFEST, D[7], 0, {manifests.SUBJECT: D[0]}),
    ]
    prefix = "containerd.io/gc.ref.content."
    assert manifests.reference_labels(children) == {
        f"{prefix}config": D[0],
        f"{prefix}l.0": D[1],
        f"{prefix}l.1": D[2],
        f"{prefix}m.0": D[3],
        f"{prefix}m.1": D[4],
        f"{prefix}0": D[5],
        f"{prefix}1": D[6],
        f"{prefix}referrer.sha256.000000000000": D[7],
    }


@pytest.mark.parametrize(
    ("media_type", "layer", "foreign"),
    [
        ("application/vnd.oci.image.layer.v1.tar", True, False),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", True, True),
        (media_types.DOCKER_LAYER_GZIP, True, False),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", True, True),
        (f"{media_types.DOCKER_LAYER}+encrypted", True, False),
        ("application/vnd.erofs.layer.v1", True, False),
        (media_types.CONFIG, False, False),
        ("", False, False),
    ],
)
def test_kinds_of_layers(media_type: str, layer: bool, foreign: bool) -> None:
    assert (media_types.is_layer(media_type), media_types.is_non_distributable(media_type)) == (layer, foreign)


@pytest.mark.parametrize(
    ("media_type", "annotations", "ref"),
    [
        (media_types.MANIFEST, {}, f"manifest-{D[1]}"),
        (media_types.DOCKER_INDEX, {}, f"index-{D[1]}"),
        (media_types.DOCKER_CONFIG, {}, f"config-{D[1]}"),
        (media_types.DOCKER_LAYER, {}, f"layer-{D[1]}"),
        (media_types.IN_TOTO, {}, f"attestation-{D[1]}"),
        ("x", {}, f"unknown-{D[1]}"),
        (media_types.MANIFEST, {"org.opencontainers.image.ref.name": "v1"}, f"manifest-v1@{D[1]}"),
    ],
)
def test_refs_of_transfers(media_type: str, annotations: dict[str, str], ref: str) -> None:
    """ctr shows them and groups by them."""
    assert Descriptor(media_type, D[1], 1, annotations).ref == ref


def test_the_platform_in_a_config() -> None:
    document = json.dumps(
        {"os": "linux", "architecture": "x86_64", "rootfs": {"type": "layers", "diff_ids": D[:2]}}
    ).encode()
    assert Config.parse(document, "c") == Config(Platform("linux", "amd64"), tuple(D[:2]), "layers")
    for bad in (b"x", b"1", b'{"rootfs":[1]}', b'{"rootfs":{"diff_ids":"x"}}', b'{"os":1}'):
        with pytest.raises(errors.Unknown, match="unmarshal image config c"):
            Config.parse(bad, "c")
