"""The encoding of records and their cache."""

from __future__ import annotations

import pytest

from services.kit import errors
from services.kit.slices import at_once
from services.metadata import schema
from services.metadata.store import Blob, Container
from services.oci.opaque import Opaque


def test_the_cache_is_bounded() -> None:
    """A container that is read again is decoded once; a container as large as a message may be is not kept in
    memory.
    """
    small, large = (Container(id="c", runtime="r", spec=Opaque("t", b" " * size)) for size in (20_000, 9_000_000))
    for container, kept in ((small, True), (large, False)):
        value = schema.CONTAINERS.encode(container)
        one, other = (schema.CONTAINERS.decode(("default", "c"), value) for _ in range(2))
        assert one == other
        assert one.spec == container.spec
        assert (one is other) is kept


def test_a_list_of_hundreds_of_containers_is_decoded_once() -> None:
    """A client that lists the containers again and again, as dashboards do, does not cause them to be decoded each
    time.
    """
    rows = [
        (("default", f"container-{number}"), schema.CONTAINERS.encode(Container(id=f"container-{number}")))
        for number in range(400)
    ]
    first, second = ([schema.CONTAINERS.decode(key, value) for key, value in rows] for _ in range(2))
    assert all(one is other for one, other in zip(first, second, strict=True))


ODD = {'"labels":{': '"labels":{}', "\\": '\\"', "ä\u2028": "\U0001f600", "\0": "}", ",": ":", "empty": ""}


@pytest.mark.parametrize(
    "labels",
    [
        {},
        {"one": "label"},
        ODD,
        {f"containerd.io/gc.ref.content.l.{number}": "sha256:" + "a" * 64 for number in range(1200)},
    ],
)
def test_a_blob_is_read_and_written_in_steps_as_it_is_at_once(labels: dict[str, str]) -> None:
    """A blob that was written in one way can be read in the other."""
    blob, key = (
        Blob(digest="sha256:" + "b" * 64, size=3, backend='con"tent', labels=labels, created=1, updated=2),
        ("n", "sha256:" + "b" * 64),
    )
    at_the_end = at_once(schema.encode_blob_in_steps(blob))
    for value in (schema.BLOBS.encode(blob), at_the_end):
        assert schema.BLOBS.decode(key, value) == at_once(schema.read_blob_in_steps(key, value)) == blob


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_large_blob_whose_record_is_damaged_says_so(cut: int) -> None:
    """The damage is reported in steps as it is at once: to SQLite pages with wrong contents look whole."""
    value = schema.BLOBS.encode(Blob(digest="d", size=3, backend="content", labels={"name": "value"}, created=1))
    for damaged in (
        value[:-cut],
        value.replace(b'":"value"', b'""value"'),
        value.replace(b"name", b"\xff\xff\xff\xff"),
    ):
        with pytest.raises(errors.DataLoss, match="damaged"):
            at_once(schema.read_blob_in_steps(("n", "d"), damaged))
