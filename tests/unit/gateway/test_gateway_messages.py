"""Messages of a Write that the gateway passes on unparsed."""

from __future__ import annotations

import pytest

from api.containerd.services.content.v1 import content_pb2 as pb
from gateway.writes import is_plain_write


@pytest.mark.parametrize(
    "message",
    [
        pb.WriteContentRequest(action=pb.WRITE, data=b"x" * 100),
        pb.WriteContentRequest(action=pb.WRITE, offset=5, data=b"x"),
        pb.WriteContentRequest(action=pb.WRITE, offset=1 << 40, data=b"\x08\x02"),
    ],
)
def test_data_alone_is_plain(message: pb.WriteContentRequest) -> None:
    """This is the bulk of a blob: action, offset, data."""
    assert is_plain_write(message.SerializeToString())


@pytest.mark.parametrize(
    "message",
    [
        pb.WriteContentRequest(),
        pb.WriteContentRequest(action=pb.STAT, ref="r"),
        pb.WriteContentRequest(action=pb.WRITE),
        pb.WriteContentRequest(action=pb.WRITE, ref="r", data=b"x"),
        pb.WriteContentRequest(action=pb.WRITE, total=3, data=b"x"),
        pb.WriteContentRequest(action=pb.WRITE, expected="sha256:0", data=b"x"),
        pb.WriteContentRequest(action=pb.COMMIT, offset=5),
        pb.WriteContentRequest(action=pb.COMMIT, data=b"x"),
    ],
)
def test_all_else_is_parsed(message: pb.WriteContentRequest) -> None:
    """Refs have to be replaced, expected digests kept back, and commits joined with their records."""
    assert not is_plain_write(message.SerializeToString())
