"""Labels and times: the content store's values."""

from __future__ import annotations

import pytest

from api.containerd.services.content.v1 import content_pb2
from services.content import convert
from services.content.ingest_notes import format_time, parse_time
from services.content.locks import _duration, _time
from services.content.store import updated_labels
from services.kit import errors
from services.oci.digests import Digest

HEX = "0123456789abcdef" * 4


def test_updated_labels() -> None:
    """Without paths all labels are replaced. With paths only the named ones change, and an empty value removes one.
    Paths other than labels are refused before anything changes.
    """
    digest = Digest("sha256", HEX)
    current = {"a": "1", "b": "2"}
    assert updated_labels(digest, current, {"c": "3"}, []) == {"c": "3"}
    assert updated_labels(digest, current, {"c": "3"}, ["labels"]) == {"c": "3"}
    assert updated_labels(digest, current, {"a": "9", "b": "9"}, ["labels.a"]) == {"a": "9", "b": "2"}
    assert updated_labels(digest, current, {"a": ""}, ["labels.a", "labels.b"]) == {}
    with pytest.raises(errors.InvalidArgument, match='^cannot update "digest" field on content info "sha256:'):
        updated_labels(digest, current, {}, ["labels.a", "digest"])
    assert current == {"a": "1", "b": "2"}


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2024-02-29T12:30:45.123456789Z", 1709209845_123456789),
        ("2024-02-29T12:30:45.5Z", 1709209845_500000000),
    ],
)
def test_times(text: str, nanoseconds: int) -> None:
    """Times are kept to the nanosecond, written as Go writes them."""
    assert parse_time(text) == nanoseconds
    assert format_time(nanoseconds) == text


def test_times_elsewhere() -> None:
    """A store that containerd has written has times of its own zone; a malformed time is refused."""
    assert parse_time("2024-02-29T14:30:45.5+02:00") == 1709209845_500000000
    for text in ("", "2024-02-29", "2024-02-29T12:30:45", "2024-02-29T12:30:45.1234567890Z", "2024-02-30T12:30:45Z"):
        with pytest.raises(ValueError):
            parse_time(text)


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0ns"),
        (999, "999ns"),
        (1500, "1.5µs"),
        (20_000_000, "20ms"),
        (1_000_000_001, "1.000000001s"),
        (59_500_000_000, "59.5s"),
        (90_000_000_000, "1m30s"),
        (7_200_000_000_000, "2h0m0s"),
        (3_661_100_000_000, "1h1m1.1s"),
    ],
)
def test_durations(nanoseconds: int, text: str) -> None:
    """The time for which a ref has been locked is formatted as Go formats it."""
    assert _duration(nanoseconds) == text


def test_since() -> None:
    """The time since which a ref has been locked is formatted too."""
    assert _time(1709209845_123000000) == "2024-02-29 12:30:45.123 +0000 UTC"


@pytest.mark.parametrize("size", [1, 127, 128, 1 << 20])
@pytest.mark.parametrize("offset", [0, 1, 1 << 40])
def test_a_read_response_in_pieces_is_the_message(offset: int, size: int) -> None:
    """The parts that are sent without building the message equal the built message."""
    data = bytes(size)
    assert (
        convert.read_response_head(offset, size) + data
        == content_pb2.ReadContentResponse(offset=offset, data=data).SerializeToString()
    )
