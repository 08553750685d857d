"""Conversion between content's values and protobuf messages."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from api.containerd.services.content.v1 import content_pb2 as pb
from services.content.store import Info, Status
from services.kit import errors
from services.kit.timestamps import time_from_pb
from services.oci.digests import Digest


def info_to_pb(info: Info) -> pb.Info:
    message = pb.Info(digest=str(info.digest), size=info.size, labels=info.labels)
    message.created_at.FromNanoseconds(info.created_at)
    message.updated_at.FromNanoseconds(info.updated_at)
    return message


def info_from_pb(message: pb.Info) -> Info:
    return Info(
        digest=digest_from_pb(message.digest),
        size=message.size,
        labels=dict(message.labels),
        created_at=time_from_pb(message.created_at),
        updated_at=time_from_pb(message.updated_at),
    )


def status_to_pb(status: Status) -> pb.Status:
    message = pb.Status(ref=status.ref, offset=status.offset, total=status.total, expected=status.expected)
    message.started_at.FromNanoseconds(status.started_at)
    message.updated_at.FromNanoseconds(status.updated_at)
    return message


def status_from_pb(message: pb.Status) -> Status:
    return Status(
        ref=message.ref,
        offset=message.offset,
        total=message.total,
        expected=message.expected,
        started_at=time_from_pb(message.started_at),
        updated_at=time_from_pb(message.updated_at),
    )


class PlainWrite(NamedTuple):
    """A WriteContentRequest that only brings bytes, as most do. protobuf would copy them twice."""

    offset: int
    data: memoryview
    action: int = pb.WRITE
    expected: str = ""
    total: int = 0
    labels: Mapping[str, str] = MappingProxyType({})


def write_request_from_wire(message: bytes) -> pb.WriteContentRequest | PlainWrite:
    """A message of a Write. DecodeError if it is none."""
    plain = _plain_write(message)
    return pb.WriteContentRequest.FromString(message) if plain is None else plain


def _plain_write(message: bytes) -> PlainWrite | None:
    """None for a message with other fields than action, offset and data, or in another order than clients write
    them.
    """
    at, offset = 2, 0
    if message[:2] != _ACTION:
        return None
    try:
        if message[at] == _OFFSET:
            offset, at = _number_at(message, at + 1)
        if message[at] != _DATA:
            return None
        size, at = _number_at(message, at + 1)
    except IndexError:
        return None
    return PlainWrite(offset, memoryview(message)[at:]) if 0 < size == len(message) - at and offset >= 0 else None


def _number_at(message: bytes, at: int) -> tuple[int, int]:
    """A number, and where it ends. Below 0 if it is longer than any that is meant here."""
    number = 0
    for shift in range(0, 63, 7):
        byte = message[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    return -1, at


_ACTION, _OFFSET, _DATA = bytes((0x08, pb.WRITE)), 0x28, 0x32
"""The fields of such a message: action, with its value; and the tags of offset and data."""


def expected_from_pb(text: str) -> Digest | None:
    """The digest that a writer expects, None if it expects none. InvalidArgument in the words of containerd's store."""
    try:
        return Digest.parse(text) if text else None
    except ValueError as error:
        raise errors.InvalidArgument(f"cannot calculate blob path from invalid digest: {error}") from None


def digest_from_pb(text: str) -> Digest:
    """The digest in a store's answer; Internal if it is malformed."""
    try:
        return Digest.parse(text)
    except ValueError as error:
        raise errors.Internal(f"the content store answered with digest {text!r}: {error}") from None


def read_response_head(offset: int, size: int) -> bytes:
    """The bytes before the data in an encoded ReadContentResponse with ``size`` bytes of data: field 1, the offset,
    then tag and length of field 2.
    """
    return pb.ReadContentResponse(offset=offset).SerializeToString() + b"\x12" + _varint(size)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
