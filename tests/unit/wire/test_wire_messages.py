"""services.wire.messages: gRPC's messages, in any pieces."""

from __future__ import annotations

import gzip
import random
import sys

import pytest

from services.kit import errors
from services.wire.messages import Assembler, prefix, whole
from tests.wires import grpc

LIMIT = 1000


def fed(data: bytes, *cuts: int, limit: int = LIMIT, encoding: str = "gzip") -> list[bytes]:
    """Return the messages in ``data``, cut at these places; it ends between two messages."""
    assembler = Assembler(limit, encoding)
    found = []
    for start, end in zip((0, *cuts), (*cuts, len(data)), strict=True):
        found += assembler.feed(memoryview(data)[start:end])
        assert assembler.held <= limit
    assert assembler.finished()
    assert not assembler.held
    return found


SEQUENCES = [[b""], [b"", b"", b""], [b"a"], [b"abc", b"", b"defgh", b"i" * 40, b""]]


@pytest.mark.parametrize("sequence", SEQUENCES, ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_any_two_cuts_of_any_sequence(sequence: list[bytes], packed: bool) -> None:
    """The cuts may be in the prefix, in the message or between two: the messages are the same."""
    data = b"".join(grpc(gzip.compress(message), 1) if packed else grpc(message) for message in sequence)
    for first in range(len(data) + 1):
        for second in range(first, len(data) + 1, 1 if len(data) < 120 else 7):
            assert fed(data, first, second) == sequence


@pytest.mark.parametrize("seed", range(10))
def test_random_cuts_of_random_sequences(seed: int) -> None:
    """Messages are compressed or not, from empty ones to the limit."""
    pick = random.Random(seed)
    sequence = [pick.randbytes(pick.choice([0, 1, 5, pick.randrange(LIMIT), LIMIT])) for _ in range(20)]
    data = b"".join(
        grpc(gzip.compress(m), 1) if pick.random() < 0.3 and len(gzip.compress(m)) <= LIMIT else grpc(m)
        for m in sequence
    )
    cuts = sorted(pick.randrange(len(data) + 1) for _ in range(pick.randrange(60)))
    assert fed(data, *cuts) == sequence


def test_one_byte_at_a_time() -> None:
    data = grpc(b"abc") + grpc(b"") + grpc(b"x" * 300)
    assert fed(data, *range(1, len(data))) == [b"abc", b"", b"x" * 300]


def test_many_small_pieces_cost_little_more_than_their_bytes() -> None:
    """A peer that sends a message byte by byte occupies that message's memory, not forty times as much."""
    assembler = Assembler(1 << 20, "")
    assembler.feed(prefix(bytes(1 << 20)))
    for _ in range(50_000):
        assembler.feed(b"x")
    assert assembler.held == 50_000
    assert sum(map(sys.getsizeof, assembler._parts)) + sys.getsizeof(assembler._parts) < 100_000


def test_a_message_at_the_limit_and_one_beyond() -> None:
    """The error comes as soon as the length is known: RESOURCE_EXHAUSTED, with grpc-go's words."""
    assert fed(grpc(b"x" * LIMIT)) == [b"x" * LIMIT]
    with pytest.raises(errors.ResourceExhausted, match=r"^grpc: received message larger than max \(1001 vs. 1000\)$"):
        Assembler(LIMIT, "").feed(prefix(b"x" * (LIMIT + 1)))


def test_an_inflated_message_at_the_limit_and_one_beyond() -> None:
    """A bomb is not inflated any further than the limit."""
    assert fed(grpc(gzip.compress(b"x" * LIMIT), 1)) == [b"x" * LIMIT]
    for size in (LIMIT + 1, 100 << 20):
        with pytest.raises(errors.ResourceExhausted, match="after decompression larger than max 1000"):
            Assembler(1 << 20 if size > 1 << 20 else LIMIT, "gzip").feed(
                grpc(gzip.compress(b"x" * size), 1)
            ) if size == LIMIT + 1 else _bomb(size)


def _bomb(size: int) -> None:
    packed = gzip.compress(bytes(size))
    assembler = Assembler(LIMIT, "gzip")
    assembler._limit = len(packed)  # so that its packed length passes
    try:
        assembler.feed(grpc(packed, 1))
    except errors.ResourceExhausted as error:
        raise errors.ResourceExhausted.verbatim(str(error).replace(str(len(packed)), str(LIMIT))) from None


@pytest.mark.parametrize("flag", [2, 3, 128, 255])
def test_flags_that_are_none(flag: int) -> None:
    """They are INTERNAL, at the prefix."""
    with pytest.raises(errors.Internal, match=f"unexpected payload format {flag}"):
        Assembler(LIMIT, "gzip").feed(grpc(b"abc", flag))


@pytest.mark.parametrize("encoding", ["", "identity", "snappy"])
def test_compressed_without_an_encoding(encoding: str) -> None:
    """It is INTERNAL, since the encoding is unknown."""
    with pytest.raises(errors.Internal, match="compressed flag set"):
        Assembler(LIMIT, encoding).feed(grpc(gzip.compress(b"x"), 1))


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"no gzip",
        gzip.compress(b"x" * 100)[:-1],
        gzip.compress(b"x" * 100)[:12],
        gzip.compress(b"abc")[:-8] + bytes(8),
    ],
)
def test_messages_that_cannot_be_inflated(packed: bytes) -> None:
    """INTERNAL: empty, no gzip, cut off, or with a wrong checksum."""
    with pytest.raises(errors.Internal, match="failed to decompress"):
        Assembler(LIMIT, "gzip").feed(grpc(packed, 1))


def test_the_end_of_a_stream_in_the_middle_of_a_message() -> None:
    """finished() reports it, in the prefix and in the message."""
    data = grpc(b"abc")
    for cut in range(1, len(data)):
        assembler = Assembler(LIMIT, "")
        assert assembler.feed(data[:cut]) == []
        assert not assembler.finished()
        assert assembler.feed(data[cut:]) == [b"abc"]
        assert assembler.finished()


@pytest.mark.parametrize(
    "chunk",
    [b"", b"\0\0\0\0", grpc(b"abc")[:-1], grpc(b"abc") + b"\0", grpc(b"a", 1), grpc(b"a" * (LIMIT + 1)), grpc(b"", 2)],
)
def test_a_chunk_that_is_not_just_one_message_gets_a_closer_look(chunk: bytes) -> None:
    """whole() takes exactly one valid message, and nothing else."""
    assert whole(chunk, LIMIT) is None
    assert whole(memoryview(grpc(b"a" * LIMIT)), LIMIT) == [b"a" * LIMIT]
    assert whole(grpc(b""), LIMIT) == [b""]


def test_a_message_of_several_gzip_members_is_all_of_them() -> None:
    """They are read as by grpc-go; their number is limited, since each costs a copy of the rest."""
    assert fed(grpc(gzip.compress(b"a") + gzip.compress(b"b"), 1)) == [b"ab"]
    with pytest.raises(errors.ResourceExhausted, match="gzip members"):
        Assembler(1 << 20, "gzip").feed(grpc(gzip.compress(b"") * 100, 1))
