"""What etcd's errors mean: the one table from them to ours.

etcd says with its words, more than with gRPC's code, what happened. Whether a write may have happened decides what its
caller may do, so each error says that first (:class:`Meaning`). What is not in the table, and all that the way to etcd
adds, counts as not known.
"""

from __future__ import annotations

import enum

from services.etcd.store import Compacted, TooLarge
from services.kit import errors


class Meaning(enum.Enum):
    """What a failed call says of what it asked for."""

    FINAL = "it did not happen, and would not elsewhere"
    ELSEWHERE = "it did not happen, and another member may do it"
    LOGIN = "it did not happen, since the token is not valid any more"
    UNKNOWN = "it may have happened"


_FULL = (
    "etcd's database has reached its quota, and takes no writes: compact it, defragment each member, disarm the alarm"
)
_DENIED = "etcd does not allow this key to this user, or without one to the one that the certificate names"
_NO_USER = "etcd has authentication enabled: set user and password_file"

_TABLE: tuple[tuple[str, Meaning, type[errors.NodeError], str], ...] = (
    ("required revision has been compacted", Meaning.FINAL, Compacted, ""),
    ("required revision is a future revision", Meaning.FINAL, Compacted, ""),
    # one cause: INVALID_ARGUMENT from 1.5 MiB, and RESOURCE_EXHAUSTED, which is gRPC's, from 2 MiB
    ("request is too large", Meaning.FINAL, TooLarge, "etcd's --max-request-bytes is smaller than this transaction"),
    ("message larger than max", Meaning.FINAL, TooLarge, "etcd's --max-request-bytes is smaller than this transaction"),
    ("too many operations", Meaning.FINAL, TooLarge, "etcd's --max-txn-ops is smaller than this transaction"),
    ("database space exceeded", Meaning.FINAL, errors.ResourceExhausted, _FULL),
    ("requested lease not found", Meaning.FINAL, errors.NotFound, "the lease has ended"),
    ("duplicate key given", Meaning.FINAL, errors.InvalidArgument, ""),
    ("permission denied", Meaning.FINAL, errors.PermissionDenied, _DENIED),
    ("authentication is not enabled", Meaning.FINAL, errors.FailedPrecondition, "etcd knows no users: leave out user"),
    ("authentication failed", Meaning.FINAL, errors.Unauthenticated, "etcd does not take this user with this password"),
    ("user name is empty", Meaning.FINAL, errors.Unauthenticated, _NO_USER),
    ("user name not found", Meaning.FINAL, errors.Unauthenticated, "etcd does not know this user"),
    ("invalid auth token", Meaning.LOGIN, errors.Unauthenticated, ""),
    ("revision of auth store is old", Meaning.LOGIN, errors.Unauthenticated, ""),
    ("corrupt cluster", Meaning.FINAL, errors.DataLoss, "a member of etcd has found its data damaged"),
    ("no leader", Meaning.ELSEWHERE, errors.Unavailable, "etcd has no leader: less than half of its members are there"),
    ("not leader", Meaning.ELSEWHERE, errors.Unavailable, ""),
    ("not supported for learner", Meaning.ELSEWHERE, errors.Unavailable, "this member is a learner"),
    ("too many requests", Meaning.ELSEWHERE, errors.Unavailable, "etcd is overloaded"),
    ("not capable", Meaning.ELSEWHERE, errors.Unavailable, "this member has only begun"),
)
"""Words of etcd's, what they mean, our error, and what an operator should know (empty: etcd's words say it)."""

_FINAL = frozenset(
    {
        errors.InvalidArgument.code,
        errors.NotFound.code,
        errors.AlreadyExists.code,
        errors.PermissionDenied.code,
        errors.FailedPrecondition.code,
        errors.OutOfRange.code,
        errors.DataLoss.code,
        errors.Unauthenticated.code,
    }
)
"""Codes of etcd's that deny an operation. UNAVAILABLE, UNKNOWN, DEADLINE_EXCEEDED and the others do not."""


def meaning(error: errors.NodeError, who: str) -> tuple[Meaning, errors.NodeError]:
    """What the failure of a call to the member ``who`` means, and our error for it."""
    said = str(error)
    if not isinstance(error, errors.Disconnected):
        for words, what, kind, hint in _TABLE:
            if words in said:
                return what, kind(f"etcd {who}: {hint} ({said})" if hint else f"etcd {who}: {said}")
        if error.code == errors.Unimplemented.code:
            why = f"etcd {who}: it does not speak the API of etcd 3.4 or later ({said})"
            return Meaning.FINAL, errors.FailedPrecondition(why)
        if error.code in _FINAL:
            return Meaning.FINAL, errors.from_status(error.code, f"etcd {who}: {said}")
    return Meaning.UNKNOWN, errors.Unavailable(said if who in said else f"etcd {who}: {said}")


def short(error: BaseException) -> str:
    """An error's words without those of its class at the end, to be put into others'."""
    return str(error).removesuffix(f": {getattr(error, 'suffix', '')}")
