"""Failures of registries: one host's failure, its consequences, and the final error for the caller.

A :class:`Failure` is used inside this package only. It says whether asking the same host again may help, and what to
remember of the host. When all hosts have failed, :func:`combined` makes one error of their failures, which names every
host that was asked and why it did not help.
"""

from __future__ import annotations

import email.utils
import enum
import time
from collections.abc import Mapping, Sequence

from services.images.registry.request_ids import request_id
from services.kit import errors, gojson
from services.kit.gojson import ANYTHING, ListOf, Struct

WORDS = 500
"""Characters of a failure in a trace."""


class Blame(enum.Enum):
    """The meaning of a failure for the host, for :mod:`.host_memory`."""

    NOBODY = "nobody"
    """The host works, but does not have this, or not for us."""
    TROUBLE = "trouble"
    """A bad moment: a lost connection, an overload. Several in a row count as DEAD."""
    SLOW = "slow"
    DEAD = "dead"
    """It cannot be reached, or not be trusted: do not ask it again for every blob."""


class Failure(Exception):
    """``host`` did not answer properly. ``transient``: it may do so later (after ``wait`` seconds, if it said so).
    ``status`` is 0 if there was no answer.
    """

    def __init__(
        self,
        host: str,
        cause: str,
        *,
        kind: type[errors.NodeError] = errors.Unavailable,
        transient: bool = False,
        blame: Blame = Blame.NOBODY,
        status: int = 0,
        wait: float | None = None,
        plain: bool = False,
        named: str = "",
    ) -> None:
        super().__init__(f"{host}: {cause}")
        self.host = host
        self.cause = cause
        self.kind = kind
        self.transient = transient
        self.blame = blame
        self.status = status
        self.wait = wait
        self.plain = plain
        """The other side speaks plain http where TLS was tried."""
        self.named = named or (str(status) if status >= 300 else "wrong")
        """The cause in one word, for traces: that of the phase that failed (``dns``, ``connect``, ``tls``), ``timeout``
        (no answer), ``lost`` (a connection), ``stall``, ``slow``, ``http`` (an answer that is none), ``proxy``,
        ``encoding``, ``token``, the status of an answer, or ``wrong``: not what was asked for.
        """

    @property
    def attributes(self) -> dict[str, str]:
        """The failure as attributes of a span; the words are bounded."""
        return {"error.type": self.named, "error.message": self.cause[:WORDS]}

    def add_request_id(self, name: str) -> None:
        """Add the registry's own name for the request, "" if there is none: its operators can look that up."""
        if name:
            self.cause += f" (request id {name})"
            self.args = (f"{self} (request id {name})",)


_KINDS: dict[int, type[errors.NodeError]] = {
    401: errors.Unauthenticated,
    403: errors.PermissionDenied,
    404: errors.NotFound,
    410: errors.NotFound,
    416: errors.OutOfRange,
    429: errors.ResourceExhausted,
    501: errors.Unimplemented,
}
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})


def answered(host: str, what: str, status: int, reason: str, headers: Mapping[str, str], body: bytes = b"") -> Failure:
    """The failure that an HTTP answer of 400 and above means. ``what`` is the request: ``GET /v2/...``."""
    wait = retry_after(headers.get("Retry-After", ""))
    named = request_id(headers)
    said = explanation(body)
    cause = (
        f"{what}: {status} {reason or 'without a reason'}"
        + (f": {said}" if said else "")
        + (f" (asks to wait {wait:g} s)" if wait is not None else "")
        + (f" (request id {named})" if named else "")
    )
    transient = status in _TRANSIENT or status > 504
    kind = _KINDS.get(status, errors.Unavailable if transient else errors.Unknown)
    return Failure(
        host,
        cause,
        kind=kind,
        transient=transient,
        blame=Blame.TROUBLE if transient else Blame.NOBODY,
        status=status,
        wait=wait,
    )


_WORDS = ("code", "message", "details", "error_description", "error")
_EXPLAINED = 16 << 10
"""Bytes of an explanation that is parsed: this happens in the loop, and registries send some hundred bytes."""
_ANSWER = Struct({"errors": ListOf(Struct(dict.fromkeys(_WORDS, ANYTHING))), **dict.fromkeys(_WORDS, ANYTHING)})


def explanation(body: bytes) -> str:
    """The explanation in a registry's JSON error; "" if there is none that can be read, or if it is too long."""
    if len(body) > _EXPLAINED:
        return ""
    try:
        found = gojson.read(body, _ANSWER, mark=True)
    except gojson.Malformed:
        return ""
    first = found["errors"][0] if found.get("errors") else found
    words = [said for key in _WORDS if isinstance(said := first.get(key), str) and said]
    return " ".join(": ".join(words).split())[:300]


def retry_after(value: str, now: float | None = None) -> float | None:
    """The seconds in a Retry-After header, which is a number or a date; None if it is neither."""
    if value.isascii() and value.strip().isdigit():
        return float(value)
    try:
        date = email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError):
        return None
    return max(0.0, round(date - (time.time() if now is None else now), 1))


def combined(what: str, failures: Sequence[Failure], skipped: Sequence[str] = ()) -> errors.NodeError:
    """The error for the caller: ``what`` failed, and why, host by host. ``skipped`` are hosts that were not even asked,
    with the reason.

    As in containerd, the class is that of the host that came furthest: no answer counts less than "not found", and that
    less than any other answer.
    """
    kind = (
        max(failures, key=lambda each: (each.status != 0, each.status != 404)).kind if failures else errors.Unavailable
    )
    return kind(f"{what}: {'; '.join([*map(str, failures), *skipped]) or 'no host to ask'}")
