"""The errors of a node, and the one table that maps them to gRPC status codes.

Domain code raises these. ``kit.rpc`` turns them into statuses on the way out, and back into these on the way in. The
classes and their codes are those of containerd's errdefs. A message names the thing that it is about, in lower case and
without a period, and ends as containerd's does (``content sha256:...: not found``), since clients match on it. Raise
``NotFound("content sha256:...")``, and the class adds its own suffix.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from typing import ClassVar, Literal


class NodeError(Exception):
    """An error that is reported to a client. ``trailers`` is trailing metadata to pass on (grpc-status-details-bin)."""

    code: ClassVar[int] = 2
    suffix: ClassVar[str] = "unknown"
    told = False
    """Whether the log has a line about it already."""
    injected: Literal["", "before", "after"] = ""
    """Whether an operator had it injected, before the call was made or after (``gateway/faults.py``). Nobody in this
    process may repeat such a call, or take the error for the service's word.
    """

    lost: bytes = b""
    """Of an error that was injected after the call: the answer that it took the place of."""

    def __init__(self, message: str = "", *, trailers: Sequence[tuple[str, str | bytes]] = ()) -> None:
        super().__init__(_text(self.with_suffix(message)))
        self.trailers = tuple(trailers)

    @classmethod
    def with_suffix(cls, message: str) -> str:
        """``message`` with the class's own words at its end, unless it has them already."""
        if not message:
            return cls.suffix
        return message if message.endswith(cls.suffix) else f"{message}: {cls.suffix}"

    @classmethod
    def verbatim(cls, message: str, trailers: Sequence[tuple[str, str | bytes]] = ()) -> NodeError:
        """The error of another process, with its message unchanged."""
        error = cls(trailers=trailers)
        error.args = (_text(message),)
        return error


def _text(message: str) -> str:
    """``message`` as valid UTF-8. Half of a surrogate pair, which stands for a byte of a name that is not text, is
    escaped. Otherwise grpcio would let the call hang, and protobuf would refuse the message.
    """
    return message if message.isascii() else message.encode("utf-8", "backslashreplace").decode()


class Cancelled(NodeError):
    """The caller went away, or asked to stop."""

    code = 1
    suffix = "context canceled"


class Unknown(NodeError):
    """An unclassified error, such as one that a shim reports."""

    code = 2

    @classmethod
    def with_suffix(cls, message: str) -> str:
        """Unknown errors have the words of the process that failed, and no suffix."""
        return message or cls.suffix


class InvalidArgument(NodeError):
    """The request can never succeed as it is."""

    code = 3
    suffix = "invalid argument"


class DeadlineExceeded(NodeError):
    """The time that the caller allowed is over. It is not known whether the operation happened."""

    code = 4
    suffix = "context deadline exceeded"


class NotFound(NodeError):
    """The named thing does not exist, at least not in this namespace."""

    code = 5
    suffix = "not found"


class AlreadyExists(NodeError):
    """The thing to make exists already."""

    code = 6
    suffix = "already exists"


class PermissionDenied(NodeError):
    """The caller may not do this."""

    code = 7
    suffix = "permission denied"


class ResourceExhausted(NodeError):
    """A bound of the node is reached."""

    code = 8
    suffix = "resource exhausted"


class FailedPrecondition(NodeError):
    """The state of the thing forbids the operation."""

    code = 9
    suffix = "failed precondition"


class Aborted(NodeError):
    """Another operation interfered."""

    code = 10
    suffix = "aborted"


class OutOfRange(NodeError):
    """An offset is beyond the end."""

    code = 11
    suffix = "out of range"


class Unimplemented(NodeError):
    """The node does not have this."""

    code = 12
    suffix = "not implemented"


class Internal(NodeError):
    """A bug, or a part of the node that stayed away. The log of the named process has more."""

    code = 13
    suffix = "internal error"

    @classmethod
    def with_suffix(cls, message: str) -> str:
        """Internal errors say what happened, without a suffix."""
        return message or cls.suffix


class Unavailable(NodeError):
    """Not now; the same request may succeed later."""

    code = 14
    suffix = "unavailable"


class Disconnected(Unavailable):
    """The called process went away, or is not there. It is not known whether the call did anything. On the wire this is
    UNAVAILABLE.
    """

    unseen = False
    """Whether the process has certainly not looked at the call."""


class DataLoss(NodeError):
    """Stored bytes have changed."""

    code = 15
    suffix = "data loss"


class Unauthenticated(NodeError):
    """The caller has not authenticated itself."""

    code = 16
    suffix = "unauthenticated"


BY_CODE: dict[int, type[NodeError]] = {cls.code: cls for cls in NodeError.__subclasses__()}
"""gRPC status code to class. Every code except OK has exactly one class."""


def words(error: OSError) -> str:
    """The message of a system call's error in Go's words, without Python's number and quotes: ``no such file or
    directory``.
    """
    said = error.strerror or str(error)
    return said[:1].lower() + said[1:]


def words_of_path(error: OSError) -> str:
    """:func:`words`, after the path if the error has one: ``/run/x: no such file or directory``."""
    named = error.filename if isinstance(error.filename, str | bytes) else b""
    return f"{os.fsencode(named).decode('utf-8', 'backslashreplace')}: {words(error)}" if named else words(error)


FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Errors of a system call when the disk, a quota or the largest file size is exhausted."""
_OF_THE_MACHINE = FULL | {errno.EROFS, errno.EIO, errno.EUCLEAN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
"""Errors of a system call that are about the machine's disk, memory and open files, not about the request."""


def of_system(error: OSError, what: str) -> NodeError:
    """The error for a failed system call. ``what`` says what could not be done. A full disk, or quota, is
    ResourceExhausted; everything else is Unknown, as in containerd.
    """
    why = f"{what}: {words_of_path(error)}"
    return ResourceExhausted(why) if is_full(error) else Unknown(why)


def is_full(error: OSError) -> bool:
    """Whether a system call failed since the disk, or a quota, is full."""
    return error.errno in FULL


def of_machine(error: BaseException, what: str) -> NodeError | None:
    """Like :func:`of_system`, for what the machine cannot do just now: a disk that is full, read-only or broken, or
    memory or files used up. None for any other exception, which is a bug.
    """
    return of_system(error, what) if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE else None


def defect(method: str) -> Internal:
    """The answer to a call that an unexpected exception ended. The caller of this logs the exception."""
    error = Internal(f"{method}: internal error, see the service's log")
    error.told = True
    return error


def name(code: int) -> str:
    """A status code's name, as gRPC writes it: ``NOT_FOUND``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", BY_CODE.get(code, Unknown).__name__).upper()


def from_status(code: int, message: str, trailers: Sequence[tuple[str, str | bytes]] = ()) -> NodeError:
    """The error for a status, with its message unchanged."""
    return BY_CODE.get(code, Unknown).verbatim(message, trailers)
