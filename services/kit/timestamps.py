"""Converts google.protobuf.Timestamp and nanoseconds since 1970, in which all our code counts. Go's zero time (the year
1) is a negative number.
"""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

_SECOND = 10**9


def time_to_pb(nanoseconds: int | None) -> Timestamp | None:
    """None becomes a missing field."""
    return None if nanoseconds is None else Timestamp(seconds=nanoseconds // _SECOND, nanos=nanoseconds % _SECOND)


def time_from_pb(stamp: Timestamp) -> int:
    """Nanoseconds, for any ``stamp``: protobuf's own conversion refuses times that clients may send."""
    return stamp.seconds * _SECOND + stamp.nanos
