"""google.protobuf.Any as containerd writes it: the type URL is the message's bare full name.

Python's own ``Any.Pack`` puts ``type.googleapis.com/`` (or at least a slash) before the name, which ctr 1.6 refuses,
and ``Unpack`` requires it.
"""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError, Message

from services.kit import errors

M = TypeVar("M", bound=Message)


def pack(message: Message) -> Any:
    return Any(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString(deterministic=True))


def type_name(value: Any) -> str:
    """The full name of the packed message's type, without the prefix that its sender put before it."""
    return value.type_url.rpartition("/")[2]


def unpack(value: Any, cls: type[M]) -> M | None:
    """The packed message, or None if it is not a ``cls``. InvalidArgument if its type is ``cls``, but its bytes are
    not.
    """
    if type_name(value) != cls.DESCRIPTOR.full_name:
        return None
    try:
        return cls.FromString(value.value)
    except DecodeError as error:
        raise errors.InvalidArgument(f"malformed {cls.DESCRIPTOR.full_name}: {error}") from None
