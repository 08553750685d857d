"""Comparable fields of a service's answers."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from api.containerd.services.content.v1 import content_pb2 as content
from api.containerd.services.snapshots.v1 import snapshots_pb2 as snapshots
from api.containerd.types.mount_pb2 import Mount
from services.shadows.answers_convert import LONGEST, MOST, fields_of, shown


def test_where_files_are_does_not_count() -> None:
    """The number of layers and all else of a mount does."""

    def mounted(root: str, *options: str) -> dict[str, str]:
        lower = f"lowerdir={root}/snapshots/2/fs:{root}/snapshots/1/fs"
        return fields_of(
            [
                snapshots.MountsResponse(
                    mounts=[Mount(type="overlay", source="overlay", options=[*options, lower, f"upperdir={root}/9/fs"])]
                )
            ]
        )

    ours = mounted("/var/lib/one", "index=off", "ro")
    assert ours == mounted("/elsewhere/two", "ro", "index=off")
    assert ours["mounts[0].options[1]"] == "lowerdir=PATH:PATH"
    assert ours != mounted("/var/lib/one", "index=off")


def test_keys_of_a_copy_are_renamed() -> None:
    def info(prefix: str) -> list[snapshots.StatSnapshotResponse]:
        named = snapshots.Info(name=f"{prefix}ns/1/a", parent=f"{prefix}ns/0/b", kind=snapshots.ACTIVE)
        return [snapshots.StatSnapshotResponse(info=named)]

    assert fields_of(info("")) == fields_of(info("shadow-"), lambda name: name.removeprefix("shadow-"))
    assert fields_of(info(""))["info.kind"] == "ACTIVE"


def test_of_times_only_their_presence_counts() -> None:
    def info(seconds: int) -> list[content.InfoResponse]:
        return [content.InfoResponse(info=content.Info(digest="d", created_at=Timestamp(seconds=seconds)))]

    assert fields_of(info(1)) == fields_of(info(2)) != fields_of([content.InfoResponse(info=content.Info(digest="d"))])


def test_lists_have_no_order_and_streams_no_pieces() -> None:
    one, two = content.Info(digest="one", size=1, labels={"x": "y"}), content.Info(digest="two", size=2)
    whole = fields_of([content.ListContentResponse(info=[one, two])])
    assert whole == fields_of([content.ListContentResponse(info=[two]), content.ListContentResponse(info=[one])])
    assert whole["info[one].size"] == "1"
    assert whole["info[one].labels.x"] == "y"


def test_a_blob_is_compared_by_its_bytes() -> None:
    def read(*pieces: bytes) -> dict[str, str]:
        return fields_of([content.ReadContentResponse(offset=5, data=piece) for piece in pieces])

    assert read(b"abc", b"def") == read(b"abcdef") != read(b"abcdeg")
    assert read(b"abcdef")["size"] == "6"
    assert fields_of([]) == {}


def test_sizes_are_bounded() -> None:
    long = fields_of([content.InfoResponse(info=content.Info(labels={"x": "y" * 100_000}))])
    assert len(long["info.labels.x"]) <= LONGEST
    many = [content.ListContentResponse(info=[content.Info(digest=str(n)) for n in range(MOST + 1)])]
    assert fields_of(many) == fields_of(many)
    assert len(fields_of(many)) == 1
    other = [content.ListContentResponse(info=[content.Info(digest=str(n + 1)) for n in range(MOST + 1)])]
    assert fields_of(many) != fields_of(other)
    assert len(shown(many[0])) <= LONGEST
