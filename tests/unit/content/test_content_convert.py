"""services.content.convert: the messages of a Write, of which most only bring bytes."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError

from api.containerd.services.content.v1 import content_pb2 as pb
from services.content.convert import PlainWrite, write_request_from_wire


@pytest.mark.parametrize("offset", [0, 1, 127, 128, 1 << 20, (1 << 62) + 5])
@pytest.mark.parametrize("size", [1, 127, 128, 70_000])
def test_messages_that_only_bring_bytes_are_not_copied(offset: int, size: int) -> None:
    """They are what protobuf reads."""
    encoded = pb.WriteContentRequest(action=pb.WRITE, offset=offset, data=b"x" * size).SerializeToString()
    found = write_request_from_wire(encoded)
    assert isinstance(found, PlainWrite)
    assert (int(found.action), found.offset, bytes(found.data)) == (int(pb.WRITE), offset, b"x" * size)
    assert (found.expected, found.total, dict(found.labels)) == ("", 0, {})
    assert found.data.obj is encoded


@pytest.mark.parametrize(
    "message",
    [
        pb.WriteContentRequest(),
        pb.WriteContentRequest(action=pb.STAT, ref="r"),
        pb.WriteContentRequest(action=pb.WRITE),
        pb.WriteContentRequest(action=pb.WRITE, offset=5),
        pb.WriteContentRequest(action=pb.WRITE, ref="r", offset=5, data=b"x"),
        pb.WriteContentRequest(action=pb.WRITE, offset=-1, data=b"x"),
        pb.WriteContentRequest(action=pb.WRITE, data=b"x", labels={"a": "b"}),
        pb.WriteContentRequest(action=pb.COMMIT, offset=5, data=b"x"),
    ],
    ids=str,
)
def test_other_messages_are_parsed(message: pb.WriteContentRequest) -> None:
    assert write_request_from_wire(message.SerializeToString()) == message


def test_fields_in_another_order_are_parsed() -> None:
    message = pb.WriteContentRequest(action=pb.WRITE, offset=7, data=b"data")
    whole = message.SerializeToString()
    assert write_request_from_wire(whole[4:] + whole[:4]) == message
    assert write_request_from_wire(whole + pb.WriteContentRequest(total=9).SerializeToString()) == (
        pb.WriteContentRequest(action=pb.WRITE, offset=7, data=b"data", total=9)
    )


def test_messages_that_are_cut_are_none() -> None:
    whole = pb.WriteContentRequest(action=pb.WRITE, offset=300, data=b"data" * 100).SerializeToString()
    for end in range(3, len(whole)):
        try:
            found = write_request_from_wire(whole[:end])
        except DecodeError:
            continue
        assert isinstance(found, pb.WriteContentRequest), "cut between two fields"
        assert not found.data
