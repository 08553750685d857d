"""The errors of a node, and the one table that maps them to gRPC status codes.

Domain code raises these; ``kit.rpc`` turns them into statuses on the way out and back into these on the
way in. The classes and their codes are those of containerd's errdefs. A message names the thing it is about, in
lower case and without a period, and ends the way containerd's does (``content sha256:...: not found``), since
clients match on it: raise ``NotFound("content sha256:...")`` and the class adds its own suffix.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from typing import ClassVar


class NodeError(Exception):
    """Something that a client is told. ``trailers`` is trailing metadata to pass on (grpc-status-details-bin)."""

    code: ClassVar[int] = 2
    suffix: ClassVar[str] = "unknown"
    told = False
    """Whether the log has a line about it already."""

    def __init__(self, message: str = "", *, trailers: Sequence[tuple[str, str | bytes]] = ()) -> None:
        super().__init__(_text(self.with_suffix(message)))
        self.trailers = tuple(trailers)

    @classmethod
    def with_suffix(cls, message: str) -> str:
        """``message`` ending in the class's own words, which it may have already."""
        if not message:
            return cls.suffix
        return message if message.endswith(cls.suffix) else f"{message}: {cls.suffix}"

    @classmethod
    def verbatim(cls, message: str, trailers: Sequence[tuple[str, str | bytes]] = ()) -> NodeError:
        """The error of another process, its message unchanged."""
        error = cls(trailers=trailers)
        error.args = (_text(message),)
        return error


def _text(message: str) -> str:
    """``message`` as UTF-8 can carry it: half of a surrogate pair, which stands for a byte of a name that is not
    text, is written out. grpcio would let the call hang, and protobuf refuse it.
    """
    return message if message.isascii() else message.encode("utf-8", "backslashreplace").decode()


class Cancelled(NodeError):
    """The caller went away, or asked to stop."""

    code = 1
    suffix = "context canceled"


class Unknown(NodeError):
    """An error that nobody classified, such as one that a shim reports."""

    code = 2

    @classmethod
    def with_suffix(cls, message: str) -> str:
        """Unknown errors carry the words of whoever failed, and nothing else."""
        return message or cls.suffix


class InvalidArgument(NodeError):
    """The request can never succeed as it is."""

    code = 3
    suffix = "invalid argument"


class DeadlineExceeded(NodeError):
    """The time that the caller allowed is over; whether the operation happened is not known."""

    code = 4
    suffix = "context deadline exceeded"


class NotFound(NodeError):
    """The thing named is not there, for this namespace at least."""

    code = 5
    suffix = "not found"


class AlreadyExists(NodeError):
    """The thing to make is there already."""

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
    """Somebody else's operation got in between."""

    code = 10
    suffix = "aborted"


class OutOfRange(NodeError):
    """An offset beyond the end."""

    code = 11
    suffix = "out of range"


class Unimplemented(NodeError):
    """The node does not have this."""

    code = 12
    suffix = "not implemented"


class Internal(NodeError):
    """A defect, or a part of the node that stayed away; the log of the process named has more."""

    code = 13
    suffix = "internal error"

    @classmethod
    def with_suffix(cls, message: str) -> str:
        """Internal errors say what happened, and nothing else."""
        return message or cls.suffix


class Unavailable(NodeError):
    """Not now; the same request may succeed later."""

    code = 14
    suffix = "unavailable"


class Disconnected(Unavailable):
    """The process asked went away, or is not there: what the call did, if anything, is not known. The wire says
    UNAVAILABLE.
    """


class DataLoss(NodeError):
    """Stored bytes are not what they were."""

    code = 15
    suffix = "data loss"


class Unauthenticated(NodeError):
    """The caller has not said who it is."""

    code = 16
    suffix = "unauthenticated"


BY_CODE: dict[int, type[NodeError]] = {cls.code: cls for cls in NodeError.__subclasses__()}
"""gRPC status code to class; every code but OK has exactly one."""


def words(error: OSError) -> str:
    """What a system call said, as Go words it, without Python's number and quotes: ``no such file or directory``."""
    said = error.strerror or str(error)
    return said[:1].lower() + said[1:]


def words_of_path(error: OSError) -> str:
    """The same behind the path that it is about, if it names one: ``/run/x: no such file or directory``."""
    named = error.filename if isinstance(error.filename, str | bytes) else b""
    return f"{os.fsencode(named).decode('utf-8', 'backslashreplace')}: {words(error)}" if named else words(error)


FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What a system call says where the disk, somebody's share of it, or the largest file is reached."""
_OF_THE_MACHINE = FULL | {errno.EROFS, errno.EIO, errno.EUCLEAN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
"""What a system call may say wherever it is made: of the disk, memory and open files, not of what was asked."""


def of_system(error: OSError, what: str) -> NodeError:
    """A failed system call as an answer: what could not be done, and why. A full disk, or quota, is
    ResourceExhausted, all else Unknown, as in containerd.
    """
    why = f"{what}: {words_of_path(error)}"
    return ResourceExhausted(why) if is_full(error) else Unknown(why)


def is_full(error: OSError) -> bool:
    """Whether a system call failed since the disk, or somebody's share of it, is full."""
    return error.errno in FULL


def of_machine(error: BaseException, what: str) -> NodeError | None:
    """The same, of what the machine cannot do just now: a disk that is full, read-only or broken, memory or files
    used up. None for any other exception, which is a defect.
    """
    return of_system(error, what) if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE else None


def defect(method: str) -> Internal:
    """The answer where an exception that nobody expects ends a call: its words are the log's, where the caller of
    this puts them.
    """
    error = Internal(f"{method}: internal error, see the service's log")
    error.told = True
    return error


def name(code: int) -> str:
    """A status code's name, as gRPC writes it: ``NOT_FOUND``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", BY_CODE.get(code, Unknown).__name__).upper()


def from_status(code: int, message: str, trailers: Sequence[tuple[str, str | bytes]] = ()) -> NodeError:
    """The error that a status stands for, its message unchanged."""
    return BY_CODE.get(code, Unknown).verbatim(message, trailers)
