"""Messages that are passed on undecoded: a container's spec, a runtime's options, statistics."""

from __future__ import annotations

from typing import NamedTuple


class Opaque(NamedTuple):
    """A google.protobuf.Any that is not decoded here."""

    type_url: str
    """The name of the message's type. Some senders put a prefix and a slash before it."""
    value: bytes
