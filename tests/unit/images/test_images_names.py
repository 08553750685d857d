"""Names of images: those in archives, and those under which images are stored."""

from __future__ import annotations

import pytest

from services.images import names
from services.images.transfer import ImageReference, ImageStore
from services.oci.descriptors import Descriptor
from services.oci.media_types import MANIFEST

HEX = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
DIGEST = f"sha256:{HEX}"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("docker.io/library/busybox:1", "1"),
        ("localhost:5000/x:2", "2"),
        (f"docker.io/library/x@{DIGEST}", f"docker.io/library/x@{DIGEST}"),
        (f"docker.io/library/x:1@{DIGEST}", f"1@{DIGEST}"),
        ("busybox:1", "busybox:1"),
        ("docker.io/library/x", "docker.io/library/x"),
        ("", ""),
    ],
)
def test_ocis_annotation_is_the_tag(name: str, said: str) -> None:
    assert names.for_oci(name) == said


@pytest.mark.parametrize(
    ("annotations", "strict", "name"),
    [
        ({}, False, ""),
        ({names.REF_NAME: "1.0"}, True, "my.io/x:1.0"),
        ({names.REF_NAME: "my.io/x:2"}, True, "my.io/x:2"),
        ({names.REF_NAME: "my.io/xy:2"}, True, ""),
        ({names.REF_NAME: "my.io/xy:2"}, False, "my.io/xy:2"),
        ({names.IMAGE_NAME: "my.io/x/y:2", names.REF_NAME: "2"}, True, "my.io/x/y:2"),
        ({names.IMAGE_NAME: "other.io/x:2", names.REF_NAME: "2"}, True, ""),
        ({names.IMAGE_NAME: "other.io/x:2"}, False, "other.io/x:2"),
        ({names.IMAGE_NAME: "tag"}, False, ""),
    ],
)
def test_names_that_an_archive_brings_along(annotations: dict[str, str], strict: bool, name: str) -> None:
    """Tags get the prefix and full names stay; with strict names only names that begin with the prefix are taken.
    containerd's own name is never changed.
    """
    assert names.of_annotations(annotations, names.with_prefix("my.io/x", strict=strict)) == name


def entry(**annotations: str) -> Descriptor:
    return Descriptor(MANIFEST, DIGEST, 1, {getattr(names, key): value for key, value in annotations.items()})


@pytest.mark.parametrize(
    ("flags", "given", "stored"),
    [
        ({}, entry(REF_NAME="1"), ["p:1"]),
        ({}, entry(), []),
        ({"add_digest": True}, entry(), [f"p@{DIGEST}"]),
        ({"add_digest": True}, entry(REF_NAME="1"), ["p:1", f"p@{DIGEST}"]),
        ({"add_digest": True, "skip_named_digest": True}, entry(REF_NAME="1"), ["p:1"]),
        ({"add_digest": True, "skip_named_digest": True}, entry(IMAGE_NAME="q:1"), [f"p@{DIGEST}"]),
        ({"allow_overwrite": True}, entry(IMAGE_NAME="q:1"), ["q:1"]),
    ],
)
def test_entries_of_an_archive_are_stored_under(flags: dict[str, bool], given: Descriptor, stored: list[str]) -> None:
    """Entries are stored under the prefix's names; full references are for the whole archive."""
    store = ImageStore(
        labels={"a": "b"}, references=(ImageReference("p", is_prefix=True, **flags), ImageReference("full:1"))
    )
    images = names.of_archive(store, given)
    assert [image.name for image in images] == stored
    assert all(image.target == given and image.labels == {"a": "b"} for image in images)


def test_the_whole_is_stored_under_its_names_and_further_ones_go_with_the_first() -> None:
    """So deleting the main image deletes the images that were only made beside it."""
    store = ImageStore(
        "main:1",
        {"a": "b"},
        references=(
            ImageReference("full:1"),
            ImageReference("p", is_prefix=True),
            ImageReference("d", is_prefix=True, add_digest=True),
        ),
    )
    main, *others = names.of_root(store, entry())
    assert (main.name, main.labels) == ("main:1", {"a": "b"})
    assert [image.name for image in others] == ["full:1", f"d@{DIGEST}"]
    for image in others:
        assert image.labels["containerd.io/gc.bref.image"] == "main:1"
        assert image.labels["containerd.io/gc.expire"].endswith("Z")


@pytest.mark.parametrize("skip", [False, True])
def test_a_whole_without_a_name_is_stored_by_its_digest(skip: bool) -> None:
    """This is as in containerd since 2.3: a digest counts as a name, whether or not digests of named images are
    skipped.
    """
    (image,) = names.of_root(
        ImageStore(
            references=(
                ImageReference("p", is_prefix=True),
                ImageReference("d", is_prefix=True, add_digest=True, skip_named_digest=skip),
            )
        ),
        entry(),
    )
    assert (image.name, image.labels) == (f"d@{DIGEST}", {})
