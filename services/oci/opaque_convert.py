"""Opaque values as protobuf's Any and back."""

from __future__ import annotations

from google.protobuf.any_pb2 import Any

from services.oci.opaque import Opaque


def opaque_to_pb(value: Opaque | None) -> Any | None:
    """None stays absent."""
    return None if value is None else Any(type_url=value.type_url, value=value.value)


def opaque_from_pb(value: Any, *, present: bool = True) -> Opaque | None:
    """An absent Any becomes None."""
    return Opaque(value.type_url, value.value) if present else None
