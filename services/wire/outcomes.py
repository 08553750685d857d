"""The meaning of an answer for a client: response heads, trailers and resets as the errors of a call. ``name`` is that
of the called process.
"""

from __future__ import annotations

from services.kit import errors
from services.kit.call import STOPPING, TOLD
from services.wire.frames import Code
from services.wire.headers import Head


def of_trailers(head: Head, name: str) -> errors.NodeError | None:
    """The error that trailers mean; None for OK."""
    code = head.code
    if code == 0:
        return None
    if code is None:
        return errors.Internal("server closed the stream without sending trailers")
    trailers = tuple((k, v) for k, v in head.headers.items() if k != TOLD)
    if code == errors.Unavailable.code and STOPPING in head.headers:
        return disconnected(name, head.message)
    return errors.from_status(code, head.message, trailers)


def of_response(head: Head, name: str) -> errors.NodeError | None:
    """The error of a response that is not gRPC; None if it is."""
    if head.status == 200 and head.is_grpc():
        return None
    if head.code is not None:
        return of_trailers(head, name)
    code = _OF_STATUS.get(head.status, 2)
    return errors.BY_CODE[code].verbatim(
        f"unexpected HTTP status code {head.status}, content-type {head.content_type!r}"
    )


def of_reset(code: int, reason: str) -> errors.NodeError:
    """The error that an RST_STREAM means, by gRPC's table of HTTP/2 error codes."""
    known = Code(code).name if code in Code.__members__.values() else str(code)
    return errors.BY_CODE[_OF_RESET.get(code, 13)].verbatim(
        f"stream terminated by RST_STREAM with error code {known}" + (f": {reason}" if reason else "")
    )


def disconnected(name: str, reason: str) -> errors.Disconnected:
    """The error of a call that the transport could not carry."""
    return errors.Disconnected(f"service {name} is not reachable ({reason})")


def late(path: str, name: str, seconds: float | None = None) -> errors.DeadlineExceeded:
    """The error of a call whose time is over, which was ``seconds``."""
    within = "in time" if seconds is None else f"within {seconds:.3g} s"
    return errors.DeadlineExceeded(f"{path}: service {name} did not answer {within}")


def overdue(path: str, seconds: float) -> errors.DeadlineExceeded:
    """The error of a call whose request is not complete after ``seconds``."""
    return errors.DeadlineExceeded(f"the request of {path} did not come within {seconds:g} s")


def crowded(limit: int) -> errors.ResourceExhausted:
    """The error of a request for which a connection has no room, with ``limit`` bytes for all its requests."""
    return errors.ResourceExhausted(f"more than {limit} bytes of incomplete messages on one connection")


_OF_RESET: dict[int, int] = {
    Code.REFUSED_STREAM: 14,
    Code.CANCEL: 1,
    Code.ENHANCE_YOUR_CALM: 8,
    Code.INADEQUATE_SECURITY: 7,
}
_OF_STATUS: dict[int, int] = {400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 502: 14, 503: 14, 504: 14}
