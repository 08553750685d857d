"""The errors that a client may get. Raise them as ``NotFound("snapshot mine")``; each adds its own words, as containerd
does: ``snapshot mine: not found``. Clients match on the class, some on the words.

Any other exception is a bug: it is logged with its traceback, and the client gets INTERNAL. An OSError of the machine,
such as a full disk, is told to the client as what it is.
"""

from __future__ import annotations

from services.kit.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NodeError,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
    Unknown,
)

__all__ = [
    "Aborted",
    "AlreadyExists",
    "FailedPrecondition",
    "InvalidArgument",
    "NodeError",
    "NotFound",
    "OutOfRange",
    "PermissionDenied",
    "ResourceExhausted",
    "Unavailable",
    "Unimplemented",
    "Unknown",
]
