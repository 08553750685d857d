"""The labels that name the sources of blobs."""

from __future__ import annotations

from services.images.distribution.source_labels import mountable, source_key, with_source
from services.oci.references import Reference


def test_a_source_is_noted_once_for_its_host() -> None:
    """Repositories are sorted, and the host has no port. No label is written if it would be too long."""
    reference = Reference.parse("127.0.0.1:5000/team/box:1")
    key = source_key(reference)
    assert key == "containerd.io/distribution.source.127.0.0.1"
    assert source_key(Reference.parse("[::1]:5000/box:1")) == "containerd.io/distribution.source.::1"
    assert with_source({}, reference) == {key: "team/box"}
    assert with_source({key: "z,a"}, reference) == {key: "a,team/box,z"}
    assert with_source({key: "a,team/box"}, reference) == {}
    assert with_source({key: "x" * 4090}, reference) == {}


def test_a_blob_is_mounted_from_the_most_similar_repository() -> None:
    """It is never mounted from the target itself, nor from another host."""
    reference = Reference.parse("example.com/team/app/box:1")
    key = source_key(reference)
    labels = [
        {key: "library/box,team/app/box"},
        {key: "team/app/other,team/x"},
        {"containerd.io/distribution.source.elsewhere": "team/app/box2"},
    ]
    assert mountable(labels, reference, 3) == ["team/app/other", "team/x", "library/box"]
    assert mountable(labels, reference, 1) == ["team/app/other"]
