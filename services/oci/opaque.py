"""Messages that are passed on undecoded: a container's spec, a runtime's options, statistics."""

from __future__ import annotations

from typing import NamedTuple


class Opaque(NamedTuple):
    """A google.protobuf.Any that nobody here has to decode."""

    type_url: str
    """The name of the message's type, behind a prefix and a slash from some senders."""
    value: bytes
